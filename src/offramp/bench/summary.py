"""A benchmark as text: tables, and a sentence that concludes whether early exit pays."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.bench.compare import BenchmarkResult, BenchmarkRow
from offramp.bench.timer import SpeedupRange
from offramp.report.tables import table

HEAD = (
    *("engine", "point", "score", "mean exit", "p50, ms", "p99, ms", "a second"),
    *("speed-up", "ideal", "efficiency", "against the best"),
)


def benchmark_text(result: BenchmarkResult) -> str:
    """Write a table for each batch size, then the conclusion."""
    scored = "no labels" if result.metric is None else f"score: {result.metric}"
    parts = [
        f"{result.rows} texts, median of {result.rounds} rounds (lowest-highest), {result.threads} threads; {scored}\n"
        "speed-up: over the plain model in the same engine; ideal: what the layers saved allow; efficiency: the share\n"
        "of it that was reached; against the best: speed over that of the fastest full-depth model in any engine"
    ]
    for size in dict.fromkeys(row.batch_size for row in result.results):
        rows = [_row(row) for row in result.results if row.batch_size == size]
        parts.append(f"batch size {size}\n{table(HEAD, rows)}")
    return "\n\n".join([*parts, conclusion(result)])


def ratio_text(ratio: SpeedupRange) -> str:
    """Format median and range, such as "1.52 (1.48-1.60)"."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def conclusion(result: BenchmarkResult) -> str:
    """Conclude whether early exit pays, at which setting most and by how much, and at which it does not.

    It pays where it was faster than the fastest full-depth baseline in every round.
    """
    early = [row for row in result.results if row.early]
    if not early:
        return "There is no operating point that these engines can run: `offramp calibrate` makes one."
    lost = [row for row in early if row.against_best.low <= 1]
    top = max([row for row in early if row not in lost] or early, key=lambda row: row.against_best.median)
    baseline = min(
        (row for row in result.results if row.rival and row.batch_size == top.batch_size),
        key=lambda row: -row.per_second,
    )
    speed = f"{ratio_text(top.against_best)} times as fast as the fastest full-depth model, {baseline.name}"
    setting = f"at batch size {top.batch_size} with {top.engine} at the point {top.name!r}"
    scores = (
        ""
        if top.score is None or baseline.score is None
        else f", at {result.metric} {top.score:.4f} against {baseline.score:.4f}"
    )
    if top in lost:
        return f"Early exit does not pay here: at its best, {setting}, it is {speed}{scores}."
    others = f"it does not pay with {_settings(lost, early)}" if lost else "it pays in all settings measured"
    return f"Early exit pays here, most {setting}: {speed}{scores}; {others}."


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
        "-" if row.rival else row.engine,
        row.name,
        "" if row.score is None else f"{row.score:.4f}",
        f"{row.mean_exit:.2f}",
        f"{row.p50_ms:.3f}",
        f"{row.p99_ms:.3f}",
        f"{row.per_second:.0f}",
        ratio_text(row.speedup),
        "" if row.ideal is None else f"{row.ideal:.2f}",
        "" if row.efficiency is None else f"{row.efficiency:.2f}",
        ratio_text(row.against_best),
    ]
