"""A benchmark as text: tables, and a sentence that concludes whether early exit pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from offramp.bench.cascade import cascade_name
from offramp.bench.compare import BenchmarkResult, BenchmarkRow
from offramp.bench.timer import SpeedupRange
from offramp.report.tables import table

HEAD = (
    *("engine", "contestant", "threads x workers", "score", "mean exit", "p50, ms", "p99, ms", "texts a second"),
    *("against the best", "speed-up", "ceiling", "share"),
)


def benchmark_text(result: BenchmarkResult) -> str:
    """Write a table for each batch size, then the conclusion."""
    scored = "no labels" if result.metric is None else f"score: {result.metric}"
    parts = [
        f"{result.rows} texts, from text to answer; median of {result.rounds} rounds (lowest-highest); "
        f"{result.threads} cores; {scored}\n"
        "p50, p99: of a request of so many texts alone; against the best: speed over that of the fastest full-depth\n"
        "model in any engine; speed-up: over the fastest in the same engine; ceiling: what the layers saved allow,\n"
        "with the tokenizer and the lexical exit; share: of the ceiling that was reached"
    ]
    for size in dict.fromkeys(row.batch_size for row in result.results):
        rows = [_row(row) for row in result.results if row.batch_size == size]
        parts.append(f"batch size {size}\n{table(HEAD, rows)}")
    return "\n\n".join([*parts, conclusion(result)])


def ratio_text(ratio: SpeedupRange) -> str:
    """Format median and range, such as "1.52 (1.48-1.60)"."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def conclusion(result: BenchmarkResult) -> str:
    """Conclude in a sentence whether early exit pays, where most and by how much, and what beats it at its score.

    It pays where it was faster than the fastest full-depth model in every round. A contestant without early exit that
    is faster than an operating point at the same batch size and scores as high is named.
    """
    early = [row for row in result.results if row.early]
    if not early:
        return "There is no operating point that these engines can run: `offramp calibrate` makes one."
    lost = [row for row in early if row.against_best.low <= 1]
    top = max([row for row in early if row not in lost] or early, key=lambda row: row.against_best.median)
    baseline = max(
        (row for row in result.results if row.kind == "full-depth" and row.batch_size == top.batch_size),
        key=lambda row: row.texts_per_second,
    )
    speed = f"{ratio_text(top.against_best)} times as fast as the fastest full-depth model, {_named(baseline)}"
    setting = f"at batch size {top.batch_size} with {top.engine} at the point {top.name!r}"
    scores = (
        ""
        if top.score is None or baseline.score is None
        else f", at {result.metric} {top.score:.4f} against {baseline.score:.4f}"
    )
    beaten = _beaten(result, early)
    if top in lost:
        return f"Early exit does not pay here: at its best, {setting}, it is {speed}{scores}{beaten}."
    others = f"it does not pay with {_settings(lost, early)}" if lost else "it pays in all settings measured"
    return f"Early exit pays here, most {setting}: {speed}{scores}; {others}{beaten}."


def _named(row: BenchmarkRow) -> str:
    """Return a full-depth model's name; of an early-exit engine at full depth, the engine's."""
    return row.name if row.rival else f"{row.engine} at full depth"


def _beaten(result: BenchmarkResult, early: Sequence[BenchmarkRow]) -> str:
    """Name the contestants that beat early exit at its own score, by batch size; empty where none does.

    Without labels a cascade counts, which answers as often like the full model as the point.
    """
    parts = []
    for size in dict.fromkeys(row.batch_size for row in early):
        points = {
            row.name: row for row in sorted(early, key=lambda row: row.texts_per_second) if row.batch_size == size
        }
        others = [row for row in result.results if row.batch_size == size and row.kind in ("cut", "lexical", "cascade")]
        for name, point in points.items():
            faster = [row for row in others if _beats(row, point)]
            if faster:
                best = max(faster, key=lambda row: row.texts_per_second)
                times = best.texts_per_second / point.texts_per_second
                parts.append(f"{best.name} is {times:.2f} times as fast as {name!r} at batch size {size}")
    return f"; at the same score {', '.join(parts)}" if parts else ""


def _beats(row: BenchmarkRow, point: BenchmarkRow) -> bool:
    faster = row.texts_per_second > point.texts_per_second
    if row.score is None or point.score is None:
        return faster and row.name == cascade_name(point.name)
    return faster and row.score >= point.score


def _settings(lost: Sequence[BenchmarkRow], early: Sequence[BenchmarkRow]) -> str:
    """Name settings in the shortest form: "torch", "onnx at batch size 8 (default, fast)"."""
    settings = []
    for engine in dict.fromkeys(row.engine for row in lost):
        own = [row for row in lost if row.engine == engine]
        if len(own) == sum(row.engine == engine for row in early):
            settings.append(engine)
            continue
        for size in dict.fromkeys(row.batch_size for row in own):
            names = ", ".join(row.name for row in own if row.batch_size == size)
            settings.append(f"{engine} at batch size {size} ({names})")
    return ", ".join(settings)


def _row(row: BenchmarkRow) -> list[str]:
    return [
        row.engine,
        row.name,
        f"{row.threads} x {row.workers}",
        "" if row.score is None else f"{row.score:.4f}",
        f"{row.mean_exit:.2f}",
        f"{row.p50_ms:.3f}",
        f"{row.p99_ms:.3f}",
        f"{row.texts_per_second:.0f}",
        ratio_text(row.against_best),
        ratio_text(row.speedup),
        "" if row.ceiling is None else f"{row.ceiling:.2f}",
        "" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.2f}",
    ]


def to_json(result: BenchmarkResult) -> dict[str, Any]:
    """Return the result and its conclusion as plain data; `per_second` is `texts_per_second` by its earlier name."""
    results = [{**asdict(row), "per_second": row.texts_per_second} for row in result.results]
    return {**asdict(result), "results": results, "verdict": conclusion(result)}
