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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from machine import provenance
from resumable import load_state, save_state
from serving_engines import export_missing, fastest
from serving_process import Server, running
from serving_rates import RateSearch, Texts
from serving_report import page
from speed_models import Prepared, add_options, all_prepared

TASKS = ("clinc150", "sst2", "mpnet-clinc150", "mpnet-sst2")
BOUNDS_MS = (25, 100)
"""Of the 99th percentile."""
STEPS, ROUNDS, SECONDS = 4, {False: 3, True: 2}, {False: 4.0, True: 5.0}
"""Rates that a server is asked in a round; rounds, and seconds of a step, by whether the encoder is deep."""
CONNECTIONS = (8, 32)
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
        return load_state(self.state_file, {"settings": {}, "runs": {name: [] for name in SETTINGS}})

    def save(self) -> None:
        """Write what is measured so far."""
        save_state(self.state_file, self.state)

    @cached_property
    def texts(self) -> Texts:
        """Return the texts that race."""
        return Texts.reporting(self.prepared)

    def prepare(self) -> None:
        """Export the full-depth models, and choose those that the rivals run."""
        if "models" not in self.state:
            export_missing(self.prepared.folder, self.exports, self.prepared.cell.examples("train").texts[:128])  # type: ignore[arg-type]
            speed = fastest(self.prepared.folder, self.exports, [text for text, _ in self.texts.rows])
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
            self.texts.warm_up(server)
            yield server

    def choose(self, name: str) -> None:
        """Choose the setting in which a server answers the most, by the geometric mean over CONNECTIONS."""
        if name in self.state["settings"]:
            return
        tried = []
        for setting in SETTINGS[name]:
            with self.serving(name, setting) as server:
                speeds = [self.texts.saturated(server, connections)["a_second"] for connections in CONNECTIONS]
                tried.append((geometric_mean(speeds), list(setting)))
                print(f"  {name} {setting[1]} ({setting[0]}): {tried[-1][0]:.0f} a second", flush=True)
        self.state["settings"][name] = {"chosen": max(tried)[1], "tried": tried}
        self.save()

    def run(self, name: str, number: int) -> None:
        """Measure a server in a round, unless it has been."""
        runs = self.state["runs"][name]
        if len(runs) > number:
            return
        with self.serving(name, self.state["settings"][name]["chosen"]) as server:
            accuracy = runs[0]["accuracy"] if runs else self.texts.accuracy(self.texts.answers(server))
            saturated = self.texts.saturated(server)
            search = RateSearch.start(BOUNDS_MS, saturated["a_second"], runs[-1]["limits"] if runs else None)
            steps = [self.step(server, search, 100 * number + step) for step in range(STEPS)]
        limits = search.limits
        runs.append({"accuracy": accuracy, "saturated": saturated, "limits": limits, "steps": steps})
        self.save()
        print(f"  round {number}, {name}: {saturated['a_second']:.0f} at saturation, {limits}", flush=True)

    def step(self, server: Server, search: RateSearch, seed: int) -> dict[str, Any]:
        """Ask a server at the next rate of a search; return the step."""
        plan = {"mode": "open", "phases": [[search.rate, self.seconds]], "seed": seed, "late_s": max(BOUNDS_MS) / 1000}
        report = {"rate": search.rate, **self.texts.ask(server, plan)}
        self.texts.settle(server)
        search.add(report)
        return {key: None if value == math.inf else value for key, value in report.items()}


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
    return {"texts": len(race.texts.rows), **summary(race.state)}


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
