"""A bound on how often a point's answers are the full model's, that may be looked at after every row. No I/O.

Of each audited row it is known whether the answers differ. A bettor who holds that they differ more often than a rate
`m` multiplies a capital by `1 + stake (loss - m)`; whatever the stakes, where the rate is at most `m` the capital ever
grows to 1 / delta in at most a share delta of the histories (Ville's inequality). Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 2024, arXiv:2010.09686. Here the capital is spread over stakes and
over the row at which betting begins, so that a change is noticed after any number of rows without one: the parts that
have not begun are cash (a Shiryaev-Roberts sum whose weights add up to 1).
"""

from __future__ import annotations

import math
from typing import final

import numpy as np

RATES = np.geomspace(0.001, 0.9, 60)
STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
"""A stake is on a rate this share of the way from m to 1."""


@final
class DriftMonitor:
    """Watches a rung.

    Attributes:
        level: the rate that its certificate allows.
        delta: the share of histories without a higher rate that raise an alarm, at most.
        rows: audited so far.
        losses: those of them whose answers differ.
    """

    def __init__(self, level: float, delta: float) -> None:
        self.level, self.delta = level, delta
        self.rows = self.losses = 0
        self._rates = np.unique(np.append(RATES, level))  # (M,)
        others = self._rates[:, None] + (1 - self._rates[:, None]) * STAKES  # (M, S)
        self._won = others / self._rates[:, None]
        self._lost = (1 - others) / (1 - self._rates[:, None])
        self._capital = np.zeros_like(others)
        self._cash = 1.0
        self._passed = np.zeros(len(self._rates), bool)

    def add(self, differs: bool) -> bool:
        """Count an audited row; return whether there is an alarm: the rate is, or was, above the level."""
        begins = 1 / math.log2(self.rows + 2) - 1 / math.log2(self.rows + 3)
        self._cash -= begins
        self._capital = (self._capital + begins / len(STAKES)) * (self._won if differs else self._lost)
        self._passed |= self._cash + self._capital.sum(axis=1) >= 1 / self.delta
        self.rows += 1
        self.losses += differs
        return self.alarm

    @property
    def alarm(self) -> bool:
        """Return whether the rate is, or was, above the level."""
        return bool(self._passed[self._rates == self.level][0])

    @property
    def bound(self) -> float:
        """Return what the agreement was below, at some time, with confidence 1 - delta; 1 = nothing is known."""
        count = int(np.argmin(self._passed)) if not self._passed.all() else len(self._passed)
        return 1.0 - float(self._rates[count - 1]) if count else 1.0
