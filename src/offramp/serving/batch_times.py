"""How long batches take, learned from those that have run. No I/O, no clock.

A batch of T tokens, padding included, takes `a + b f T` seconds; f is the mean factor of its rows' rungs, which begins
as the rung's cost. `a` and `b` are a regression on the latest batches, whatever their rungs; so what slows them all
down, and is over, is learned and forgotten on any rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

RATE, FACTOR_RATE = 0.03, 0.03
"""The weight of the last batch, once there are many."""
PRIOR = 0.1
"""How much varied batches must be, as a squared share of their mean, before a batch's own time `a` is trusted."""
OUTLIER = 4.0
"""A batch counts as at most this many times the expected seconds: the machine may have stood still."""
MOST_WRONG = 2.0
"""A factor is at most this many times its rung's cost, and at least the reciprocal share of it."""


@final
class BatchTimes:
    """Predicts the seconds of batches."""

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs, self._factors = costs, list(costs)
        self._batches = 0
        self._x = self._s = self._xx = self._xs = 0.0  # means, variance, covariance of x = f T and of the seconds
        self._row_tokens = 0.0

    def add(self, rungs: Sequence[int], tokens: int, seconds: float) -> None:
        """Learn from a batch: the rungs of its rows, its tokens with padding, and the seconds that it took."""
        rung = rungs[0] if len(set(rungs)) == 1 else None
        x, expected = self._factor(rungs) * tokens, self._seconds(self._factor(rungs) * tokens)
        if self._batches * RATE > 1 and expected > 0:
            seconds = min(seconds, OUTLIER * expected)
            if rung is not None:
                self._correct(rung, seconds / expected)
        rate = max(1 / (self._batches + 1), RATE)
        dx, ds = x - self._x, seconds - self._s
        self._x, self._s = self._x + rate * dx, self._s + rate * ds
        self._xx = (1 - rate) * (self._xx + rate * dx * dx)
        self._xs = (1 - rate) * (self._xs + rate * dx * ds)
        self._row_tokens += rate * (tokens / len(rungs) - self._row_tokens)
        self._batches += 1

    def seconds(self, rung: int, tokens: int) -> float:
        """Return the expected seconds of a batch of so many tokens at a rung; 0.0 = nothing is known."""
        return self._seconds(self._factors[rung] * tokens)

    def full_depth(self, rungs: Sequence[int], tokens: int) -> float:
        """Return the seconds that the rows of a batch would take in a large batch at full depth."""
        cost = sum(self._costs[rung] for rung in rungs) / len(rungs)
        return self._slope * self._factor(rungs) * tokens / cost

    def row_seconds(self, rung: int) -> float:
        """Return the expected seconds of a row in a large batch."""
        return self._slope * self._factors[rung] * self._row_tokens

    def _factor(self, rungs: Sequence[int]) -> float:
        return sum(self._factors[rung] for rung in rungs) / len(rungs)

    def _seconds(self, x: float) -> float:
        return max(self._s + self._slope * (x - self._x), 0.0)

    @property
    def _slope(self) -> float:
        """Return b: between 0 and what it is where a batch has no time of its own."""
        if not self._x:
            return 0.0
        prior = PRIOR * self._x * self._x
        slope = (self._xs + prior * self._s / self._x) / (self._xx + prior)
        return min(max(slope, 0.0), self._s / self._x)

    def _correct(self, rung: int, ratio: float) -> None:
        factor = self._factors[rung] * float(min(max(ratio, 0.5), 2.0) ** FACTOR_RATE)
        cost = self._costs[rung]
        self._factors[rung] = min(max(factor, cost / MOST_WRONG), cost * MOST_WRONG)
