"""How long it takes to compare every policy on one trace, with intervals.

    python benchmarks/sweep_time.py

Random logits in which deeper exits know more; half of the rows fit consistency and gain, ten thousand are compared on:
12 exits, 200 thresholds of each policy, 200 resamples. Writes `benchmarks/results/sweep_time.json` and `.md`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from machine import as_lines, provenance
from offramp.sweeps import POINTS, RESAMPLES, band, compare, comparison
from offramp.values import REGRESSION, SINGLE_LABEL, Trace

RESULTS = Path(__file__).parent / "results"
EXITS, ROWS, ROUNDS = 12, 10_000, 3
CASES = {  # title -> kind of problem, outputs, metric, rows that are compared on
    "3 classes, accuracy": (SINGLE_LABEL, 3, "accuracy", ROWS),
    "150 classes, accuracy": (SINGLE_LABEL, 150, "accuracy", ROWS),
    "20 classes, macro-f1": (SINGLE_LABEL, 20, "macro-f1", ROWS),
    "values, pearson": (REGRESSION, 1, "pearson", ROWS),
    "values, spearman, 750 rows": (REGRESSION, 1, "spearman", 750),
}


def random_trace(problem_type: str, outputs: int, rows: int) -> Trace:
    """With certainty, so that no policy is missing."""
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(rows, outputs, generator=random)
    noise = torch.randn(EXITS, rows, outputs, generator=random) / torch.arange(1, EXITS + 1).view(-1, 1, 1)
    labels = truth if problem_type == REGRESSION else truth.argmax(dim=-1)
    return Trace(truth + 2 * noise, labels, torch.rand(EXITS, rows, generator=random), problem_type=problem_type)


def seconds(work: Callable[[], object]) -> float:
    """Of the clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(problem_type: str, outputs: int, metric: str, rows: int) -> dict[str, Any]:
    """All policies together, fitting included, the median of a few rounds; and each policy's band once."""
    trace = random_trace(problem_type, outputs, 2 * rows)
    rounds = [seconds(lambda: compare(trace, metric)) for _ in range(ROUNDS)]
    policies, rest = comparison(trace)
    alone = {name: seconds(lambda policy=policy: band(rest, policy, metric)) for name, policy in policies.items()}  # type: ignore[misc]
    return {"rows": rows, "seconds": median(rounds), "rounds": rounds, "policies": alone}


def page(told: dict[str, Any]) -> str:
    """The same as Markdown."""
    lines = ["# Comparing every policy on one trace", "", as_lines(told["about"]), ""]
    lines.append(f"{EXITS} exits, {POINTS} thresholds a policy, {RESAMPLES} resamples; median of {ROUNDS} rounds.")
    lines += ["", "| trace | rows | policies | seconds | slowest policy |", "|---|---|---|---|---|"]
    for title, case in told["cases"].items():
        slowest = max(case["policies"], key=case["policies"].get)
        each = f"{slowest}, {case['policies'][slowest]:.2f} s"
        lines.append(f"| {title} | {case['rows']} | {len(case['policies'])} | {case['seconds']:.1f} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write."""
    told = {"about": provenance(), "exits": EXITS, "points": POINTS, "resamples": RESAMPLES}
    told["cases"] = {title: measured(*case) for title, case in CASES.items()}
    (RESULTS / "sweep_time.json").write_text(json.dumps(told, indent=1) + "\n")
    (RESULTS / "sweep_time.md").write_text(page(told))
    print(page(told))


if __name__ == "__main__":
    main()
