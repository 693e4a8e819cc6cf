"""How long it takes to compare every policy on one trace, with intervals.

    python benchmarks/sweep_time.py

Random logits in which deeper exits know more; half of the rows fit consistency and gain, ten thousand are compared on:
12 exits, 200 thresholds of each policy, 200 resamples. Writes `benchmarks/results/sweep_time.json` and `.md`, and
resumes after a kill; remove the file to measure anew.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from machine import as_lines, provenance
from offramp.evaluation.bootstrap import CURVE_POINTS, CURVE_RESAMPLES
from offramp.evaluation.compare import compare
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
EXITS, ROWS = 12, 10_000
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


def measured(problem_type: str, outputs: int, metric: str, rows: int) -> dict[str, Any]:
    """All policies together, fitting included, once."""
    trace = random_trace(problem_type, outputs, 2 * rows)
    began, busy = time.perf_counter(), time.process_time()
    found = compare(trace, metric)
    return {
        "rows": len(found.trace),
        "policies": list(found.bands),
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - busy,
    }


def page(told: dict[str, Any]) -> str:
    """The same as Markdown."""
    lines = ["# Comparing every policy on one trace", "", as_lines(told["about"]), ""]
    lines.append(
        f"{EXITS} exits, {CURVE_POINTS} thresholds a policy, {CURVE_RESAMPLES} resamples; fitting included. On a "
        "machine that"
    )
    lines.append("does other things too the clock says more than the processor's time, which is what counts here.")
    lines += [
        "",
        "| trace | rows compared on | policies | seconds of the processor | of the clock |",
        "|---|---|---|---|---|",
    ]
    for title, case in told["cases"].items():
        times = f"{case['processor_seconds']:.1f} | {case['seconds']:.1f}"
        lines.append(f"| {title} | {case['rows']} | {len(case['policies'])} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write; cases that are written already are left as they are, so a run that was stopped goes on."""
    path = RESULTS / "sweep_time.json"
    told = json.loads(path.read_text()) if path.exists() else {"about": provenance(), "exits": EXITS, "cases": {}}
    for title, case in CASES.items():
        if title not in told["cases"]:
            told["cases"][title] = measured(*case)
            path.write_text(json.dumps(told, indent=1) + "\n")
    (RESULTS / "sweep_time.md").write_text(page(told))
    print(page(told))


if __name__ == "__main__":
    main()
