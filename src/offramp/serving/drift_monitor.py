"""A bound on how often a point's answers are the full model's, that may be looked at after every row. No I/O.

Of each audited row it is known whether the answers differ. A bettor who holds that they differ more often than a rate
`m` multiplies a capital by `1 + stake (loss - m)`; whatever the stakes, where the rate is at most `m` the capital ever
grows to 1 / delta in at most a share delta of the histories (Ville's inequality). Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 2024, arXiv:2010.09686. Here the capital is spread over stakes and
over the row at which betting begins, so that a change is noticed after any number of rows without one: the parts that
have not begun are cash (a Shiryaev-Roberts sum whose weights add up to 1).

Rates are tested from the lowest up, each at the full delta, and the first that stands ends the bound. So the bound is
wrong only where the lowest rate that holds has fallen, which is one test: the bound holds for all rows at once.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from offramp.data.padding import Array

RATES = np.geomspace(0.001, 0.9, 60)
STAKES = np.array([1.5, 2, 4, 8, 16, 32, 64])
"""A stake is on a rate whose odds are so many times those of `m`: it grows the fastest where that is the rate."""
FALL = 0.2
"""Of the cash, as a power of the rows: near the best for changes after 100 to 100,000 of them."""
MOST_CAPITAL = 1e100
"""What is beyond it is not kept, which keeps the inequality; an alarm takes far less."""
MOST_ROWS = 1 << 24


@final
class DriftMonitor:
    """Watches a rung.

    Attributes:
        level: the rate that its certificate allows, above 0 and below 1.
        delta: the share of histories without a higher rate that raise an alarm, at most.
        rows: audited so far.
        losses: those of them whose answers differ.
    """

    def __init__(self, level: float, delta: float) -> None:
        self.level, self.delta = level, delta
        self.rows = self.losses = 0
        self._rates, self._won, self._lost = _bets(level)
        self._capital = np.zeros_like(self._won)  # (M, S)
        self._passed = np.zeros(len(self._rates), bool)

    def add(self, differs: bool) -> bool:
        """Count an audited row; return whether there is an alarm: the rate is, or was, above the level."""
        begins, cash = _weight(self.rows), _cash(self.rows + 1)
        capital = (self._capital + begins / len(STAKES)) * (self._won if differs else self._lost)
        self._capital = np.minimum(capital, MOST_CAPITAL)
        self._passed |= cash + self._capital.sum(axis=1) >= 1 / self.delta
        self.rows += 1
        self.losses += differs
        return self.alarm

    @property
    def alarm(self) -> bool:
        """Return whether the rate is, or was, above the level: the bound is at most 1 - level."""
        return bool(self._passed[self._rates <= self.level].all())

    @property
    def bound(self) -> float:
        """Return what the agreement was below, at some time, with confidence 1 - delta; 1 = nothing is known."""
        count = int(np.argmin(self._passed)) if not self._passed.all() else len(self._passed)
        return 1.0 - float(self._rates[count - 1]) if count else 1.0


def rows_to_notice(level: float, delta: float, rate: float, before: int = 0, chance: float = 0.5) -> int | None:
    """Return after how many rows a change is noticed with at least this chance, whatever the rows before it were.

    It counts the part of the capital alone that begins to bet at the change, and the stake that suits best, so the rows
    that it takes are fewer.

    Args:
        level: as of `DriftMonitor`.
        delta: as of `DriftMonitor`.
        rate: at which answers differ from then on.
        before: rows without a change.
        chance: above 0, below 1.

    Returns:
        None where the rate is too near to the level, or below it: no stake grows.
    """
    rates, won, lost = _bets(level)
    gain, loss = np.log(won[rates <= level]), np.log(lost[rates <= level])  # (M, S)
    needed = math.log(len(STAKES) / (delta * _weight(before)))
    if (rate * gain + (1 - rate) * loss).max(axis=1).min() <= 0:
        return None

    def noticed(rows: int) -> bool:
        differ = np.ceil((needed - rows * loss) / (gain - loss))  # (M, S): rows that must differ
        return _chance_of(int(differ.min(axis=1).max()), rows, rate) >= chance

    below, above = 0, 1
    while not noticed(above):
        below, above = above, 2 * above
        if above > MOST_ROWS:
            return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if noticed(middle) else (middle, above)
    return above


def _bets(level: float) -> tuple[Array, Array, Array]:
    """Return the rates (M,), rising, and what a row that differs and one that does not make of a capital, (M, S)."""
    rates = np.unique(np.append(RATES, level))
    odds = (rates / (1 - rates))[:, None] * STAKES
    others = odds / (1 + odds)
    return rates, others / rates[:, None], (1 - others) / (1 - rates[:, None])


def _cash(rows: int) -> float:
    """Return the share of the capital that has not begun to bet after so many rows."""
    return float((rows + 1) ** -FALL)


def _weight(row: int) -> float:
    """Return the share of the capital that begins to bet with a row, counted from 0; all of them add up to 1."""
    return -_cash(row) * math.expm1(-FALL * math.log1p(1 / (row + 1)))


def _chance_of(least: int, rows: int, rate: float) -> float:
    """Return the chance that at least so many of the rows differ, where each does with chance `rate`."""
    if least > rows:
        return 0.0
    factorials: Any = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, rows + 1)))))
    counts = np.arange(max(least, 0), rows + 1)
    ways = factorials[rows] - factorials[counts] - factorials[rows - counts]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = ways + counts * np.log(rate) + np.where(counts == rows, 0.0, (rows - counts) * np.log1p(-rate))
    return float(np.exp(logs).sum())
