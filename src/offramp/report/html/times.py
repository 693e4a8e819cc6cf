"""Expected and measured time at a point, in words and as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.types.operating_point import rows_text
from offramp.types.point_times import PointTimes, Spread


@dataclass(frozen=True)
class TimeRow:
    """One way to run the texts, in milliseconds a text.

    Attributes:
        run: in words.
        expected: by the cost table.
        measured: over the rounds.
        ratio: of measured to expected.
    """

    run: str
    expected: float
    measured: Spread
    ratio: Spread


def time_rows(times: PointTimes) -> tuple[TimeRow, ...]:
    """Return a row for full depth, one for the point, and one for the point from text to answer."""
    runs = (
        ("full depth", times.expected_full, times.full),
        ("at the point", times.expected, times.batches),
        ("from text", times.expected, times.call),
    )
    return tuple(
        TimeRow(run, expected, Spread.of(measured), Spread.of(measured, over=expected))
        for run, expected, measured in runs
    )


def gap_text(times: PointTimes) -> str:
    """Return in words how far a run was from what was expected of it, and what that can come from."""
    full, point, _ = time_rows(times)
    texts, low, high = rows_text(times.texts).replace("row", "text"), point.ratio.low, point.ratio.high
    return (
        f"{texts}, {times.batch_size} at once, which leave after layer {times.mean_exit:.2f} on average, took "
        f"{point.ratio.median:.2f} times what was expected ({low:.2f} to {high:.2f}). At full depth, where no batch is "
        f"cut, it was {full.ratio.median:.2f} times: that is the machine since the table was measured, and the "
        f"policy's own steps.{_work_text(times)} Of the time from text to answer "
        f"{Spread.of(times.tokenizer).median:.2g} ms are the tokenizer's."
    )


def _work_text(times: PointTimes) -> str:
    """Return on what layers ran at the point, beside what the table knows; "" where none ran."""
    if times.rows_a_layer is None or times.tokens_a_layer is None or times.tokens is None:
        return ""
    lengths = f"texts of {times.tokens_a_layer:.1f} tokens on average, the table's have {times.tokens:.1f}"
    why = "a longer text takes more, a shorter one less"
    if times.batch_size > 1:
        lengths = f"{times.rows_a_layer:.1f} rows of a batch and {lengths}"
        why = "in a smaller batch a layer takes more a row, and a longer text takes more"
    return f" The rest is what the table does not know: at the point a layer ran on {lengths}; {why}."
