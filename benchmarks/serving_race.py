"""How many requests a second does the server answer in time, against LitServe and FastAPI around a full-depth model?

    python benchmarks/serving_race.py --data ../shared/data
    python benchmarks/serving_race.py --data ../shared/data --encoder mpnet     # twelve layers
    python benchmarks/serving_race.py --only sst2 --rounds 1 --seconds 2        # a try

The folders of `speed_models.py`; the texts are those of the half that reports, one a request, over loopback, from a
client in a process of its own (`serving_client.py`: Poisson arrivals, times count from when a request was due). For
each server and bound the highest rate at which the 99th percentile stays within the bound is searched, in rounds in
which the servers take turns. Every server runs in the setting of SETTINGS that answers the most where 8 and 32
connections always ask; the rivals (`serving_litserve.py`, `serving_fastapi.py`) around the full-depth models that are
the fastest here for single texts and for batches. Their answers are the same JSON. Results lie under `--state`, and a
run goes on where it was stopped. Writes `benchmarks/results/serving_race.json` and `.md`. Twelve minutes an encoder on
two idle cores, once the full-depth models are exported, which takes three more.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from machine import provenance
from serving_engines import export_missing, fastest
from serving_process import Server, busy_s, running
from serving_report import page
from speed_models import Prepared, add_options, all_prepared

TASKS = ("clinc150", "sst2", "mpnet-clinc150", "mpnet-sst2")
BOUNDS_MS = (25, 100)
"""Of the 99th percentile."""
STEPS, ROUNDS, SECONDS = 4, {False: 3, True: 2}, {False: 4.0, True: 5.0}
"""Rates that a server is asked in a round; rounds, and seconds of a step, by whether the encoder is deep."""
FIRST, WIDER, AGAIN = 0.75, 1.3, 1.12
"""The first rate, as a share of that at saturation; the first and later factors while one side has no bound."""
CONNECTIONS, SATURATED_S, WARM_UP = (8, 32), 1.5, 64
HERE, RESULTS = Path(__file__).parent, Path(__file__).parent / "results"
OWN, FULL, LITSERVE, FASTAPI = "offramp serve", "offramp serve, full depth", "LitServe", "FastAPI"
RIVALS = (LITSERVE, FASTAPI)
WITHOUT_BATCHES, WITH_BATCHES = "single", "batches"
SETTINGS: dict[str, tuple[tuple[str, str], ...]] = {
    OWN: (("", "--workers 2 --threads 1"), ("", "--workers 1 --threads 1"), ("", "--workers 1 --threads 2")),
    FULL: (("", "--workers 2 --threads 1"), ("", "--workers 1 --threads 2")),
    LITSERVE: (
        (WITHOUT_BATCHES, "--workers 2"),
        (WITHOUT_BATCHES, "--workers 2 --fast"),
        (WITH_BATCHES, "--workers 2 --batch 8 --timeout-ms 1"),
        (WITH_BATCHES, "--workers 2 --batch 8 --timeout-ms 5 --fast"),
        (WITH_BATCHES, "--workers 1 --threads 2 --batch 8 --timeout-ms 1"),
    ),
    FASTAPI: (
        (WITHOUT_BATCHES, "--processes 2"),
        (WITHOUT_BATCHES, "--workers 2"),
        (WITH_BATCHES, "--workers 2 --batch 8"),
        (WITH_BATCHES, "--workers 2 --batch 32"),
        (WITH_BATCHES, "--workers 1 --threads 2 --batch 32"),
    ),
}
"""Of each server: which model it runs (rivals alone), and its options."""


@dataclass(frozen=True)
class Race:
    """A task's race; its state is a file.

    Attributes:
        prepared: the model.
        state_file: what is measured so far.
        exports: the full-depth models.
        seconds: of a step.
    """

    prepared: Prepared
    state_file: Path
    exports: Path
    seconds: float

    @cached_property
    def state(self) -> dict[str, Any]:
        """Return what is measured so far."""
        if self.state_file.exists():
            loaded: dict[str, Any] = json.loads(self.state_file.read_text())
            return loaded
        return {"settings": {}, "runs": {name: [] for name in SETTINGS}}

    def save(self) -> None:
        """Write what is measured so far."""
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        self.state_file.write_text(json.dumps(self.state, indent=1))

    @cached_property
    def rows(self) -> list[tuple[str, str]]:
        """Return the texts that race with their labels' names, in a random order."""
        held_out, names = self.prepared.held_out, json.loads((self.prepared.folder / "config.json").read_text())
        rows = [
            (held_out.texts[row], names["id2label"][str(held_out.labels[row])]) for row in self.prepared.reporting()
        ]
        random.Random(0).shuffle(rows)
        return rows  # type: ignore[return-value]

    def prepare(self) -> None:
        """Export the full-depth models, and choose those that the rivals run."""
        if "models" not in self.state:
            export_missing(self.prepared.folder, self.exports, self.prepared.cell.examples("train").texts[:128])  # type: ignore[arg-type]
            speed = fastest(self.prepared.folder, self.exports, [text for text, _ in self.rows])
            self.state["full_depth"] = speed
            sizes = dict(zip((WITHOUT_BATCHES, WITH_BATCHES), speed.values(), strict=True))
            self.state["models"] = {kind: max(speeds, key=lambda name: speeds[name]) for kind, speeds in sizes.items()}
            self.save()

    @contextmanager
    def serving(self, name: str, setting: Sequence[str]) -> Iterator[Server]:
        """Run a server in a setting; it has answered a few texts."""
        kind, options = setting
        folder = str(self.prepared.folder)
        if name in (OWN, FULL):
            point = ["--operating-point", "full", "--engine", "onnx-int8"] if name == FULL else []
            command = ["-m", "offramp", "serve", folder, "--port", "{port}", *point, *options.split()]
        else:
            script, model = str(HERE / f"serving_{name.lower()}.py"), self.state["models"][kind]
            files = ["--folder", folder, "--export", str(self.exports), "--model", model]
            command = [script, "--port", "{port}", *files, *options.split()]
        with running(command) as server:
            self.ask(server, {"mode": "once", "connections": 8}, WARM_UP)
            yield server

    def ask(self, server: Server, plan: dict[str, Any], count: int | None = None) -> dict[str, Any]:
        """Let a client carry out a plan, with the first texts or all; return its report, with cores that are busy."""
        bodies = [json.dumps({"inputs": text}) for text, _ in self.rows[:count]]
        plan = {"port": server.port, "path": "/predict", "bodies": bodies, **plan}
        before, cpu, begin = busy_s(), server.cpu_s(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(HERE / "serving_client.py")], input=json.dumps(plan), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        report: dict[str, Any] = json.loads(done.stdout)
        passed = time.perf_counter() - begin
        report["server_cores"] = (server.cpu_s() - cpu) / passed
        report["other_cores"] = (busy_s() - before) / passed - report["server_cores"] - report["client_cores"]
        return report

    def saturated(self, server: Server, connections: int = CONNECTIONS[-1]) -> dict[str, Any]:
        """Return how many requests a second are answered where some always wait."""
        return self.ask(server, {"mode": "closed", "connections": connections, "seconds": SATURATED_S})

    def choose(self, name: str) -> None:
        """Choose the setting in which a server answers the most, by the geometric mean over CONNECTIONS."""
        if name in self.state["settings"]:
            return
        tried = []
        for setting in SETTINGS[name]:
            with self.serving(name, setting) as server:
                speeds = [self.saturated(server, connections)["a_second"] for connections in CONNECTIONS]
                tried.append((geometric_mean(speeds), list(setting)))
                print(f"  {name} {setting[1]} ({setting[0]}): {tried[-1][0]:.0f} a second", flush=True)
        self.state["settings"][name] = {"chosen": max(tried)[1], "tried": tried}
        self.save()

    def accuracy(self, server: Server) -> float:
        """Return the share of the texts that a server answers with their label."""
        bodies = self.ask(server, {"mode": "once", "connections": 8})["bodies"]
        answers = [None if body is None else json.loads(body)[0]["label"] for body in bodies]
        return sum(answer == label for answer, (_, label) in zip(answers, self.rows, strict=True)) / len(answers)

    def run(self, name: str, number: int) -> None:
        """Measure a server in a round, unless it has been."""
        runs = self.state["runs"][name]
        if len(runs) > number:
            return
        with self.serving(name, self.state["settings"][name]["chosen"]) as server:
            accuracy = self.accuracy(server) if not runs else runs[0]["accuracy"]
            saturated = self.saturated(server)
            limits, steps = self.search(server, saturated["a_second"], runs[-1]["limits"] if runs else None, number)
        runs.append({"accuracy": accuracy, "saturated": saturated, "limits": limits, "steps": steps})
        self.save()
        print(f"  round {number}, {name}: {saturated['a_second']:.0f} at saturation, {limits}", flush=True)

    def search(
        self, server: Server, most: float, before: dict[str, float] | None, number: int
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the highest rate within each bound, 0 where there is none, and the steps of the search."""
        passed, failed = dict.fromkeys(BOUNDS_MS, 0.0), dict.fromkeys(BOUNDS_MS, math.inf)
        rate, wider, steps = FIRST * most, WIDER, list[dict[str, Any]]()
        if before is not None and all(before.values()):
            rate, wider = math.sqrt(math.prod(before.values())), AGAIN
        for step in range(STEPS):
            seed = 100 * number + step
            plan = {
                "mode": "open",
                "rate": rate,
                "seconds": self.seconds,
                "seed": seed,
                "late_s": max(BOUNDS_MS) / 1000,
            }
            report = {"rate": rate, **self.ask(server, plan)}
            self.settle(server)
            steps.append({key: None if value == math.inf else value for key, value in report.items()})
            for bound in BOUNDS_MS:
                if report["whole"] and report["p99_ms"] <= bound:
                    passed[bound] = max(passed[bound], rate)
                else:
                    failed[bound] = min(failed[bound], rate)
            bound = max(BOUNDS_MS, key=lambda bound: failed[bound] / max(passed[bound], 1e-9))
            low, high = passed[bound], failed[bound]
            rate = low * wider if high == math.inf else high / wider**2 if not low else math.sqrt(low * high)
        return {str(bound): value for bound, value in passed.items()}, steps

    def settle(self, server: Server) -> None:
        """Wait until a server has answered what is left of a step, at most five seconds."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            begin = time.perf_counter()
            self.ask(server, {"mode": "once", "connections": 1}, 8)
            if time.perf_counter() - begin < 0.5:
                return


def measure(prepared: Prepared, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a task."""
    folder = options.state / prepared.folder.name
    race = Race(prepared, folder / "race.json", folder, options.seconds or SECONDS[prepared.is_deep])
    race.prepare()
    for name in SETTINGS:
        race.choose(name)
    for number in range(options.rounds or ROUNDS[prepared.is_deep]):
        for name in SETTINGS:
            if not number or name != FULL:  # for information alone
                race.run(name, number)
    return {"texts": len(race.rows), **summary(race.state)}


def summary(state: dict[str, Any]) -> dict[str, Any]:
    """Return medians and spreads over the rounds, and the ratios to each rival."""
    servers = {}
    for name, runs in state["runs"].items():
        limits = {str(bound): [run["limits"][str(bound)] for run in runs] for bound in BOUNDS_MS}
        cores = {
            kind: median(step[f"{kind}_cores"] for run in runs for step in run["steps"])
            for kind in ("client", "server", "other")
        }
        servers[name] = {
            "setting": state["settings"][name]["chosen"],
            "tried": state["settings"][name]["tried"],
            "accuracy": runs[0]["accuracy"],
            "saturated": [run["saturated"]["a_second"] for run in runs],
            "limits": limits,
            "cores": cores,
            "steps": [run["steps"] for run in runs],
        }
    own = servers[OWN]["limits"]
    ratios = {rival: {bound: ratio(own[bound], servers[rival]["limits"][bound]) for bound in own} for rival in RIVALS}
    return {"full_depth": state["full_depth"], "models": state["models"], "servers": servers, "ratios": ratios}


def ratio(own: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the quotient of two medians; None where the second is 0."""
    return median(own) / median(other) if median(other) else None


def about() -> dict[str, Any]:
    """Return command, machine and versions, those of the rivals among them."""
    facts: dict[str, Any] = provenance()
    for package in ("litserve", "fastapi", "starlette", "uvicorn"):
        facts["versions"][package] = version(package)
    return facts


def main() -> None:
    """Measure the tasks that are asked for; those measured before stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--state", type=Path, default=Path("runs/serving"), help="where exports and unfinished runs lie"
    )
    parser.add_argument("--rounds", type=int, help="of each server")
    parser.add_argument("--seconds", type=float, help="of a step")
    options = parser.parse_args()
    file = RESULTS / "serving_race.json"
    results = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    for prepared in all_prepared(options):
        if prepared.cell.task in TASKS:
            print(prepared.folder.name, flush=True)
            results["tasks"][prepared.cell.task] = {"about": about(), **measure(prepared, options)}
            file.write_text(json.dumps(results, indent=1) + "\n")
            (RESULTS / "serving_race.md").write_text(page(results))


if __name__ == "__main__":
    main()
