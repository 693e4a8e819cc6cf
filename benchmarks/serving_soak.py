"""Does the server's memory stay flat under mixed traffic?

    python benchmarks/serving_soak.py --minutes 30
    python benchmarks/serving_soak.py --seconds 20 --every 1

A tiny model, made on the spot (`serving_load.py`), behind the real server. Clients ask for one row and for several, for
long rows and wrong ones, at points and depths, with details; some hang up before the answer; every answer to the plain
ones is checked. The memory of each process (resident, and what is the process's own) is read every so often. It is flat
where a line through the second half of the readings, over the whole time, rises by less than 2 % or 4 MiB. Writes
`benchmarks/results/serving_soak.json` and `.md`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from machine import as_lines, provenance
from serving_load import WRONG, Load, Server, expected, make_model, serving, texts

RESULTS = Path(__file__).parent / "results"
ALLOWED_SHARE, ALLOWED_MIB = 0.02, 4.0
BODIES: Sequence[tuple[str, Any]] = (
    ("/predict", {"inputs": "word1 word2", "early_exit": {"details": True, "max_depth": 2}}),
    ("/predict", {"inputs": [["word3"]] * 20, "early_exit": {"operating_point": "full"}}),
    ("/predict", {"inputs": "word5 " * 4000}),
    ("/predict", {"inputs": ""}),
    ("/predict", {"inputs": "word1", "early_exit": {"operating_point": "no such point"}}),
    ("/predict", {"inputs": [["word1"]] * 200}),
    ("/predict", {"inputs": 7}),
    ("/no/such/route", {}),
    ("/v1/models/sound:predict", {"instances": ["word7 word8"]}),
)
"""Other traffic; its answers are not looked at, only that they come."""


def others(server: Server, stop: threading.Event, counts: dict[str, int], seed: int) -> None:
    """Send other traffic, and hang up on some of it, until the end."""
    draw = random.Random(seed)
    while not stop.is_set():
        path, body = draw.choice(BODIES)
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            connection.request("POST", path, json.dumps(body))
            if draw.random() < 0.2:
                assert isinstance(connection.sock, socket.socket)
                connection.sock.close()  # before the answer
                counts["hung up"] = counts.get("hung up", 0) + 1
                continue
            status = str(connection.getresponse().status)
            counts[status] = counts.get(status, 0) + 1
            connection.close()


def memory_mib(pid: int) -> tuple[float, float]:
    """Return a process's resident memory, and what of it no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return values["Rss"], values["Private_Clean"] + values["Private_Dirty"]


def read(server: Server) -> dict[str, tuple[float, float]]:
    """Return the memory of each process of a server, by its name."""
    names = {server.process.pid: "supervisor", **{pid: "HTTP" for pid in server.pids("http_process")}}
    names |= {pid: f"inference {number}" for number, pid in enumerate(sorted(server.pids("worker")), 1)}
    return {name: memory_mib(pid) for pid, name in names.items()}


def soak(server: Server, load: Load, seconds: float, every_s: float) -> dict[str, Any]:
    """Ask for so long; return the readings of memory and the counts."""
    stop, counts = threading.Event(), dict[str, int]()
    threads = [threading.Thread(target=others, args=(server, stop, counts, seed)) for seed in range(3)]
    load.begin(4)
    for thread in threads:
        thread.start()
    readings: list[dict[str, Any]] = []
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        readings.append({"s": round(passed, 1), "mib": read(server)})
        time.sleep(min(every_s, max(seconds - passed, 0.01)))
    readings.append({"s": round(time.perf_counter() - begin, 1), "mib": read(server)})
    stop.set()
    for thread in threads:
        thread.join()
    return {"readings": readings, "checked": dict(load.end()), "others": counts, "examples": load.examples[:3]}


def rise(readings: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Return the last resident memory of a process, and by how much a line through the second half rises in all."""
    half = readings[len(readings) // 2 :]
    at = np.array([reading["s"] for reading in half])
    rss = np.array([reading["mib"][name][0] for reading in half])
    slope = np.polyfit(at, rss, 1)[0] if len(half) > 1 else 0.0
    return float(rss[-1]), float(slope * (readings[-1]["s"] - readings[0]["s"]))


def verdicts(readings: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each process whether its memory is flat."""
    found = {}
    for name in readings[-1]["mib"]:
        last, rises = rise(readings, name)
        flat = rises < max(ALLOWED_SHARE * last, ALLOWED_MIB)
        first, own = readings[0]["mib"][name][0], readings[-1]["mib"][name][1]
        found[name] = {"first": first, "last": last, "own": own, "rises by": rises, "flat": flat}
    return found


def as_page(result: Mapping[str, Any], about: dict[str, object]) -> str:
    """Return the result as Markdown."""
    seconds = result["readings"][-1]["s"]
    checked = ", ".join(f"{count:,} {name}" for name, count in result["checked"].items())
    other = ", ".join(f"{count:,} x {name}" for name, count in sorted(result["others"].items()))
    lines = [
        "# Memory under mixed traffic",
        "",
        f"{seconds / 60:.1f} minutes. Checked answers: {checked}. Other traffic: {other}.",
        "",
        "| Process | First reading, MiB | Last, MiB | of it its own | Rise over the time, by the second half | Flat |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["verdicts"].items():
        sizes = " | ".join(f"{row[key]:.1f}" for key in ("first", "last", "own", "rises by"))
        lines.append(f"| {name} | {sizes} | {'yes' if row['flat'] else 'no'} |")
    return "\n".join([*lines, "", as_lines(about), ""])


def main() -> None:
    """Soak, and write the readings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/serving_faults"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, help="In place of minutes.")
    parser.add_argument("--every", type=float, default=60.0, help="Seconds between readings.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    folder, some = make_model(options.work / "sound"), texts(300, seed=1)
    wanted = expected(folder, some, "onnx-int8")
    with serving(folder, "--engine", "onnx-int8", "--workers", "2", "--threads", "1") as server:
        result = soak(server, Load(server.port, wanted), options.seconds or 60 * options.minutes, options.every)
    result["verdicts"] = verdicts(result["readings"])
    about = provenance()
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "serving_soak.json").write_text(json.dumps({"about": about, **result}, indent=1) + "\n")
    (options.results / "serving_soak.md").write_text(as_page(result, about))
    print(as_page(result, about))
    if result["checked"].get(WRONG) or not all(row["flat"] for row in result["verdicts"].values()):
        raise SystemExit("memory grows, or an answer was wrong")


if __name__ == "__main__":
    main()
