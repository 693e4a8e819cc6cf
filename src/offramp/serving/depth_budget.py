"""A bound on the mean depth of rows, against texts that are made to leave late. No I/O, no clock.

Hong et al., "A Panda? No, It's a Sloth: Slowdown Attacks on Adaptive Multi-Exit Neural Network Inference", ICLR 2021,
arXiv:2010.02432. While the mean of WINDOW rows is above the budget, a server steps to looser rungs, where such texts
leave earlier too. A row's depth varies by at most half the layers L, so the mean of independent rows by L / 64: only
one window in 700 is three times that, L / 20, above what is to be expected. After each step a new window begins.

Back where the depth there, by the rungs' costs, would be at most RETURN_SHARE of the budget; a rung that had to be left
again needs twice as many windows each time, at most MOST_WINDOWS.
"""

from __future__ import annotations

from typing import final

from offramp.serving.ladder import Ladder

WINDOW, RETURN_SHARE, MOST_WINDOWS = 1024, 0.9, 64


@final
class DepthBudget:
    """Holds the rung that the budget calls for.

    Attributes:
        rung: its number.
        layers: the budget, a row.
        mean: layers of a row in the last whole window; 0.0 = there was none.
    """

    def __init__(self, ladder: Ladder, layers: float) -> None:
        self.rung, self.layers, self.mean = ladder.nominal, layers, 0.0
        self._ladder = ladder
        self._sum = self._rows = 0
        self._below = 0  # windows, one after the other
        self._needed = {rung: 1 for rung in range(len(ladder.rungs))}

    def add(self, layer: int) -> None:
        """Count a row that left after a layer."""
        self._sum += layer
        self._rows += 1
        if self._rows == WINDOW:
            self.mean = self._sum / WINDOW
            self._sum = self._rows = 0
            self._decide()

    def _decide(self) -> None:
        costs = [rung.cost for rung in self._ladder.rungs]
        if self.mean > self.layers:
            self._below = 0
            if self.rung < self._ladder.floor:
                self._needed[self.rung] = min(2 * self._needed[self.rung], MOST_WINDOWS)
                self.rung += 1
        elif self.rung > self._ladder.nominal:
            expected = self.mean * costs[self.rung - 1] / costs[self.rung]
            self._below = self._below + 1 if expected <= RETURN_SHARE * self.layers else 0
            if self._below >= self._needed[self.rung - 1]:
                self._below = 0
                self.rung -= 1
