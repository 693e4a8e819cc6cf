"""What is the ladder of a server worth: requests a second at equal 99th percentile, five rates, and a burst?

    python benchmarks/serving.py --data ../shared/data
    python benchmarks/serving.py --data ../shared/data --only sst2 --part burst --rounds 1      # a try
    python benchmarks/serving.py --tables      # the pages and the picture again, from serving.json

The folders of `serving_ladders.py`; the texts are those of the half that reports, which chose no threshold, one a
request, over loopback, from a client in a process of its own (`serving_client.py`: Poisson arrivals, times count from
when a request was due). Three servers of one engine take turns: the one that moves along its ladder, full depth in the
setting of FULL_SETTINGS that answers the most, and the loosest certified point of the ladder. Part "rates": the highest
rate of each within one and two targets, then RATES times that of full depth. Part "burst": BASE times the rate of
full depth, three times as many for five seconds, and the same as before for fifteen. Points and layers of answers come
from the counters of `/metrics`, so no request asks for more than it would; accuracy and agreement are those of the
answers. Results lie under `--state`, and a run goes on where it was stopped; remove a task's file there to measure it
again. Writes `benchmarks/results/serving.json` and `.md`, `docs/burst.png`, and the tables of `docs/serving.md`. Twenty
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lexical_models import Cell
from machine import provenance
from offramp.model.points import load_points
from offramp.serving.ladder import Ladder, ladder_of
from offramp.types.ladder_names import LADDER_NAMES
from resumable import load_state, save_state
from serving_burst import Watch, between, claims, finite
from serving_counts import counts_of, difference, in_force, mean_layers, read_metrics, shares
from serving_page import FIXED, FULL, LADDER, draw, insert_figures, page
from serving_process import Server, running
from serving_rates import RateSearch, Texts
from speed_models import INT8, Prepared

TASKS = ("clinc150", "sst2", "mpnet-clinc150", "mpnet-sst2")
PARTS = ("rates", "burst")
FLOORS = {"mpnet-clinc150": "keep-99.5"}
"""The loosest point that load may lead to, by task; of others the ladder's loosest."""
TARGETS_MS = {False: 50, True: 100}
"""Of the 99th percentile, by whether the encoder is deep: a text takes MPNet-base five times as long at full depth."""
BOUNDS = (1, 2)
"""Times the target, within which rates are searched."""
ROUNDS, STEPS, SECONDS, LEAD_S = 3, 3, 4.0, 0.5
"""Of the search: rounds, steps of each (one more in the first), seconds of a step that count, and those before them."""
RETURNS_S = 8.0
RATES = (0.25, 0.5, 1.0, 2.0, 3.0)
"""Times the highest rate of full depth within the target."""
BASE, TIMES, BURST_S = 0.5, 3.0, (5.0, 5.0, 15.0)
"""The base rate, as a share of the same; the burst's, as a multiple of that; seconds before, in and after the burst."""
CONNECTIONS = (8, 32)
FULL_SETTINGS = ("--workers 2 --threads 1", "--workers 1 --threads 2")
SETTING = {
    "seconds": SECONDS,
    "lead_s": LEAD_S,
    "rates": RATES,
    "times": TIMES,
    "burst_s": BURST_S,
}
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Trial:
    """A task's figures; its state is a file.

    Attributes:
        prepared: the task.
        folder: of the model with a ladder.
        state_file: what is measured so far.
    """

    prepared: Prepared
    folder: Path
    state_file: Path

    @cached_property
    def texts(self) -> Texts:
        """Return the texts that are sent."""
        return Texts.reporting(self.prepared)

    @cached_property
    def ladder(self) -> Ladder:
        """Return the points of the folder that a server moves along."""
        points = {name: point for name, point in load_points(str(self.folder)).items() if name in LADDER_NAMES}
        return ladder_of(points, None, FLOORS.get(self.prepared.cell.task))

    @cached_property
    def state(self) -> dict[str, Any]:
        """Return what is measured so far."""
        return load_state(self.state_file, {"rounds": {LADDER: [], FULL: [], FIXED: []}, "rates": {}, "burst": {}})

    def save(self) -> None:
        """Write what is measured so far."""
        save_state(self.state_file, self.state)

    @property
    def target_ms(self) -> int:
        """Return the target of the server with a ladder."""
        return TARGETS_MS[self.prepared.is_deep]

    @property
    def bounds_ms(self) -> tuple[int, ...]:
        """Return the bounds within which rates are searched."""
        return tuple(times * self.target_ms for times in BOUNDS)

    @property
    def fixed(self) -> str:
        """Return the name of the loosest point that load may lead to."""
        return self.ladder.rungs[self.ladder.floor].name

    @contextmanager
    def serving(self, options: str) -> Iterator[Server]:
        """Run a server that has answered a few texts."""
        common = ["-m", "offramp", "serve", str(self.folder), "--port", "{port}", "--engine", INT8]
        with running([*common, *options.split()]) as server:
            self.texts.warm_up(server)
            yield server

    def choose(self) -> None:
        """Choose the setting of full depth that answers the most, on average over CONNECTIONS."""
        if "tried" in self.state:
            return
        tried = {}
        for setting in FULL_SETTINGS:
            with self.serving(f"--operating-point full {setting}") as server:
                self.texts.saturated(server)  # the first large batches take longer
                speeds = [self.texts.saturated(server, connections)["a_second"] for connections in CONNECTIONS]
                tried[setting] = fmean(speeds)
                if "full_answers" not in self.state:  # exact int8: the same in each setting
                    self.state["full_answers"] = self.texts.answers(server)
        self.state["tried"], self.state["setting"] = tried, max(tried, key=lambda setting: tried[setting])
        self.save()
        print(f"  full depth: {tried}", flush=True)

    @contextmanager
    def all_servers(self) -> Iterator[dict[str, Server]]:
        """Run the three servers; those that nobody asks take no time."""
        options = {
            LADDER: f"--ladder --floor {self.fixed} --latency-target-ms {self.target_ms}",
            FULL: f"--operating-point full {self.state['setting']}",
            FIXED: f"--operating-point {self.fixed}",
        }
        with ExitStack() as stack:
            yield {name: stack.enter_context(self.serving(option)) for name, option in options.items()}

    def search(self, servers: Mapping[str, Server], names: Sequence[str], rounds: int) -> None:
        """Search the highest rates of some servers within the bounds, round by round."""
        for number in range(rounds):
            for name in names:
                server = servers[name]
                runs = self.state["rounds"][name]
                if len(runs) > number:
                    continue
                most = runs[0]["saturated"] if runs else self.texts.saturated(server)["a_second"]
                search = RateSearch.start(self.bounds_ms, most, runs[-1]["limits"] if runs else None)
                steps = []
                for step in range(STEPS + (not number)):
                    report = self.step(server, search.rate, 100 * number + step)
                    search.add(report)
                    steps.append(finite(report))
                runs.append({"saturated": most, "limits": search.limits, "steps": steps})
                self.save()
                print(f"  round {number}, {name}: {most:.0f} at saturation, {search.limits}", flush=True)

    def step(self, server: Server, rate: float, seed: int, keep: bool = False) -> dict[str, Any]:
        """Ask a server at a rate; return the client's report."""
        plan = {
            "mode": "open",
            "phases": [[rate, LEAD_S + SECONDS]],
            "lead_s": LEAD_S,
            "seed": seed,
            "late_s": math.inf if keep else max(self.bounds_ms) / 1000,
            "keep": keep,
        }
        report = {"rate": rate, **self.texts.ask(server, plan)}
        self.texts.settle(server)
        return report

    def wait_for_return(self, server: Server) -> None:
        """Wait until a server with a ladder is at the point without load, at most RETURNS_S."""
        end = time.monotonic() + RETURNS_S
        while in_force(read_metrics(server)) != self.ladder.names[0] and time.monotonic() < end:
            time.sleep(0.2)

    def full_rate(self) -> float:
        """Return the highest rate of full depth within the target, median over the rounds; else the least tried."""
        runs = self.state["rounds"][FULL]
        limit = median(run["limits"][str(self.target_ms)] for run in runs)
        return limit or min(step["rate"] for run in runs for step in run["steps"])

    def ask_rates(self, servers: Mapping[str, Server]) -> None:
        """Ask each server at the five rates."""
        for number, share in enumerate(RATES):
            for name, server in servers.items():
                done = self.state["rates"].setdefault(name, [])
                if len(done) > number:
                    continue
                if name == LADDER:
                    self.wait_for_return(server)
                before = counts_of(read_metrics(server))
                report = self.step(server, share * self.full_rate(), 1000 + number, keep=True)
                counts = difference(counts_of(read_metrics(server)), before)
                each = [request for request in report.pop("each") if request[0] >= LEAD_S]
                report |= {"layers": mean_layers(counts), "shares": shares(counts), **self.quality(each)}
                done.append(finite(report))
                self.save()
                print(f"  {share} x, {name}: p99 {report['p99_ms']:.0f} ms, {report['layers']:.2f} layers", flush=True)

    def quality(self, each: list[Any]) -> dict[str, float | None]:
        """Return accuracy and agreement with full depth of answers that have come."""
        answers = [(text, label) for _, took, text, label in each if took < math.inf]
        if not answers:
            return {"accuracy": None, "agreement": None}
        full = self.state["full_answers"]
        return {
            "accuracy": sum(label == self.texts.rows[text][1] for text, label in answers) / len(answers),
            "agreement": sum(label == full[text] for text, label in answers) / len(answers),
        }

    def burst(self, servers: Mapping[str, Server]) -> None:
        """Ask with a burst, and keep what happens in each second."""
        base = BASE * self.full_rate()
        rates = (base, TIMES * base, base)
        for name in (LADDER, FULL):
            if name in self.state["burst"]:
                continue
            plan = {"mode": "open", "phases": list(zip(rates, BURST_S, strict=True)), "seed": 7, "late_s": math.inf}
            self.wait_for_return(servers[name])
            with Watch(servers[name]) as watch:
                report = self.texts.ask(servers[name], {**plan, "keep": True})
            self.texts.settle(servers[name])
            each, began = report.pop("each"), report.pop("began")
            starts = (0.0, *accumulate(BURST_S))
            run = {
                "base": base,
                **finite(report),
                "phases": [between(each, *span, self.quality) for span in pairwise(starts)],
                "seconds": [between(each, second, second + 1, self.quality) for second in range(int(starts[-1]))],
                "looks": [{**look, "at": look["at"] - began} for look in watch.looks],
                "nominal": self.ladder.names[self.ladder.nominal],
            }
            self.state["burst"][name] = {**run, "claims": claims(run, BURST_S, self.target_ms)}
            self.save()
            print(f"  burst, {name}: {self.state['burst'][name]['claims']}", flush=True)

    def run(self, parts: tuple[str, ...], rounds: int) -> None:
        """Measure what is not yet measured."""
        self.choose()
        with self.all_servers() as servers:
            self.search(servers, tuple(servers) if "rates" in parts else (FULL,), rounds)
            if "rates" in parts:
                self.ask_rates(servers)
        if "burst" in parts:
            with self.all_servers() as servers:  # new ones, which remember no load
                self.burst(servers)

    def figures(self) -> dict[str, Any]:
        """Return what is measured, without the answers."""
        kept = {name: value for name, value in self.state.items() if name != "full_answers"}
        about = {"texts": len(self.texts.rows), "target_ms": self.target_ms, "ladder": self.ladder.names}
        return {**about, "fixed": self.fixed, **kept}


def measure(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a task."""
    prepared = Prepared(Cell(task, 0, options.data, options.encoders), options.runs)
    name = prepared.folder.name
    trial = Trial(prepared, options.ladders / name, options.state / name / "serving.json")
    print(name, flush=True)
    trial.run((options.part,) if options.part else PARTS, options.rounds)
    return {"about": provenance(), **trial.figures()}


def main() -> None:
    """Measure what is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/speed"), help="the folders of speed_models.py")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--ladders", type=Path, default=Path("runs/ladders"), help="the folders of serving_ladders.py")
    parser.add_argument("--state", type=Path, default=Path("runs/serving"), help="where unfinished runs lie")
    parser.add_argument("--only", choices=TASKS, help="one task")
    parser.add_argument("--part", choices=PARTS, help="one part")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the search")
    parser.add_argument("--tables", action="store_true", help="measure nothing, and write the pages again")
    options = parser.parse_args()
    file = RESULTS / "serving.json"
    results = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    for task in () if options.tables else [options.only] if options.only else TASKS:
        results |= {"setting": SETTING, "tasks": results["tasks"] | {task: measure(task, options)}}
        results["tasks"] = {name: results["tasks"][name] for name in TASKS if name in results["tasks"]}
        file.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "serving.md").write_text(page(results))
    insert_figures(ROOT / "docs" / "serving.md", results)
    draw(results, ROOT / "docs" / "burst.png")


if __name__ == "__main__":
    main()
