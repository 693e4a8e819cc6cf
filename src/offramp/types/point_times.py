"""Expected and measured time of texts at an operating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PointTimes:
    """Expected and measured milliseconds a text, of the same texts on one machine.

    Attributes:
        texts: their number.
        batch_size: texts at once.
        mean_exit: mean layer at which they leave.
        rows_a_layer: mean rows of a batch on which a layer ran at the point; None where no layer ran.
        tokens_a_layer: mean tokens of the texts on which a layer ran, likewise.
        tokens: mean tokens of the texts of the table.
        expected: at the point, by a cost table, from the layers at which they leave.
        expected_full: at full depth, by the same table.
        full: (R,) measured at full depth, from tokens to answers, batch by batch.
        batches: (R,) measured at the point, likewise: rows that leave make their batch smaller, and none fills it up.
        call: (R,) measured at the point, from texts to answers in one call of a predictor, which may fill batches up.
        tokenizer: (R,) measured, of the tokenizer alone, which is a part of `call`.
    """

    texts: int
    batch_size: int
    mean_exit: float
    rows_a_layer: float | None
    tokens_a_layer: float | None
    tokens: float | None
    expected: float
    expected_full: float
    full: Sequence[float]
    batches: Sequence[float]
    call: Sequence[float]
    tokenizer: Sequence[float]


@dataclass(frozen=True)
class Spread:
    """The median of rounds, the least and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], over: float = 1.0) -> Spread:
        """Return the spread of values, each divided by `over`."""
        order = sorted(value / over for value in values)
        middle = len(order) // 2
        return cls((order[middle] + order[-middle - 1]) / 2, order[0], order[-1])
