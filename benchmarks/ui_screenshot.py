"""Pictures of the server's page, for the README and the guide.

    python benchmarks/ui_screenshot.py --folder runs/ui

`offramp serve FOLDER --ladder` (without a ladder in the folder: without the option), with texts of this file at a low
rate and, for some seconds, at a high one, so that the server steps down and comes back; a Chromium writes a text, and
moves the slider. Writes `docs/ui.png` (a desk) and `docs/ui_phone.png` (a phone, in the dark). 80 seconds; needs a
Chromium, and a model of intents for these texts. In the pictures of the guide that is a copy of `clinc150-0` of
`serving_ladders.py`, without its points and graphs, and from there all exits are read:

    offramp export runs/ui --int8
    offramp record runs/ui --data validation.jsonl --engine onnx-int8 -o trace.safetensors
    offramp calibrate runs/ui --trace trace.safetensors --ladder --confidence 0.95
    offramp export runs/ui --int8
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from offramp.model.points import load_points
from offramp.types.ladder_names import LADDER_NAMES

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.browser import Browser, browsing  # noqa: E402
from support.server import serving  # noqa: E402

TEXT = "is there anything i must get injected before i see kenya"
ASKED = (
    *("where did my money go last week", "put forty dollars on my savings", "what do i owe on the visa"),
    *("wake me at a quarter to seven", "how do they say thanks in portuguese", "will it snow in oslo on sunday"),
    *("play that record by nina simone", "am i free on friday afternoon", "how long does rice take"),
    *("my front tire looks flat", "remind me to water the plants", "make me laugh", "add oat milk to the list"),
    *("how far is it to the airport", "my card got eaten by the machine", "do you like music", "call grandma"),
    *("why was my payment turned down", "book a table for two tonight", "what does ephemeral mean"),
    *("i need a new pin", "turn the lights off in the kitchen", "is my flight on time", "how are you made"),
)
ENDINGS = ("", "", " please", " thanks", ", and quickly", " if you can", " for me")
PHASES = ((150.0, 28.0), (1000.0, 10.0), (150.0, 28.0))
"""Requests a second, and for how many seconds."""


def ask(port: int) -> None:
    """Send texts, at one rate after the other."""
    chance = random.Random(0)
    bodies = [json.dumps({"inputs": chance.choice(ASKED) + chance.choice(ENDINGS)}) for _ in range(500)]
    plan = {"port": port, "path": "/predict", "bodies": bodies, "mode": "open", "phases": PHASES, "seed": 0}
    plan |= {"lead_s": 0.0, "late_s": 30.0}
    subprocess.run(
        [sys.executable, str(HERE / "serving_client.py")],
        input=json.dumps(plan),
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )


def climb(tab: Browser, url: str, left: int) -> None:
    """Open the page, write the text, and move the slider so many steps to the left of its end."""
    tab.open(url)
    tab.value("document.getElementById('text').focus()")
    tab.type(TEXT)
    tab.press("Enter", 13, "\r")
    tab.until("!document.getElementById('ladder').hidden")
    tab.value("document.getElementById('point').focus()")
    tab.press("End", 35)
    for _ in range(left):
        tab.press("ArrowLeft", 37)
    tab.value("document.activeElement.blur()")


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a model, with its graph and best with a ladder")
    parser.add_argument("--left", type=int, default=1, help="steps of the slider from the loosest point")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where the pictures go")
    chosen = parser.parse_args()
    ladder = ("--ladder",) if set(load_points(str(chosen.folder))) & set(LADDER_NAMES) else ()
    options = (*ladder, "--engine", "onnx-int8", "--workers", "1", "--served-model-name", "intents")
    with serving(chosen.folder, *options) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        url = f"http://127.0.0.1:{server.port}/ui"
        with browsing(Path(profile)) as tab:
            tab.size(1160, 900)
            climb(tab, url, chosen.left)  # the process that explains starts now, and not under load
            asking = threading.Thread(target=ask, args=(server.port,))
            asking.start()
            time.sleep(sum(seconds for _, seconds in PHASES) - 4)
            shoot(tab, chosen.docs / "ui.png", 1160)
            tab.size(360, 800, dark=True)
            climb(tab, url, chosen.left)
            shoot(tab, chosen.docs / "ui_phone.png", 360, dark=True)
            asking.join()


def shoot(tab: Browser, path: Path, width: int, dark: bool = False) -> None:
    """Write a picture of the whole page."""
    height = tab.value("document.body.scrollHeight") + 8
    tab.size(width, height, dark=dark)
    time.sleep(1.5)
    tab.picture(path)
    print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
