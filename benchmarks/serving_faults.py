"""What becomes of requests when a process is killed, a row is poisoned, the disk is full, or the server has to end?

    python benchmarks/serving_faults.py
    python benchmarks/serving_faults.py --seconds 2 --only "full queue"

A tiny model, made on the spot (`serving_load.py`), behind the real server; clients on loopback check each answer:
equal to the predictor's, for the exact int8 graph to the last bit. Faults come while they ask. A request is answered
right, or refused (a status, with the error in the protocol's form), or its connection is reset, or it found no server;
none may be wrong or hang. Writes `benchmarks/results/serving_faults.json` and `.md`; two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import as_lines, provenance
from serving_load import (
    BREAKS,
    NO_CONNECTION,
    POISON,
    RESET,
    RIGHT,
    WRONG,
    Load,
    Server,
    expected,
    make_model,
    serving,
    texts,
)

RESULTS = Path(__file__).parent / "results"
CLIENTS = 16
WORKERS = ("--workers", "2", "--threads", "1")


@dataclass(frozen=True)
class Setting:
    """What a scenario starts from.

    Attributes:
        folder: of the model.
        load: no client has begun.
        seconds: for which the clients ask.
        engine: that runs the model.
    """

    folder: Path
    load: Load
    seconds: float
    engine: str

    def serve(self, *options: str, **more: Any) -> Any:
        """Start the server; see `serving`."""
        return serving(self.folder, "--engine", self.engine, *options, **more)

    def at(self, server: Server, **changes: Any) -> Load:
        """Return the load for a server."""
        return replace(self.load, port=server.port, counts=Counter(), examples=[], **changes)


Facts = tuple[Load, dict[str, Any]]


def nothing(setting: Setting) -> Facts:
    """Ask, without a fault."""
    with setting.serve(*WORKERS) as server:
        load = setting.at(server).begin(CLIENTS)
        time.sleep(setting.seconds)
        load.end()
    return load, {}


def killed(setting: Setting, module: str) -> Facts:
    """Kill a process every second; wait until the server is whole again."""
    with setting.serve(*WORKERS) as server:
        load = setting.at(server).begin(CLIENTS)
        kills, back = 0, []
        end = time.perf_counter() + setting.seconds
        while time.perf_counter() < end:
            time.sleep(0.5)
            os.kill(server.pids(module)[0], signal.SIGKILL)
            kills += 1
            time.sleep(0.02)
            back.append(server.until_ready())
        time.sleep(0.3)
        load.end()
        return load, {"kills": kills, "whole again after, s": round(max(back), 2)}


def all_killed(setting: Setting) -> Facts:
    """Kill both inference processes at once, three times."""
    with setting.serve(*WORKERS) as server:
        load = setting.at(server).begin(CLIENTS)
        for _ in range(3):
            time.sleep(setting.seconds / 4)
            for pid in server.pids("worker"):
                os.kill(pid, signal.SIGKILL)
            server.until_ready()
        load.end()
    return load, {"kills": 6}


def stuck(setting: Setting) -> Facts:
    """Stop an inference process for good; its batch is given up after the time limit."""
    with setting.serve(*WORKERS, "--timeout", "1") as server:
        load = setting.at(server).begin(CLIENTS)
        time.sleep(setting.seconds / 3)
        os.kill(server.pids("worker")[0], signal.SIGSTOP)
        time.sleep(setting.seconds * 2 / 3 + 1.5)
        load.end()
        return load, {"processes again": len(server.pids("worker"))}


def poisoned(setting: Setting) -> Facts:
    """Ask for rows that turn to NaN and rows for which the engine raises, among sound ones."""
    faults = {f"word{number} {word}": 424 for word in (POISON, BREAKS) for number in range(20)}
    with setting.serve(*WORKERS) as server:
        load = setting.at(server, faults=faults).begin(CLIENTS)
        time.sleep(setting.seconds)
        pids = server.pids("worker")
        load.end()
        return load, {
            "poisoned texts of all": f"{len(faults)} of {len(faults) + len(load.wanted)}",
            "processes": len(pids),
        }


def slow_clients(setting: Setting) -> Facts:
    """Ask while 50 clients send a byte of their body every tenth of a second."""
    with setting.serve(*WORKERS) as server:
        load = setting.at(server).begin(CLIENTS)
        slow = [begun(server, 1000) for _ in range(50)]
        end = time.perf_counter() + setting.seconds
        while time.perf_counter() < end:
            for connection in slow:
                with suppress(OSError):
                    connection.send(b" ")
            time.sleep(0.1)
        load.end()
        for connection in slow:
            connection.close()
        return load, {"slow clients": len(slow)}


def half_open(setting: Setting) -> Facts:
    """Ask while 200 connections are open on which nothing more comes, and 200 that are reset in the middle."""
    with setting.serve(*WORKERS) as server:
        silent = [begun(server, 1000) for _ in range(200)]
        load = setting.at(server).begin(CLIENTS)
        for _ in range(200):
            gone = begun(server, 1000)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()  # with a reset
            time.sleep(setting.seconds / 200)
        load.end()
        ready = server.is_ready()
        for connection in silent:
            connection.close()
        return load, {"silent": len(silent), "reset by the client": 200, "ready": ready}


def begun(server: Server, length: int) -> socket.socket:
    """Return a connection with the head of a request, whose body does not come."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode())
    return connection


def full_queue(setting: Setting) -> Facts:
    """Ask with 32 clients, four rows each, where 16 rows may be there at the same time."""
    with setting.serve(*WORKERS, "--max-concurrent-requests", "16") as server:
        load = setting.at(server, rows=4).begin(32)
        time.sleep(setting.seconds)
        load.end()
    return load, {}


def disk_full(setting: Setting) -> Facts:
    """Log to a full disk, a line for each request; kill a process on the way, which logs too."""
    with setting.serve(*WORKERS, "--log-level", "debug", errors="/dev/full") as server:
        load = setting.at(server).begin(CLIENTS)
        time.sleep(setting.seconds / 2)
        os.kill(server.pids("worker")[0], signal.SIGKILL)
        time.sleep(setting.seconds / 2)
        server.until_ready()
        load.end()
    return load, {}


def terminated(setting: Setting, workers: int) -> Facts:
    """Ask the server to end while clients ask."""
    with setting.serve("--workers", str(workers), "--threads", "1") as server:
        load = setting.at(server, rows=4).begin(CLIENTS)
        time.sleep(setting.seconds / 2)
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        try:
            status: int | str = server.process.wait(40)
        except subprocess.TimeoutExpired:
            status = "still there"
        took = time.perf_counter() - begin
        left = server.pids()
        load.end()
    return load, {"exit status": status, "seconds to the end": round(took, 2), "processes left": len(left)}


SCENARIOS: Mapping[str, Callable[[Setting], Facts]] = {
    "no fault": nothing,
    "kill -9 of an inference process": lambda setting: killed(setting, "worker"),
    "kill -9 of all inference processes": all_killed,
    "an inference process that is stuck": stuck,
    "kill -9 of the HTTP process": lambda setting: killed(setting, "http_process"),
    "poisoned rows": poisoned,
    "slow clients": slow_clients,
    "half-open connections": half_open,
    "full queue": full_queue,
    "disk full": disk_full,
    "SIGTERM, one inference process": lambda setting: terminated(setting, 1),
    "SIGTERM, two inference processes": lambda setting: terminated(setting, 2),
}


def settings(work: Path, seconds: float) -> dict[bool, Setting]:
    """Return the settings of the sound model and of the poisoned one."""
    some, found = texts(300, seed=1), {}
    for is_poisoned, engine in ((False, "onnx-int8"), (True, "onnx")):
        folder = make_model(work / ("poisoned" if is_poisoned else "sound"), is_poisoned)
        load = Load(0, expected(folder, some, engine), 1e-5 if is_poisoned else 0.0)
        found[is_poisoned] = Setting(folder, load, seconds, engine)
    return found


def row_of(load: Load, facts: dict[str, Any]) -> dict[str, Any]:
    """Return a scenario's counts."""
    counts = dict(load.counts)
    known = (RIGHT, WRONG, RESET, NO_CONNECTION)
    refused = {status: count for status, count in sorted(counts.items()) if status not in known}
    fields = {"requests": sum(counts.values()), **{name: counts.get(name, 0) for name in known}}
    return fields | {"refused": refused, "facts": facts, "examples": load.examples[:3]}


def as_page(results: Mapping[str, Any], about: dict[str, object]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Faults under load",
        "",
        "Requests to the real server, and what became of them. Right = the predictor's answer (int8: to the last bit), "
        "for a poisoned row its error. Refused = a status with the error in the protocol's form. Reset = the "
        "connection ended without an answer. No connection = the server had ended.",
        "",
        "| Fault | Requests | Right | Refused | Reset | No connection | Wrong | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        refused = ", ".join(f"{count:,} x {status}" for status, count in row["refused"].items()) or "0"
        facts = ", ".join(f"{key} {value}" for key, value in row["facts"].items())
        counts = f"{row[RIGHT]:,} | {refused} | {row[RESET]:,} | {row[NO_CONNECTION]:,} | {row[WRONG]:,}"
        lines.append(f"| {name} | {row['requests']:,} | {counts} | {facts} |")
    return "\n".join([*lines, "", as_lines(about), ""])


def main() -> None:
    """Run the scenarios and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/serving_faults"))
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    found, results = settings(options.work, options.seconds), {}
    for name in options.only or SCENARIOS:
        results[name] = row_of(*SCENARIOS[name](found[name == "poisoned rows"]))
        print(name, {key: value for key, value in results[name].items() if value}, flush=True)
    about = provenance()
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "serving_faults.json").write_text(
        json.dumps({"about": about, "faults": results}, indent=1) + "\n"
    )
    (options.results / "serving_faults.md").write_text(as_page(results, about))
    if any(row[WRONG] or "hung" in row["refused"] for row in results.values()):
        raise SystemExit("a request was answered wrong, or hung")


if __name__ == "__main__":
    main()
