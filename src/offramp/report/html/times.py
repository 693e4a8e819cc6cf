"""Expected and measured time at a point, in words and as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.types.operating_point import rows_text
from offramp.types.point_times import PointTimes, Spread

FULL, AT_POINT = "full depth", "at the point"


@dataclass(frozen=True)
class TimeRow:
    """One depth, in milliseconds a text.

    Attributes:
        depth: in words.
        expected: by the cost table.
        measured: from tokens to answers.
        ratio: of measured to expected.
        from_text: from texts to answers, in one call of a predictor; None where it was not measured.
    """

    depth: str
    expected: float
    measured: Spread
    ratio: Spread
    from_text: Spread | None


def time_rows(times: PointTimes) -> tuple[TimeRow, ...]:
    """Return a row for full depth and one for the point."""
    depths = (
        (FULL, times.expected_full, times.full, None),
        (AT_POINT, times.expected, times.batches, Spread.of(times.call)),
    )
    return tuple(
        TimeRow(depth, expected, Spread.of(measured), Spread.of(measured, over=expected), from_text)
        for depth, expected, measured, from_text in depths
    )


def gap_text(times: PointTimes) -> str:
    """Return in words how far a run was from what was expected of it, and what that can come from."""
    full, point = time_rows(times)
    ratio, call = point.ratio, Spread.of(times.call)
    rest = (
        "lengths: the table has one time for a layer, that of texts of mean length, and longer texts may leave later"
        if times.batch_size == 1
        else "batches that get smaller as rows leave: a layer then takes more a row. The table prices the cut alone"
    )
    texts = rows_text(times.texts).replace("row", "text")
    return (
        f"{texts}, {times.batch_size} at once, which leave after layer {times.mean_exit:.2f} on average, took "
        f"{ratio.median:.2f} times what was expected ({ratio.low:.2f} to {ratio.high:.2f}). At full depth, where no batch"
        f" is cut, it was {full.ratio.median:.2f} times: that is the machine since the table was measured, and the "
        f"policy's own steps. The rest can come from {rest}. From text to answer it is {call.median:.3g} ms, "
        f"{Spread.of(times.tokenizer).median:.2g} ms of them in the tokenizer."
    )
