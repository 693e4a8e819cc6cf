"""With how many rows should a call of the graph begin, if some of them leave on the way?

    python benchmarks/full_batches.py --data ../shared/data
    python benchmarks/full_batches.py --only sst2 --encoders runs/lexical --runs runs/speed

Texts of the models of `speed_models.py` at their default points, in int8, from tokens to logits: TEXTS of those that
nothing was trained on (repeated where there are fewer), sorted by length in windows, with one worker and with two. The
graph answers 32, 128, 256 or 512 rows a call. All take turns; figures are medians over rounds of the ratio to 32 rows a
call. Writes `benchmarks/results/full_batches.json` and `.md`. Two minutes an encoder on two idle cores; `--encoder
mpnet` for twelve layers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from machine import as_lines, provenance
from offramp.data.batching import Tokens, encode, token_limit
from offramp.inference.flight import LeftRows, Runner
from offramp.inference.load_engine import load_engine
from offramp.inference.one_call import OneCall
from offramp.inference.pipeline import Pipeline, Steps
from offramp.inference.stream import SteadySource
from offramp.inference.workers import WorkerPool
from offramp.model.hub import load_config, load_tokenizer
from offramp.model.points import load_points
from offramp.types.operating_point import DEFAULT
from speed_models import INT8, Prepared, add_options, all_prepared

RESULTS = Path(__file__).parent / "results"
TEXTS, ROUNDS = {False: 2048, True: 512}, 5
"""Texts by whether the encoder is deep; rounds."""
SIZES = (32, 128, 256, 512)
BASE = "32"


def tokens_of(prepared: Prepared) -> list[Tokens]:
    """Return the tokens of TEXTS texts that nothing was trained on."""
    texts = list(prepared.held_out.texts)
    tokenizer = load_tokenizer(prepared.folder)
    limit = token_limit(tokenizer, load_config(prepared.folder).backbone)
    count = TEXTS[prepared.is_deep]
    repeated = (texts * (count // len(texts) + 1))[:count]
    return encode(tokenizer, repeated, limit)


def answered(rows: Sequence[Tokens], runner: Runner, sizes: Sequence[int], workers: int) -> tuple[float, list[int]]:
    """Return the seconds that an engine takes for rows, and the layers at which they left."""

    def layers(left: LeftRows) -> list[dict[str, Any]]:
        return [{"exit_layer": layer} for layer in left.exit_layers.tolist()]

    steps = Steps(lambda some: (dict(enumerate(some)), {}), runner, sizes, layers)  # type: ignore[arg-type, return-value]
    began = time.perf_counter()
    answers = [answer for some in Pipeline(SteadySource(rows), steps, WorkerPool(workers)).run() for answer in some]  # type: ignore[arg-type]
    return time.perf_counter() - began, [answer["exit_layer"] for answer in answers]


def measure(prepared: Prepared) -> dict[str, Any]:
    """Return texts a second and ratios of a task, by workers and contestant."""
    point = load_points(prepared.folder)[DEFAULT]
    runner = OneCall(load_engine(prepared.folder, INT8, point, threads=1), point)
    contestants = {str(size): (runner, [size]) for size in SIZES}
    rows, figures = tokens_of(prepared), {}
    _, expected = answered(rows, *contestants[BASE], 1)
    for workers in (1, 2):
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(ROUNDS):
            names = list(contestants)
            for name in names[turn:] + names[:turn]:
                taken, left = answered(rows, *contestants[name], workers)
                assert left == expected, name  # the same exits
                times[name].append(taken)
        figures[str(workers)] = {name: summary(len(rows), times[name], times[BASE]) for name in contestants}
    return {
        "point": list(point.layers_read(load_config(prepared.folder).layers)),
        "workers": figures,
    }


def summary(texts: int, seconds: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Return texts a second, and how many times those of the base, with the least and the largest ratio."""
    ratios = [other / one for one, other in zip(seconds, base, strict=True)]
    return {
        "texts_a_second": texts / median(seconds),
        "ratio": median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
    }


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# Rows of a call of the graph", "", as_lines(results["about"]), ""]
    lines += [
        f"{TEXTS[False]} texts a task ({TEXTS[True]} of MPNet-base), int8, from tokens to logits; times the texts a"
        f" second with {BASE} rows a call",
        "",
    ]
    for task, figures in results["tasks"].items():
        lines += [f"## {task}", "", f"Exits at layers {figures['point']}.", ""]
        lines += ["| rows a call | 1 worker | texts/s | 2 workers | texts/s |", "|---|---|---|---|---|"]
        for name in figures["workers"]["1"]:
            cells = []
            for workers in ("1", "2"):
                one = figures["workers"][workers][name]
                cells.append(
                    f"{one['ratio']:.2f} ({one['least']:.2f}-{one['largest']:.2f}) | {one['texts_a_second']:.0f}"
                )
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure the tasks that are asked for; those measured before stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    file = RESULTS / "full_batches.json"
    before = json.loads(file.read_text())["tasks"] if file.exists() else {}
    tasks = {}
    for prepared in all_prepared(options):
        if prepared.cell.task.removeprefix("mpnet-") in ("clinc150", "sst2"):
            tasks[prepared.cell.task] = measure(prepared)
            print(prepared.folder.name, flush=True)
    results = {"about": provenance(), "rounds": ROUNDS, "tasks": before | tasks}
    file.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "full_batches.md").write_text(page(results))


if __name__ == "__main__":
    main()
