"""Does a run at the default point take the milliseconds that the cost table expects of it?

    python benchmarks/expected_ms.py --data ../shared/data
    python benchmarks/expected_ms.py --runs runs/speed --encoders runs/lexical --engine onnx-int8 --only sst2

Models of `speed_models.py`, CLINC150 and SST-2, MiniLM and MPNet-base; texts of the rows that chose nothing, evenly
from the shortest to the longest. For each engine and batch size the table of all exits is measured, then texts at the
default point: one batch after the other from tokens to answers (`offramp.bench.point_time`), and in one call of the
predictor from texts. "Batches as they were": what the tables of the batch sizes expect if each layer takes the time of
the rows that were left of its batch, on straight lines between the sizes; where it comes nearer than the table alone,
smaller batches are the reason of the gap. Cells that are in the file are not measured again. Writes
`benchmarks/results/expected_ms.json` and `.md`. Ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lexical_models import MPNET, Cell
from machine import as_lines, provenance
from offramp.bench.cost_table import measure_costs
from offramp.bench.point_time import time_point
from offramp.cli.report import evenly_by_length
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.inference.load_engine import load_engine
from offramp.inference.predictor import Predictor
from offramp.model.hub import load_tokenizer
from offramp.model.points import load_points
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import DEFAULT
from offramp.types.point_times import PointTimes, Spread
from resumable import load_state, save_state
from speed_models import INT8, Prepared

RESULTS = Path(__file__).parent / "results"
TASKS = ("clinc150", "sst2", f"{MPNET}clinc150", f"{MPNET}sst2")
ENGINES, SIZES = (INT8, "torch"), (1, 8, 32)
TEXTS, TABLE_ROUNDS, ROUNDS = {False: 128, True: 32}, 3, 5
"""Texts by whether the encoder is deep; rounds of the table and of the point."""


def measure(prepared: Prepared, engine: str, size: int) -> dict[str, Any]:
    """Return the cost table of all exits, the times at the point, and the layers at which each batch's rows leave."""
    point = load_points(prepared.folder)[DEFAULT]
    runner = load_engine(prepared.folder, engine, point)
    tokenizer = load_tokenizer(prepared.folder)
    held_out = [prepared.held_out.texts[row] for row in prepared.reporting().tolist()]
    texts = evenly_by_length(held_out, TEXTS[prepared.is_deep])
    rows = encode(tokenizer, texts, token_limit(tokenizer, runner.config.backbone))
    table = measure_costs(runner, rows, batch_size=size, rounds=TABLE_ROUNDS, workers=1)
    times = time_point(Predictor(runner, tokenizer, point), texts, table, rounds=ROUNDS)
    leaving = [
        runner.answer(collate([rows[number] for number in numbers], runner.config.pad_token_id), point).exit_layers
        for numbers in length_sorted(rows, size)
    ]
    read = point.layers_read(runner.layers)
    return {
        "table": asdict(table),
        "read": list(read),
        "times": asdict(times),
        "leaving": [exits.tolist() for exits in leaving],
    }


def as_they_were(cells: Mapping[int, Mapping[str, Any]], size: int) -> float:
    """Return the milliseconds a text if each layer takes the time of the rows that were left of its batch.

    Args:
        cells: of one model and engine, by batch size.
        size: of the run.
    """
    read = cells[size]["read"]
    tables = {rows: CostTable(**cell["table"]).select(read) for rows, cell in sorted(cells.items())}
    total, texts = 0.0, 0
    for exits in cells[size]["leaving"]:
        before = dict.fromkeys(tables, 0.0)
        for exit, layer in enumerate(read):
            left = sum(other >= layer for other in exits)
            steps = {rows: table.ms[exit] - before[rows] for rows, table in tables.items()}
            before = {rows: table.ms[exit] for rows, table in tables.items()}
            total += batch_ms(steps, left)
        texts += len(exits)
    return total / texts


def batch_ms(steps: Mapping[int, float], rows: int) -> float:
    """Return the milliseconds of a batch of some rows from those a row at some sizes: lines between the batches'."""
    if not rows:
        return 0.0
    sizes = sorted(steps)
    above = next((size for size in sizes if size >= rows), sizes[-1])
    below = max((size for size in sizes if size <= rows), default=sizes[0])
    low, high = below * steps[below], above * steps[above]
    return low if above == below else low + (high - low) * (rows - below) / (above - below)


def figures(cells: Mapping[int, Mapping[str, Any]], size: int) -> dict[str, Any]:
    """Return what the page shows of a cell."""
    times = PointTimes(**cells[size]["times"])
    refined = as_they_were(cells, size) if len(cells) == len(SIZES) else None
    return {
        "mean_exit": times.mean_exit,
        "expected_ms": times.expected,
        "measured_ms": Spread.of(times.batches).median,
        "ratio": asdict(Spread.of(times.batches, over=times.expected)),
        "full_depth_ratio": asdict(Spread.of(times.full, over=times.expected_full)),
        "rows_a_layer": times.rows_a_layer or 0.0,
        "tokens_a_layer": times.tokens_a_layer or 0.0,
        "tokens": times.tokens,
        "as_they_were_ms": refined,
        "from_text_ms": Spread.of(times.call).median,
        "tokenizer_ms": Spread.of(times.tokenizer).median,
    }


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        *("# Expected and measured milliseconds at the default point", "", as_lines(results["about"]), ""),
        f"{TEXTS[False]} texts ({TEXTS[True]} of MPNet-base), one batch after the other; medians of {ROUNDS} rounds"
        " with the least and the largest. Expected: by the table of all exits, from the layers at which these texts"
        " leave. Rows and tokens a layer: of a batch and of the texts on which a layer ran, tokens beside those of the"
        " table. Batches as they were: what is expected if a layer takes the time of the rows that are left of its"
        " batch.",
        "",
        "| model | engine | batch | mean exit | expected, ms | measured, ms | ratio | ratio at full depth "
        "| rows a layer | tokens a layer | batches as they were, ms | from text, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results["figures"].items():
        ratios = [_spread(one[key]) for key in ("ratio", "full_depth_ratio")]
        refined = one["as_they_were_ms"]
        cells = [*name.split(" "), f"{one['mean_exit']:.2f}", f"{one['expected_ms']:.3f}", f"{one['measured_ms']:.3f}"]
        cells += [*ratios, f"{one['rows_a_layer']:.1f}", f"{one['tokens_a_layer']:.1f} of {one['tokens']:.1f}"]
        cells += ["" if refined is None else f"{refined:.3f}"]
        cells.append(f"{one['from_text_ms']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def main() -> None:
    """Measure the cells that are missing, and write the page of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/speed"), help="the folders of speed_models.py")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--only", choices=TASKS, help="one task")
    parser.add_argument("--engine", choices=ENGINES, help="one engine")
    options = parser.parse_args()
    file = RESULTS / "expected_ms.json"
    state = load_state(file, {"about": provenance(), "cells": {}})
    for task in [options.only] if options.only else TASKS:
        prepared = Prepared(Cell(task, 0, options.data, options.encoders), options.runs)
        for engine in [options.engine] if options.engine else ENGINES:
            cells = state["cells"].setdefault(f"{prepared.folder.name} {engine}", {})
            for size in (size for size in SIZES if str(size) not in cells):
                threads = torch.get_num_threads()
                cells[str(size)] = measure(prepared, engine, size)
                torch.set_num_threads(threads)
                state["about"] = provenance()
                write(file, state)
                print(prepared.folder.name, engine, size, flush=True)
    write(file, state)


def write(file: Path, state: dict[str, Any]) -> None:
    """Write the cells with their figures, and the page."""
    state["figures"] = {
        f"{name} {size}": figures({int(rows): cell for rows, cell in cells.items()}, int(size))
        for name, cells in state["cells"].items()
        for size in cells
    }
    save_state(file, state)
    file.with_suffix(".md").write_text(page(state))


if __name__ == "__main__":
    main()
