"""What a contest with full depth says: tables, and one sentence that hides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.bench.compare import BenchmarkResult, BenchmarkRow
from offramp.bench.timer import SpeedupRange
from offramp.report.tables import table

HEAD = (
    *("engine", "point", "score", "mean exit", "p50, ms", "p99, ms", "a second"),
    *("speed-up", "ideal", "efficiency", "against the best"),
)


def contest_text(told: BenchmarkResult) -> str:
    """A table for each batch size, then the verdict."""
    scored = "no labels" if told.metric is None else f"score: {told.metric}"
    parts = [
        f"{told.rows} texts, median of {told.rounds} rounds (lowest-highest), {told.threads} threads; {scored}\n"
        "speed-up: over the plain model in the same engine; ideal: what the layers saved allow; efficiency: the share\n"
        "of it that was reached; against the best: speed over that of the fastest full-depth model in any engine"
    ]
    for size in dict.fromkeys(each.batch_size for each in told.results):
        rows = [_row(each) for each in told.results if each.batch_size == size]
        parts.append(f"batch size {size}\n{table(HEAD, rows)}")
    return "\n\n".join([*parts, conclusion(told)])


def ratio_text(ratio: SpeedupRange) -> str:
    """Such as "1.52 (1.48-1.60)"."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def conclusion(told: BenchmarkResult) -> str:
    """Whether early exit pays here, where most and how much, and where not.

    It pays where it was faster than the fastest full-depth rival in every round.
    """
    early = [each for each in told.results if each.early]
    if not early:
        return "There is no operating point that these engines can run: `offramp calibrate` makes one."
    lost = [each for each in early if each.against_best.low <= 1]
    top = max([each for each in early if each not in lost] or early, key=lambda each: each.against_best.median)
    rival = min(
        (each for each in told.results if each.rival and each.batch_size == top.batch_size),
        key=lambda each: -each.per_second,
    )
    speed = f"{ratio_text(top.against_best)} times as fast as the fastest full-depth model, {rival.name}"
    where = f"at batch size {top.batch_size} with {top.engine} at the point {top.name!r}"
    kept = (
        ""
        if top.score is None or rival.score is None
        else f", at {told.metric} {top.score:.4f} against {rival.score:.4f}"
    )
    if top in lost:
        return f"Early exit does not pay here: at its best, {where}, it is {speed}{kept}."
    rest = f"it does not pay with {_places(lost, early)}" if lost else "it pays in all settings measured"
    return f"Early exit pays here, most {where}: {speed}{kept}; {rest}."


def _places(lost: Sequence[BenchmarkRow], early: Sequence[BenchmarkRow]) -> str:
    """Settings, shortest first: "torch", "onnx at batch size 8 (default, fast)"."""
    found = []
    for engine in dict.fromkeys(each.engine for each in lost):
        own = [each for each in lost if each.engine == engine]
        if len(own) == sum(each.engine == engine for each in early):
            found.append(engine)
            continue
        for size in dict.fromkeys(each.batch_size for each in own):
            names = ", ".join(each.name for each in own if each.batch_size == size)
            found.append(f"{engine} at batch size {size} ({names})")
    return ", ".join(found)


def _row(each: BenchmarkRow) -> list[str]:
    return [
        "-" if each.rival else each.engine,
        each.name,
        "" if each.score is None else f"{each.score:.4f}",
        f"{each.mean_exit:.2f}",
        f"{each.p50_ms:.3f}",
        f"{each.p99_ms:.3f}",
        f"{each.per_second:.0f}",
        ratio_text(each.speedup),
        "" if each.ideal is None else f"{each.ideal:.2f}",
        "" if each.efficiency is None else f"{each.efficiency:.2f}",
        ratio_text(each.against_best),
    ]
