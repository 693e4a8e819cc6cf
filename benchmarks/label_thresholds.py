"""What does a threshold for each label cost where 0.5 was right, and gain where it was not?

    python benchmarks/label_thresholds.py

One label with normal scores: rows that have it lie SEPARATION above those that do not. The log-odds are moved so that
0.5 has the best F1, or SHIFT below that (a model that is too careful). A threshold is chosen on rows with a number of
positives, as `offramp calibrate --label-thresholds` does but whatever their number. Both are scored on 200,000 other
rows. Writes `benchmarks/results/label_thresholds.json` and `.md`. Seconds on one core.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from machine import as_lines, provenance
from offramp.calibration.label_thresholds import best_threshold

RESULTS = Path(__file__).parent / "results"
POSITIVES, DRAWS, FRESH = (5, 10, 20, 50, 100), 200, 200_000
RATE, SEPARATION, SHIFT = 0.1, 2.0, 3.0


def drawn(rows: int, shift: float, generator: torch.Generator, positives: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-odds and labels of rows, with a given number of positives or each at RATE."""
    labels = torch.rand(rows, generator=generator) < RATE
    if positives is not None:
        labels = torch.arange(rows) < positives
    score = torch.randn(rows, generator=generator, dtype=torch.float64) + SEPARATION * labels
    deserved = SEPARATION * score - SEPARATION**2 / 2 + math.log(RATE / (1 - RATE))
    return deserved - shift, labels


def f1(log_odds: Tensor, labels: Tensor, threshold: float) -> float:
    """The label's F1 at a threshold of its probability."""
    taken = log_odds > math.log(threshold / (1 - threshold))
    return (2 * (taken & labels).sum() / (taken.sum() + labels.sum())).item()


def changes(shift: float, positives: int) -> tuple[float, float]:
    """The mean over draws of the F1 at the chosen threshold minus that at 0.5, and the F1 at 0.5."""
    generator = torch.Generator().manual_seed(0)
    fresh = drawn(FRESH, shift, generator)
    before = f1(*fresh, 0.5)
    rows = round(positives / RATE)
    chosen = [best_threshold(*drawn(rows, shift, generator, positives)) for _ in range(DRAWS)]
    after = sum(f1(*fresh, threshold) for threshold in chosen) / DRAWS
    return after - before, before


def main() -> None:
    """Simulate, print, write."""
    best = torch.tensor(best_threshold(*drawn(FRESH, 0.0, torch.Generator().manual_seed(1)))).logit().item()
    cases = {"0.5 is the best": best, f"log-odds {SHIFT:g} too low": best + SHIFT}
    found = {name: {count: changes(shift, count) for count in POSITIVES} for name, shift in cases.items()}
    lines = [
        f"| F1 at 0.5 | {' | '.join(f'{count} positives' for count in POSITIVES)} |",
        "|---|" + "---|" * len(POSITIVES),
    ]
    lines += [
        f"| {name}: {next(iter(row.values()))[1]:.3f} | {' | '.join(f'{change:+.3f}' for change, _ in row.values())} |"
        for name, row in found.items()
    ]
    about = provenance()
    head = f"# A threshold for a label, chosen on few positive rows: change of F1 on others\n\nMean of {DRAWS} draws.\n"
    (RESULTS / "label_thresholds.md").write_text(f"{head}{as_lines(about)}\n\n" + "\n".join(lines) + "\n")
    data = {"about": about, "draws": DRAWS, "rate": RATE, "separation": SEPARATION, "found": found}
    (RESULTS / "label_thresholds.json").write_text(json.dumps(data, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
