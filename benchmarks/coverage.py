"""How often a certified threshold breaks its promise, and what the promise costs.

    python benchmarks/training.py --tasks clinc150 --objectives weighted --depths 6 --seeds 0     # makes the trace
    python benchmarks/coverage.py

The trace of CLINC150's 2,992 validation rows is drawn from 1,000 times in two ways. *Draws*: as many rows as half of
it, independently, with replacement; the true risk is that of all rows, and the promise must hold. *Splits*: one half
certifies, the other is looked at; its risk is a measurement with an error of its own, so more promises seem broken than
are. Writes `benchmarks/results/coverage.json` and `.md`. Four minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from machine import as_lines, provenance
from offramp.calibration.certify import METHODS, losses, lost_at
from offramp.evaluation.metrics import layerwise
from offramp.evaluation.sweep import all_splits
from offramp.policies.registry import load_policy
from offramp.policies.replay import run_policy
from offramp.types.operating_point import RISKS
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
DELTA = 0.05
LEVELS = (0.01, 0.02)
WAYS = ("draws", "splits")
POLICY = "margin"
NO_PROMISE = "none: the rows' own risk"
"""What `calibrate` does: the loosest threshold such that it and all stricter ones hold the level on the rows."""

READING = """**What it says.** On independent draws the three methods that promise with probability 1 - delta keep
their promise, within two standard errors. The conformal one keeps the mean below the level, and is above it in two
draws of five; a threshold chosen without a promise is above it in every second one. With 1,496 rows the promise costs
0.13 to 0.26 of a layer. The exact `binomial` test costs least of the three, at every risk and level; it is what
`certify` and `calibrate --confidence` use."""


@dataclass(frozen=True)
class Rows:
    """What a search sees of some rows: scores (L, N), losses (L, N), who is counted (N,), layers (L,)."""

    score: Tensor
    loss: Tensor
    counted: Tensor
    layers: Tensor

    def take(self, rows: Tensor) -> Rows:
        """Some of them, (K,)."""
        return Rows(self.score[:, rows], self.loss[:, rows], self.counted[rows], self.layers)

    def risk(self, threshold: float) -> float:
        """The mean loss of those that count."""
        return lost_at(self.score, self.loss, threshold)[self.counted].double().mean().item()

    def mean_exit(self, threshold: float) -> float:
        """Over all rows, counted or not."""
        leave = torch.cat((self.score[:-1] >= threshold, torch.ones_like(self.loss[-1:])))
        return self.layers[leave.to(torch.uint8).argmax(dim=0)].double().mean().item()

    def loosest(self, level: float) -> float:
        """The loosest threshold such that it and all stricter ones have a risk of at most the level on these rows."""
        swept, between = all_splits(self.score, self.loss.double().unsqueeze(-1))
        holds = swept.statistics[:, 0] <= level * int(self.counted.sum()) + 1e-9
        return swept.thresholds[between & (holds.long().cumprod(dim=0) == 1)][-1].item()


@dataclass(frozen=True)
class Trials:
    """One row of the table, over all draws.

    Attributes:
        way: "draws" or "splits".
        risk: a name of RISKS.
        level: the risk that was allowed.
        method: a name of METHODS, or NO_PROMISE.
        broken: share of the draws whose true risk is above the level.
        error: the standard error of that.
        mean_risk: mean true risk.
        mean_exit: mean over the draws, on the rows of the true risk.
        best_exit: the same of the loosest threshold that holds there.
        full_depth: share of the draws without any early exit.
    """

    way: str
    risk: str
    level: float
    method: str
    broken: float
    error: float
    mean_risk: float
    mean_exit: float
    best_exit: float
    full_depth: float


def pairs(rows: Rows, way: str, count: int) -> Iterator[tuple[Rows, Rows]]:
    """Rows to certify on, and rows that tell the truth."""
    total = len(rows.counted)
    for seed in range(count):
        random = torch.Generator().manual_seed(seed)
        if way == "draws":
            yield rows.take(torch.randint(total, (total // 2,), generator=random)), rows
        else:
            mixed = torch.randperm(total, generator=random)
            yield rows.take(mixed[: total // 2]), rows.take(mixed[total // 2 :])


def search(rows: Rows, method: str, level: float) -> float:
    """The threshold that a method returns."""
    if method == NO_PROMISE:
        return rows.loosest(level)
    results = METHODS[method](rows.score, rows.loss, rows.counted, level, DELTA)
    return math.inf if results is None else results


def try_out(rows: Rows, way: str, risk: str, level: float, count: int) -> list[Trials]:
    """All methods on the same draws."""
    methods = (*METHODS, NO_PROMISE)
    figures: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
    best = []
    whole = rows.mean_exit(rows.loosest(level))  # of draws the truth is always the same
    for traces, truth in pairs(rows, way, count):
        best.append(whole if truth is rows else truth.mean_exit(truth.loosest(level)))
        for method in methods:
            threshold = search(traces, method, level)
            figures[method].append((truth.risk(threshold), truth.mean_exit(threshold), threshold))
    results = []
    for method, rows_of_method in figures.items():
        risks, exits, thresholds = torch.tensor(rows_of_method, dtype=torch.float64).T
        broken = (risks > level).double().mean().item()
        results.append(
            Trials(
                way,
                risk,
                level,
                method,
                broken,
                math.sqrt(broken * (1 - broken) / count),
                risks.mean().item(),
                exits.mean().item(),
                sum(best) / count,
                thresholds.isinf().double().mean().item(),
            )
        )
    return results


def as_markdown(results: list[Trials], about: dict[str, object]) -> str:
    """The tables."""
    scores = " ".join(f"{score:.3f}" for score in about["layerwise"])  # type: ignore[attr-defined]
    parts = [
        "# Do certificates hold?",
        f"CLINC150, 150 intents, the default encoder (6 layers), objective `weighted`, seed 0; policy `{POLICY}`;\n"
        f"accuracy of the exits on the {about['rows']} rows: {scores}. {about['count']} draws, delta {DELTA}.\n"
        + as_lines(dict(about["provenance"])),  # type: ignore[call-overload]
        "*Broken* is the share of draws whose true risk is above the level; a certificate allows delta of it, the\n"
        "conformal method promises the mean risk alone. *Price* is the mean exit less that of the loosest threshold\n"
        "that holds on the rows of the true risk, in layers of 6.",
        READING,
    ]
    figures = {
        "draws": "Independent rows, the true risk known: here the promise must hold.",
        "splits": "One half certifies, the other is looked at. Its risk has an error of its own, and what one half\n"
        "lacks is in the other, so promises that hold seem broken: this is what a user sees on a test set as large as\n"
        "the calibration rows.",
    }
    for way, (risk, meaning) in product(WAYS, RISKS.items()):
        head = f"## {way}: {risk}\n\n{figures[way]} Risk: the share of {meaning}.\n"
        lines = [
            "| level | method | broken | mean risk | mean exit | price |",
            "|---|---|---|---|---|---|",
        ]
        for row in results:
            if (row.way, row.risk) == (way, risk):
                broken = f"{row.broken:.3f} ± {row.error:.3f}"
                price = f"{row.mean_exit - row.best_exit:+.2f}"
                lines.append(
                    f"| {row.level} | {row.method} | {broken} | {row.mean_risk:.4f} | {row.mean_exit:.2f} | {price} |"
                )
        parts.append("\n".join([head, *lines]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Draw, certify, compare with the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=Path("runs/training/clinc150/weighted-6-0.safetensors"))
    parser.add_argument("--count", type=int, default=1000, help="draws")
    options = parser.parse_args()
    trace = Trace.load(options.trace)
    score, logits = run_policy(load_policy(POLICY), trace)
    results = []
    for risk in RISKS:
        rows = Rows(score, *losses(trace, logits, risk), torch.tensor(trace.layer_numbers))
        for way, level in product(WAYS, LEVELS):
            results += try_out(rows, way, risk, level, options.count)
            print(f"{risk} {level:g} {way}", *(f"{row.method} {row.broken:.3f}" for row in results[-5:]), flush=True)
    about = {"provenance": provenance(), "rows": len(trace), "count": options.count, "layerwise": layerwise(trace)}
    figures = {"about": about, "delta": DELTA, "policy": POLICY, "found": [asdict(row) for row in results]}
    (RESULTS / "coverage.json").write_text(json.dumps(figures, indent=2) + "\n")
    (RESULTS / "coverage.md").write_text(as_markdown(results, about))


if __name__ == "__main__":
    main()
