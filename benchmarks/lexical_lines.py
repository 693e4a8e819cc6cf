"""Whose rows should fit the line of the exit before the first layer, for a certificate with a threshold at each exit?

    python benchmarks/lexical_lines.py --data ../shared/data

Needs the models of `lexical.py`. `offramp train` leaves lines that are fitted on 500 of the rows that it trained on, so
that all rows of `offramp calibrate` certify (`lines.py`). The exit before the first layer answers those rows by heart.
Compared are a line of them; a line of logits that a twin of the exit, fitted without these rows, gives them (what
`offramp train` saves); lines of 500 held-out rows that nothing else uses; lines of one half of the drawn rows, so that
only the other half certifies; one threshold for all exits; and the saved lines without that exit. Rows are drawn DRAWS
times, the risk "drop" is certified on them, and mean exit and loss are measured on those that were not drawn. Writes
`benchmarks/results/lexical_lines.json` and `.md`. Two minutes a task on one core, and two fits of the exit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lexical_models import Cell, add_options, cells, encoder_trace, lexical, take, trace_of
from machine import as_lines, provenance
from offramp.calibration.certify import certify
from offramp.calibration.saved_lines import FIT_ROWS, fit_saved_lines
from offramp.evaluation.measure import measure_point
from offramp.inference.record import record
from offramp.policies.base import Policy
from offramp.policies.fitting import fit_lines, halves
from offramp.policies.registry import load_policy
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
NAMES = ("clinc150", "banking77", "sst2")
LEVELS, ROWS, DELTA, DRAWS, LEAST = (0.01, 0.02), (300, 800, 1600), 0.05, 20, 60
OWN, TWIN, HELD_OUT = "rows that fitted it", "a twin's logits of them", "held-out rows"
HALF, ONE, WITHOUT = "one half of the rows", "one threshold for all exits", "the exit is not read"
WAYS = (OWN, TWIN, HELD_OUT, HALF, ONE, WITHOUT)


@dataclass(frozen=True)
class Figures:
    """Means over the draws: mean exit and share of the full model's score lost, on the rows not drawn."""

    task: str
    level: float
    rows: int
    lines: str
    mean_exit: float
    lost: float


def known_traces(cell: Cell) -> tuple[Trace, Trace]:
    """Return the traces of FIT_ROWS rows that were trained on: with the exit's own logits, and with its twin's."""
    file = cell.file("lines")
    every = cell.examples("train")
    known, others = take(every, list(range(FIT_ROWS))), take(every, list(range(FIT_ROWS, len(every))))
    if not file.exists():
        behind = record(str(cell.folder), known).logits
        own, twin = (lexical(cell, rows, known)["logits"] for rows in (every, others))
        save_file({"behind": behind.contiguous(), "own": own, "twin": twin}, file)
    logits = load_file(file)
    labels, layers = torch.tensor(known.labels), torch.arange(len(logits["behind"]) + 1)
    own, twin = (
        Trace(torch.cat((logits[name].unsqueeze(0), logits["behind"])), labels, layers=layers)
        for name in ("own", "twin")
    )
    return own, twin


def saved(rows: Trace) -> Policy:
    """Margin with lines that training leaves if these are its rows."""
    first = rows.logits[0] if rows.layer_numbers[0] == 0 else None
    return load_policy(
        "margin", lines=fit_saved_lines(replace(rows, provenance={"weights": ""}), first).lines["margin"]
    )


def scaled(rows: Trace) -> Policy:
    """Margin with lines that these rows fit; of where they are from nothing is kept, since some texts recur."""
    return load_policy("margin", lines=fit_lines("margin", rows)["lines"])


def measured(cell: Cell) -> Iterator[Figures]:
    """Yield every way to come by lines, at every level and number of rows."""
    own, twin = known_traces(cell)
    whole = trace_of(cell, [0, *encoder_trace(cell).layer_numbers])
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(99))
    count = min(FIT_ROWS, len(whole) // 3)
    held_out, pool = whole.take(order[:count]), whole.take(order[count:])
    fixed = {OWN: saved(own), TWIN: saved(twin), HELD_OUT: scaled(held_out), ONE: load_policy("margin")}
    without = saved(own.select(own.layer_numbers[1:]))
    for level in LEVELS:
        for count in (count for count in ROWS if count + LEAST <= len(pool)):
            found: dict[str, list[tuple[float, float]]] = {}
            for seed in range(DRAWS):
                mixed = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
                drawn, remaining = pool.take(mixed[:count]), pool.take(mixed[count:])
                fit_half, other_half = halves(drawn, seed)
                ways = {name: (drawn, policy) for name, policy in fixed.items()}
                ways |= {
                    HALF: (other_half, scaled(fit_half)),
                    WITHOUT: (drawn.select(whole.layer_numbers[1:]), without),
                }
                for name, (rows, policy) in ways.items():
                    found.setdefault(name, []).append(certified(rows, policy, level, remaining))
            for name, figures in found.items():
                exit, lost = torch.tensor(figures, dtype=torch.float64).mean(dim=0).tolist()
                yield Figures(cell.task, level, count, name, exit, lost)


def certified(rows: Trace, policy: Policy, level: float, remaining: Trace) -> tuple[float, float]:
    """Return mean exit and loss on the remaining rows of the point that the rows certify."""
    point = measure_point(remaining, certify(rows, policy, "drop", level, DELTA))
    return point.mean_exit, 1 - float(point.score or 0) / float(point.full_score or 1)


def as_markdown(results: list[Figures], about: dict[str, object]) -> str:
    """Write a table for each task."""
    parts = [
        "# A certificate with the exit before the first layer: whose rows fit its line?",
        "Mean exit (of 6) where at most the level of the full model's right answers may be lost, at 95 % confidence.\n"
        f"Policy margin, mean of {DRAWS} draws of rows, measured on those not drawn. In brackets the share lost.\n"
        + as_lines(about),
    ]
    reading = RESULTS / "lexical_lines_reading.md"
    parts += [reading.read_text().strip()] if reading.exists() else []
    for task in dict.fromkeys(row.task for row in results):
        lines = [f"## {task}\n", f"| level | rows | {' | '.join(WAYS)} |", f"|---|---|{'---|' * len(WAYS)}"]
        for level, count in dict.fromkeys((row.level, row.rows) for row in results if row.task == task):
            cells = {row.lines: row for row in results if (row.task, row.level, row.rows) == (task, level, count)}
            words = [f"{cells[way].mean_exit:.2f} ({cells[way].lost:.2%})" for way in WAYS]
            lines.append(f"| {level} | {count} | {' | '.join(words)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Compare the ways on the first seed of each task that is trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options, results = parser.parse_args(), []
    for cell in cells(options):
        if cell.seed == 0 and cell.task in NAMES and cell.is_trained():
            results += list(measured(cell))
            print(cell.task, flush=True)
    about = provenance()
    data = {"about": about, "results": [asdict(row) for row in results]}
    (RESULTS / "lexical_lines.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "lexical_lines.md").write_text(as_markdown(results, about))


if __name__ == "__main__":
    main()
