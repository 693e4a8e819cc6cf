"""What is it worth to read only the exits that pay for themselves, on seven tasks?

    python benchmarks/prices.py --data ../shared/data

The default encoder with six exits and a lexical exit (`lexical_models.py`). Every engine is timed with all exits and
with fewer at each batch size (`offramp.measure_costs`), so that the time of any set of exits can be computed. All else
is replay of traces. On one half of the rows that nothing was trained on, points are chosen that lose at most ASKED:
with all exits, without the lexical exit where it does not pay, and with the exits that pay at these prices. The other
half reports, at SPLITS random halves. For MEASURED the graph with all exits and the graph with those that pay then take
turns on some of the reporting half. Folders, prices and results of a task lie under `--runs` and are taken up again.
Writes `benchmarks/results/prices.json` and `prices.md`. Ten minutes on an idle machine where the folders are there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexical_models import TASKS, Cell, new_rows, trace_of
from machine import as_lines, provenance
from offramp.bench.cost_table import measure_costs
from offramp.bench.exit_prices import reading
from offramp.bench.timer import SpeedupRange, time_batches
from offramp.calibration.prepare import PreparedPolicy, prepare_policy
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.evaluation.measure import replay_point
from offramp.inference.export import export
from offramp.inference.load_engine import load_engine
from offramp.model.hub import load_config, load_tokenizer
from offramp.policies.fitting import fit_default_policy
from offramp.types.cost_table import CostTable
from offramp.types.exit_names import layers_text
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.trace import Trace
from speed_models import INT8, Prepared, fit, training_rows

RESULTS = Path(__file__).parent / "results"
ENGINES, SIZES = (INT8, "torch"), (1, 8, 32)
TIMED, ROUNDS = {INT8: 64, "torch": 32}, {INT8: 5, "torch": 3}
ASKED, SPLITS, MOST = 0.01, 4, 1500
"""Share of the score that may be lost; halves a task; rows that choose, at most."""
CURVE = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03)
"""What may be lost with the lexical rule, for its time at the loss that the exits by price deliver."""
MEASURED, ROWS, RACES, MEASURED_SIZES = ("clinc150", "sst2"), 256, 9, (1, 32)
ALL, LEXICAL, PRICE = "all exits", "lexical rule", "by price"


@dataclass(frozen=True)
class Task:
    """A task's folder, and its trace at all exits."""

    prepared: Prepared

    @cached_property
    def trace(self) -> Trace:
        """Return the trace of the rows that choose and report, whose tokens no row of training has."""
        return trace_of(self.prepared.cell, range(7))

    @cached_property
    def texts(self) -> list[Any]:
        """Return their texts."""
        cell = self.prepared.cell
        texts = cell.examples(cell.setting.split).texts
        return [texts[row] for row in new_rows(cell).tolist()]

    def halves(self, split: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the rows that choose, and of those that report."""
        order = torch.randperm(len(self.trace), generator=torch.Generator().manual_seed(split))
        choose, report = order.tensor_split(2)
        return choose[:MOST], report

    def cost(self, engine: str, size: int) -> CostTable:
        """Return an engine's times at a batch size, measured where they are missing."""
        file = self.prepared.runs / f"{self.prepared.folder.name}-{engine}-{size}.json"
        if not file.exists():
            texts = some_of(self.texts, max(TIMED[engine], 4 * size))
            measure_costs(self.prepared.folder, texts, engine, batch_size=size, rounds=ROUNDS[engine]).save(file)
        return CostTable.load(file)


def some_of(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most so many, taken evenly."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def make(prepared: Prepared) -> None:
    """Fit the lexical exit onto the encoder, and export all exits, where that is missing."""
    fit(prepared)
    if not (prepared.folder / "model.int8.onnx").exists():
        export(prepared.folder, int8=True, dataset=training_rows(prepared))


def policies(trace: Trace, cost: CostTable) -> dict[str, PreparedPolicy]:
    """Return the policies of these rows: with all exits, by the rule of the lexical exit, and by price."""
    target = Target(max_drop=ASKED)
    return {
        ALL: PreparedPolicy(*fit_default_policy(trace)),
        LEXICAL: prepare_policy(trace, target=target),
        PRICE: prepare_policy(trace, target=target, cost=cost),
    }


def reported(trace: Trace, point: OperatingPoint, cost: CostTable) -> dict[str, Any]:
    """Return a point's expected milliseconds, the share of the full model's right answers that it loses, its exits."""
    _, answers = replay_point(trace, point)
    layers = point.layers_read(trace.layer_numbers)
    assert trace.labels is not None
    early, full = ((logits.argmax(dim=-1) == trace.labels).sum() for logits in (answers.logits, trace.logits[-1]))
    return {
        "ms": cost.select(layers).mean_ms(answers.exit_layers),
        "lost": 1 - (early / full).item(),
        "exit_layers": list(layers),
    }


def expected(task: Task) -> dict[str, Any]:
    """Return what is expected at every engine and batch size, by "engine, batch size"."""
    results: dict[str, Any] = {}
    for engine in ENGINES:
        for size in SIZES:
            cost = task.cost(engine, size)
            draws: dict[str, list[dict[str, Any]]] = {ALL: [], LEXICAL: [], PRICE: []}
            curve: list[list[dict[str, Any]]] = [[] for _ in CURVE]
            for split in range(SPLITS):
                choose, report = task.halves(split)
                trace, chosen = task.trace.take(report), policies(task.trace.take(choose), cost)
                for name, policy in chosen.items():
                    draws[name].append(reported(trace, policy.calibrate(Target(max_drop=ASKED)), cost))
                for lost, some in zip(CURVE, curve, strict=True):
                    some.append(reported(trace, chosen[LEXICAL].calibrate(Target(max_drop=lost)), cost))
            results[f"{engine}, {size}"] = {"cost": asdict(cost), "draws": draws, "curve": curve}
    return results


def measured(task: Task) -> dict[str, Any]:
    """Return what the graph with the exits that pay gains over the graph with all, by batch size, in one thread."""
    folder, results = task.prepared.folder, {}
    whole = load_engine(folder, INT8, threads=1)
    tokenizer = load_tokenizer(folder)
    for size in MEASURED_SIZES:
        choose, report = task.halves(0)
        chosen = policies(task.trace.take(choose), task.cost(INT8, size))
        texts = [task.texts[row] for row in some_of(report.tolist(), ROWS)]
        rows = encode(tokenizer, texts, token_limit(tokenizer, load_config(folder).backbone))
        batches = [collate([rows[row] for row in some], tokenizer.pad_token_id) for some in length_sorted(rows, size)]
        runs = {}
        for name in (ALL, PRICE):
            point = chosen[name].calibrate(Target(max_drop=ASKED))
            layers = point.layers_read(whole.layers)
            engine = reading(whole, layers)
            assert engine is not None
            runs[name] = partial(engine.answer, point=point)
        times, _ = time_batches(runs, batches, RACES)
        results[str(size)] = {
            "exit_layers": list(layers),
            "ms": {name: 1000 / one.per_second for name, one in times.items()},
            "faster": asdict(SpeedupRange.of(times[ALL], times[PRICE])),
        }
    return results


def mean(draws: Sequence[dict[str, Any]], key: str) -> float:
    """Return the mean of a number over draws."""
    return math.fsum(draw[key] for draw in draws) / len(draws)


def saved(ratios: Sequence[float]) -> float:
    """Return 1 less the geometric mean."""
    return 1 - math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def at_equal_loss(curve: Sequence[Sequence[dict[str, Any]]], lost: float) -> float:
    """Return the time at which the lexical rule loses so much, on a straight line between the points beside it."""
    ends = sorted((mean(draws, "lost"), mean(draws, "ms")) for draws in curve)
    return float(np.interp(lost, *zip(*ends, strict=True)))


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    about = next(iter(results.values()))["about"]
    lines = [
        "# Exits chosen by price",
        f"Expected milliseconds a text, without the tokenizer, at points that lose at most {ASKED:.0%} on the rows that"
        f"\nchose them; mean of {SPLITS} random halves, reported on the other halves. Batches are full at every depth."
        "\n*Lost*: share of the full model's right answers, on the reporting half. *Read*: the exits of the first half,"
        "\nby price. *Saved*: by price against the lexical rule; in brackets against it where it loses as much."
        f"\n{as_lines(about)}",
        "| task | engine, batch | exit / layer | full depth | all exits (lost) | lexical rule (lost) | by price (lost) "
        "| saved | read |\n|---|---|---|---|---|---|---|---|---|",
    ]
    gains: dict[str, list[tuple[float, float]]] = {}
    for task, result in results.items():
        for key, one in result["expected"].items():
            draws, cost = one["draws"], one["cost"]
            ms = {name: mean(draws[name], "ms") for name in draws}
            equal = at_equal_loss(one["curve"], mean(draws[PRICE], "lost"))
            gains.setdefault(key, []).append((ms[PRICE] / ms[LEXICAL], ms[PRICE] / equal))
            cells = " | ".join(f"{ms[name]:.3f} ({mean(draws[name], 'lost'):.2%})" for name in draws)
            read = layers_text(draws[PRICE][0]["exit_layers"])
            exit_ms, layer = cost["exit_ms"][-1], (cost["ms"][-1] - cost["ms"][1]) / 5
            lines[-1] += (
                f"\n| {task} | {key} | {1000 * exit_ms:.0f} / {1000 * layer:.0f} us | {cost['ms'][-1]:.3f} | {cells} "
                f"| {1 - ms[PRICE] / ms[LEXICAL]:.1%} ({1 - ms[PRICE] / equal:.1%}) | {read} |"
            )
    means = [
        f"{key}: {saved(first):.1%} ({saved(second):.1%})"
        for key, (first, second) in ((key, zip(*some, strict=True)) for key, some in gains.items())
    ]
    lines.append(f"Saved, geometric mean of the tasks: {'; '.join(means)}.")
    lines.append(
        "Measured: the int8 graph with all exits against the one with the exits that pay, each at its point, in turn,"
        f"\n{ROWS} texts, one thread; batches get smaller as rows leave. Ratio: median of {RACES} rounds, and range."
        "\n\n| task | batch | exits | all exits, ms | by price, ms | ratio |\n|---|---|---|---|---|---|"
    )
    for task, result in results.items():
        for size, one in result.get("measured", {}).items():
            faster, ms = one["faster"], one["ms"]
            lines[-1] += (
                f"\n| {task} | {size} | {layers_text(one['exit_layers'])} | {ms[ALL]:.3f} | {ms[PRICE]:.3f} "
                f"| {faster['median']:.3f} ({faster['low']:.3f} to {faster['high']:.3f}) |"
            )
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/prices"), help="where folders and prices go")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--only", choices=sorted(TASKS), help="one task")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else TASKS:
        prepared = Prepared(Cell(name, 0, options.data, options.encoders), options.runs)
        if options.only or not prepared.file.exists():
            make(prepared)
            task, about = Task(prepared), provenance()
            result = {"about": about, "expected": expected(task)}
            if name in MEASURED:
                result["measured"] = measured(task)
            prepared.file.write_text(json.dumps(result, indent=1) + "\n")
        print(prepared.folder.name, flush=True)
        files = {task: options.runs / f"{task}-0.json" for task in TASKS}
        results = {task: json.loads(file.read_text()) for task, file in files.items() if file.exists()}
        (RESULTS / "prices.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "prices.md").write_text(page(results))


if __name__ == "__main__":
    main()
