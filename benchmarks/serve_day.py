"""What do early exit and the ladder cost and save in a Ray Serve deployment with an autoscaler, over a day?

    python benchmarks/serve_day.py
    python benchmarks/serve_day.py --only sst2 --seeds 1    # a part; what is there is taken up
    python benchmarks/serve_day.py --pages                  # tables and picture alone

A simulation (`serve_day_model.py`, `serve_day_parts.py`): nothing is timed here, so it may run on a machine that does
other things, and gives the same figures each time. What it is made of was measured: the times of MPNet-base in int8 by
exit, for batches of 1, 8 and 32 rows (`results/expected_ms.json`); the milliseconds of a request beside the model
(`results/serving_cost.json`); the exits and answers of real rows, from the traces in `results/traces`. One half of a
trace chooses the rungs, as `offramp calibrate --ladder` does, arrivals are drawn from the other half.

Writes `results/serve_day.json` and `.md`, `docs/pictures/serve_day.svg` and the tables of `docs/scaling.md`. A day
takes half a minute of one core, with a ladder two; needs matplotlib (`[demo]`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

import offramp
from docs_pictures import trace_of
from machine import provenance
from offramp.policies.fitting import halves
from offramp.serving.ladder import Ladder, ladder_of
from offramp.types.cost_table import CostTable
from resumable import load_state, save_state
from scaling_page import GUIDE, with_tables
from scaling_pictures import draw_day
from serve_day_model import Deployment, Outcome, Plan
from serve_day_page import BEGIN, END, page, tables
from serve_day_parts import Day, Rows, Scaling, Times

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "serve_day.json"
RATES = {"sst2": 40.0, "clinc150": 70.0}
"""Rows a second, on average without bursts: at full depth about one core is busy with them."""
DEFAULT, SEEDS, TARGET_S = "keep-99", 3, 0.1
BUSY = 0.8
"""How busy a deployment of fixed size is at its largest rate."""
BINS, BIN_S, BEFORE_S, AFTER_S = 288, 10, 60, 300


@dataclass(frozen=True)
class System:
    """What is compared.

    Attributes:
        nominal: the point without load.
        floor: the loosest point; None = of the ladder.
        ongoing: rows a replica that the autoscaler aims at; None = always as many replicas as the bursts take.
    """

    nominal: str
    floor: str | None
    ongoing: float | None


SYSTEMS = {
    "full depth, autoscaler": System("full", "full", 2.0),
    "full depth, autoscaler aims at 1 row": System("full", "full", 1.0),
    "full depth, fixed for the bursts": System("full", "full", None),
    "default point, autoscaler": System(DEFAULT, DEFAULT, 2.0),
    "ladder, autoscaler": System("full", None, 2.0),
    "ladder, fixed for the bursts": System("full", None, None),
}


@dataclass(frozen=True)
class Task:
    """Real rows at the rungs of a ladder.

    Attributes:
        points: of the ladder, by name.
        rows: of which arrivals are drawn.
        times: of batches.
        differs: for each rung, which rows get another answer than at full depth, (R, N).
        lost: for each rung, right answers of full depth that it gets wrong, less those that it gets right, (R, N).
    """

    points: dict[str, offramp.OperatingPoint]
    rows: Rows
    times: Times
    differs: np.ndarray
    lost: np.ndarray

    def ladder(self, system: System) -> Ladder:
        """Return the rungs between which a system moves."""
        return ladder_of(self.points, system.nominal, system.floor)

    def row_s(self, rung: int = 0) -> float:
        """Return the mean seconds of a row that runs alone at a rung, by number; 0 = full depth."""
        pairs = zip(self.rows.exits[rung], self.rows.tokens, strict=True)
        return float(mean(self.times.seconds([exit], tokens) for exit, tokens in pairs))


def cost_tables() -> list[CostTable]:
    """Return the measured costs of MPNet-base, for batches of 1, 8 and 32 rows."""
    cell = json.loads((RESULTS / "expected_ms.json").read_text())["cells"]["mpnet-clinc150-0 onnx-int8"]
    return [
        CostTable(**{key: _tuple(value) for key, value in cell[size]["table"].items()}) for size in ("1", "8", "32")
    ]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def task_of(name: str) -> Task:
    """Return the rows of a task, and a ladder that other rows have chosen."""
    costs = cost_tables()
    row_ms = json.loads((RESULTS / "serving_cost.json").read_text())["tasks"][name]["ms"]["offramp serve"]
    chosen_on, reported = halves(trace_of(name).select(costs[0].layers))
    policy = offramp.load_policy("margin", **offramp.fit_lines("margin", chosen_on))
    points = offramp.ladder(chosen_on, policy)
    full_right = reported.logits[-1].argmax(dim=-1) == reported.labels
    exits, differs, lost = [], [], []
    for rung in ladder_of(points, None, None).names:
        answers = offramp.replay(reported, points[rung].policy, points[rung].thresholds)
        chosen = answers.logits.argmax(dim=-1)
        exits.append([costs[0].layers.index(layer) for layer in answers.exit_layers.tolist()])
        differs.append((chosen != reported.logits[-1].argmax(dim=-1)).numpy())
        lost.append((full_right.int() - (chosen == reported.labels).int()).numpy())
    rows = Rows(reported.tokens.tolist(), exits)
    return Task(points, rows, Times(costs, mean(row_ms) / 1000), np.array(differs), np.array(lost))


def plan_of(system: System, task: Task, day: Day) -> Plan:
    """Return what is simulated; an autoscaler may start twice the replicas that the largest burst takes."""
    busiest = day.factor * day.mean * 2 * day.ratio / (day.ratio + 1)
    ladder = task.ladder(system)
    most = math.ceil(busiest * task.row_s() / BUSY)
    if system.ongoing is None:
        return Plan(ladder, TARGET_S, None, most)
    scaling = Scaling(target=system.ongoing, least=2, most=2 * most)
    return Plan(ladder, TARGET_S, scaling, scaling.least)


def figures(task: Task, system: System, day: Day, seed: int) -> dict[str, Any]:
    """Return what a day of a system comes to."""
    deployment = Deployment(plan_of(system, task, day), task.rows, task.times, seed)
    arrivals = day.arrivals(seed)
    outcome = deployment.run(arrivals)
    drawn, names = deployment.drawn, task.ladder(system).names
    differs, lost = task.differs[outcome.rungs, drawn], task.lost[outcome.rungs, drawn]
    since = since_burst(arrivals, day.draw_bursts(seed))
    minute = (since >= 0) & (since < 60)
    p50, p99 = np.quantile(outcome.waits, (0.5, 0.99)).tolist()
    counts = np.bincount(outcome.rungs, minlength=len(names)) / len(arrivals)
    return {
        "rows": len(arrivals),
        "hours": outcome.hours(day.seconds),
        "most_replicas": max(count for _, count in outcome.replicas),
        "p50_ms": 1000 * p50,
        "p99_ms": 1000 * p99 if p99 < math.inf else None,
        "refused": share(np.isinf(outcome.waits)),
        "late_50": share(outcome.waits > 0.05),
        "late_100": share(outcome.waits > 0.1),
        "late_100_in_first_minute_of_bursts": share(outcome.waits[minute] > 0.1),
        "below_full_in_first_minute_of_bursts": share(outcome.rungs[minute] > 0),
        "below_full": share(outcome.rungs > 0),
        "differs": share(differs),
        "lost": share(lost),
        "rungs": {name: count for name, count in zip(names, counts.tolist(), strict=True) if count},
        "day": over_the_day(arrivals, outcome, day),
        "burst": around_bursts(since, arrivals, outcome),
    }


def share(rows: np.ndarray) -> float:
    """Return the mean of ones and zeros."""
    return float(rows.mean())


def since_burst(arrivals: np.ndarray, bursts: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return how many seconds after the last beginning of a burst each row came, (N,).

    The seconds right before a beginning are negative.
    """
    begins = np.array([begin for begin, _ in bursts])
    following = np.searchsorted(begins - BEFORE_S, arrivals, side="right") - 1
    return np.where(following >= 0, arrivals - begins[np.maximum(following, 0)], np.inf)


def replicas_at(times: np.ndarray, outcome: Outcome) -> np.ndarray:
    """Return the replicas that are paid for at some times."""
    changes = np.array(outcome.replicas)
    return changes[np.searchsorted(changes[:, 0], times, side="right") - 1, 1]


def over_the_day(arrivals: np.ndarray, outcome: Outcome, day: Day) -> dict[str, list[float]]:
    """Return rates and replicas in BINS spans of the day."""
    edges = np.linspace(0, day.seconds, BINS + 1)
    rate = np.histogram(arrivals, edges)[0] / (edges[1] - edges[0])
    replicas = replicas_at((edges[:-1] + edges[1:]) / 2, outcome)
    return {"rate": rate.round(1).tolist(), "replicas": replicas.tolist()}


def around_bursts(since: np.ndarray, arrivals: np.ndarray, outcome: Outcome) -> dict[str, list[float]]:
    """Return the mean of all bursts, from before their beginning on, in spans of BIN_S."""
    edges = np.arange(-BEFORE_S, AFTER_S + BIN_S, BIN_S)
    rows = np.histogram(since, edges)[0].clip(1)
    replicas = replicas_at(arrivals, outcome)
    values = {"late_100": outcome.waits > 0.1, "below_full": outcome.rungs > 0, "replicas": replicas}
    means = {name: np.histogram(since, edges, weights=value * 1.0)[0] / rows for name, value in values.items()}
    return {"seconds": edges[:-1].tolist(), **{name: value.round(4).tolist() for name, value in means.items()}}


def main() -> None:
    """Simulate what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RATES, help="one task")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="days a system")
    parser.add_argument("--pages", action="store_true", help="write tables and picture alone")
    options = parser.parse_args()
    state = load_state(FILE, {"cells": {}})
    for name in () if options.pages else [options.only] if options.only else RATES:
        task, day = task_of(name), Day(RATES[name])
        state |= {
            "about": provenance(),
            "day": vars(Day()),
            "rates": RATES,
            "target_s": TARGET_S,
            "scaling": vars(Scaling()),
        }
        state.setdefault("full_ms", {})[name] = 1000 * task.row_s()
        state.setdefault("rungs", {})[name] = rungs(task)
        for seed in range(options.seeds):
            for label, system in SYSTEMS.items():
                days = state["cells"].setdefault(name, {}).setdefault(label, {})
                if str(seed) not in days:
                    days[str(seed)] = figures(task, system, day, seed)
                    save_state(FILE, state)
                    shown = {key: round(value, 4) for key, value in days[str(seed)].items() if isinstance(value, float)}
                    print(name, label, seed, shown, flush=True)
    (RESULTS / "serve_day.md").write_text(page(state), encoding="utf-8")
    guide = with_tables(GUIDE.read_text(encoding="utf-8"), BEGIN, END, tables(state))
    GUIDE.write_text(guide, encoding="utf-8")
    draw_day(state)


def rungs(task: Task) -> list[dict[str, Any]]:
    """Return what each rung costs, and what it loses on the rows that arrive."""
    ladder = ladder_of(task.points, None, None)
    return [
        {
            "name": rung.name,
            "cost": rung.cost,
            "row_ms": 1000 * task.row_s(number),
            "differs": float(task.differs[number].mean()),
            "lost": float(task.lost[number].mean()),
        }
        for number, rung in enumerate(ladder.rungs)
    ]


if __name__ == "__main__":
    main()
