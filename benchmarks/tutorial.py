"""How long does the tutorial take, from a csv to a served model?

    python benchmarks/tutorial.py

Runs the commands of `docs/tutorial.md` in turn in an empty folder, but for the installation, and times each. A server
stays up for the commands behind it, and ends with the page.

Writes `benchmarks/results/tutorial.json` and `.md`: seconds and output of each command. Ten minutes on two idle cores.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from machine import as_lines, provenance

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "tutorial.md", Path(__file__).parent / "results"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
READY, READY_S = "http://localhost:8080/readyz", 120
SKIPPED = ("pip install", "git clone")


@dataclass(frozen=True)
class Step:
    """A block of the page that was run.

    Attributes:
        code: the block.
        seconds: that it took; of a server, until it was ready.
        output: both streams together.
    """

    code: str
    seconds: float
    output: str


def main() -> None:
    """Run the page and write the results."""
    with TemporaryDirectory() as folder:
        steps = run_page(PAGE, Path(folder))
    about = provenance()
    result = {"about": about, "steps": [asdict(step) for step in steps]}
    (RESULTS / "tutorial.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    total = sum(step.seconds for step in steps)
    lines = ["# The tutorial, command by command", "", as_lines(about), "", f"{total / 60:.1f} minutes in all."]
    for step in steps:
        lines += ["", f"{step.seconds:.1f} s", "", f"```\n{step.code}\n```", "", f"```\n{step.output}\n```"]
    (RESULTS / "tutorial.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_page(page: Path, folder: Path) -> list[Step]:
    """Run a page's blocks in a folder, with `offramp` and `python` of this interpreter."""
    programs = folder / ".bin"
    programs.mkdir()
    for name, module in (("offramp", "-m offramp"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    steps: list[Step] = []
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            if any(word in code for word in SKIPPED):
                continue
            if saved := re.match(r"# (\w+\.py)\n", code):
                (folder / saved[1]).write_text(code, encoding="utf-8")
            elif code.startswith("offramp serve"):
                steps.append(served(code, folder, environment, servers))
            else:
                command = ["bash", "-e", "-c", code] if language == "bash" else [sys.executable, "-c", code]
                steps.append(timed(code, command, folder, environment))
            print(code)
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
            server.wait()
    return steps


def timed(code: str, command: list[str], folder: Path, environment: dict[str, str]) -> Step:
    """Run a block."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds, output = time.perf_counter() - began, done.stdout.decode().strip()
    if done.returncode:
        raise SystemExit(f"{code}\n{output}\nexit status {done.returncode}")
    return Step(code.strip(), seconds, output)


def served(code: str, folder: Path, environment: dict[str, str], servers: list[subprocess.Popen[bytes]]) -> Step:
    """Start a server and wait until it answers."""
    began = time.perf_counter()
    log = folder / "server.log"
    with open(log, "wb") as file:
        command = ["bash", "-c", f"exec {code}"]
        servers.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file))
    while time.perf_counter() - began < READY_S:
        with suppress(OSError), urllib.request.urlopen(READY, timeout=1):
            return Step(code.strip(), time.perf_counter() - began, log.read_text(encoding="utf-8").strip())
        time.sleep(0.1)
    raise SystemExit(f"{code}\n{log.read_text(encoding='utf-8')}\nnot ready after {READY_S} s")


if __name__ == "__main__":
    main()
