"""How many validation rows does "lose at most 1 %" take, with an exit before the first layer and without?

    python benchmarks/lexical_rows.py --data ../shared/data

Needs the models of `lexical.py`. From one half of the test rows of AG News, SNLI and IMDB some rows are drawn, a point
is chosen on them, and the loss is measured on the other half, DRAWS times. Compared are ways to choose: the loosest
thresholds that keep the target on the drawn rows, stricter ones, one threshold for all exits, and a scale of the
lexical exit from 1,000 rows of training that a lexical exit of the others answers. Writes
`benchmarks/results/lexical_rows.json` and `.md`. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lexical_models import Cell, add_options, cells, held_trace, trace_of
from machine import as_lines, provenance
from offramp.evaluation.sweep import all_splits
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.fitting import fit_lines
from offramp.policies.registry import load_policy
from offramp.policies.replay import run_policy
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
NAMES, ROWS, ASKED, DRAWS = ("ag_news", "snli", "imdb"), (100, 200, 449, 1000, 3000), 0.01, 100
Lines = tuple[tuple[float, float], ...]
Holds = Callable[[Tensor, Tensor, float], Tensor]
"""Lost and gained rows (K,) at every threshold, and the allowance in rows -> which thresholds hold (K,)."""

WAYS: dict[str, Holds] = {
    "as asked": lambda lost, gained, most: lost - gained <= most,
    "one row less": lambda lost, gained, most: lost - gained + 1 <= most,
    "half a standard error": lambda lost, gained, most: lost - gained + 0.5 * (lost + gained).sqrt() <= most,
    "a standard error": lambda lost, gained, most: lost - gained + (lost + gained).sqrt() <= most,
    "losses alone, one row less": lambda lost, gained, most: lost + 1 <= most,
}
ONE, HELD_LINE = "one threshold for all exits", "scale of exit 0 from rows of training"


@dataclass(frozen=True)
class Replayed:
    """What a trace's rows need for any thresholds: scores (L, N) of margin, right answers (L, N), layers (L,)."""

    trace: Trace
    score: Tensor
    right: Tensor
    layers: Tensor

    @classmethod
    def of(cls, trace: Trace) -> Replayed:
        """Run margin over a trace."""
        right = (trace.logits.argmax(dim=-1) == trace.labels).double()
        return cls(
            trace, run_policy(load_policy("margin"), trace)[0], right, torch.tensor(trace.layer_numbers).double()
        )

    def scores(self, rows: Tensor, lines: Lines | None) -> Tensor:
        """Return the scores of some rows, (L, K), on one scale where there are lines."""
        score = self.score[:, rows]
        return score if lines is None else ExitScaled(load_policy("margin"), lines).rescale(score)

    def threshold(self, rows: Tensor, lines: Lines | None, holds: Holds) -> float:
        """Return the loosest threshold such that it and all stricter ones hold on these rows."""
        right = self.right[:, rows]
        full = right[-1]
        sums, between = all_splits(
            self.scores(rows, lines), torch.stack((full * (1 - right), (1 - full) * right), dim=-1)
        )
        lost, gained = sums.statistics.unbind(dim=-1)
        allowed = (holds(lost, gained, ASKED * full.sum().item() + 1e-9).long().cumprod(dim=0) == 1) & between
        return sums.thresholds[allowed][-1].item() if allowed.any() else math.inf

    def measure(self, rows: Tensor, lines: Lines | None, threshold: float) -> tuple[float, float]:
        """Return the share of the full model's right answers lost on these rows, and the mean exit layer."""
        leave = self.scores(rows, lines) >= threshold
        leave[-1] = True
        exits = leave.to(torch.uint8).argmax(dim=0)
        right = self.right[:, rows]
        return 1 - (right.gather(0, exits[None]).sum() / right[-1].sum()).item(), self.layers[exits].mean().item()


@dataclass(frozen=True)
class Figures:
    """Over the draws: mean and 95th percentile of the loss, share of draws that lose more than asked, mean exit."""

    task: str
    seed: int
    rows: int
    lexical: bool
    way: str
    lost: float
    p95: float
    above: float
    layers: float


def measured(cell: Cell) -> Iterator[Figures]:
    """Yield every way at every number of rows, without and with the lexical exit."""
    held_line: Lines = fit_lines("margin", held_trace(cell))["lines"][:1]
    traces = {lexical: Replayed.of(trace_of(cell, range(not lexical, 7))) for lexical in (False, True)}
    order = torch.randperm(len(traces[False].trace), generator=torch.Generator().manual_seed(99))
    pool, report = order.tensor_split(2)
    for count in (count for count in ROWS if count <= len(pool)):
        found: dict[tuple[bool, str], list[tuple[float, float]]] = {}
        for seed in range(DRAWS):
            rows = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]]
            for lexical, replayed in traces.items():
                lines: Lines = fit_lines("margin", replayed.trace.take(rows))["lines"]
                ways: list[tuple[str, Lines | None, Holds]] = [(name, lines, holds) for name, holds in WAYS.items()]
                ways.append((ONE, None, WAYS["as asked"]))
                if lexical:
                    ways.append((HELD_LINE, (*held_line, *lines[1:]), WAYS["as asked"]))
                for name, scale, holds in ways:
                    threshold = replayed.threshold(rows, scale, holds)
                    found.setdefault((lexical, name), []).append(replayed.measure(report, scale, threshold))
        for (lexical, name), draws in found.items():
            lost, layers = torch.tensor(draws, dtype=torch.float64).unbind(dim=-1)
            above = (lost > ASKED).double().mean().item()
            figures = lost.mean().item(), lost.quantile(0.95).item(), above, layers.mean().item()
            yield Figures(cell.task, cell.seed, count, lexical, name, *figures)


def as_markdown(results: list[Figures], about: dict[str, object]) -> str:
    """A table for each task; means over the seeds."""
    parts = [
        "# How many rows choose the thresholds?",
        f"Asked: lose at most {ASKED:.0%}. Mean loss / 95th percentile / share of draws above {ASKED:.0%} / layers run,"
        f"\nover {DRAWS} draws for each seed.\n" + as_lines(about),
        READING,
    ]
    for task in dict.fromkeys(row.task for row in results):
        of_task = [row for row in results if row.task == task]
        counts = sorted({row.rows for row in of_task})
        parts.append(f"## {task}, seeds {sorted({row.seed for row in of_task})}")
        lines = [
            f"| lexical exit | way | {' | '.join(f'{count} rows' for count in counts)} |",
            "|---|---|" + "---|" * len(counts),
        ]
        for lexical in (False, True):
            for way in dict.fromkeys(row.way for row in of_task if row.lexical == lexical):
                cells_ = [
                    [row for row in of_task if (row.rows, row.lexical, row.way) == (count, lexical, way)]
                    for count in counts
                ]
                lines.append(f"| {'with' if lexical else 'without'} | {way} | {' | '.join(map(in_words, cells_))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def in_words(rows: list[Figures]) -> str:
    """Return the mean figures of a table's cell."""
    lost, p95, above, layers = (
        sum(getattr(row, name) for row in rows) / len(rows) for name in ("lost", "p95", "above", "layers")
    )
    return f"{lost:.2%} / {p95:.2%} / {above:.0%} / {layers:.2f}"


READING = ""


def main() -> None:
    """Draw, choose, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    results = []
    for cell in cells(options):
        if cell.task in NAMES and cell.is_trained():
            for figures in measured(cell):
                results.append(figures)
                print(figures, flush=True)
    about = provenance()
    data = {"about": about, "asked": ASKED, "draws": DRAWS, "found": [asdict(row) for row in results]}
    (RESULTS / "lexical_rows.json").write_text(json.dumps(data, indent=2) + "\n")
    (RESULTS / "lexical_rows.md").write_text(as_markdown(results, about))


if __name__ == "__main__":
    main()
