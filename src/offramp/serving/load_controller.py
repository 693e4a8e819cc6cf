"""Which rung of the ladder load calls for. No I/O; the caller passes the time.

    rung = controller.look(load)        # now and then, and while rows wait
    rung = controller.for_budget(...)   # for a batch that goes now

It steps to a looser rung when rows have waited for too long, one rung a look at most, and back to a stricter one once
the processes could do the same rows there with room to spare; each way back that does not last doubles how long the
next one is put off, so that a constant load settles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from offramp.serving.ladder import Ladder

STEP_SHARE = 0.5
"""A looser rung is called for once a row has waited for this share of the target."""
ROOM = 0.8
"""The processes are at most this busy on a stricter rung, as far as is known, before it is taken."""
CALM_S, LONGEST_CALM_S = 1.0, 60.0


@final
@dataclass(frozen=True)
class Load:
    """What a server sees when it looks.

    Attributes:
        now: seconds of the clock.
        wait_s: how long the row that has waited the longest has.
        busy: the share of the processes' time that rows took since the last look, 0 to 1.
    """

    now: float
    wait_s: float
    busy: float


@final
class LoadController:
    """Holds the rung that load calls for.

    Attributes:
        rung: its number.
    """

    def __init__(self, ladder: Ladder, target_s: float) -> None:
        self.rung = ladder.rest
        self._ladder, self._target_s = ladder, target_s
        self._changed = self._calm_since = float("-inf")
        self._calm_s = CALM_S

    def look(self, load: Load) -> int:
        """Return the rung for a load."""
        costs = [rung.cost for rung in self._ladder.rungs]
        if load.wait_s > STEP_SHARE * self._target_s:
            self._calm_since = load.now
            if self.rung < self._ladder.floor and load.now - self._changed >= self._target_s:
                self._move(self.rung + 1, load.now)
        elif self.rung > self._ladder.rest:
            room = load.busy * costs[self.rung - 1] / costs[self.rung] <= ROOM
            if not room:
                self._calm_since = load.now
            elif load.now - self._calm_since >= self._calm_s:
                self._calm_since = load.now
                self._move(self.rung - 1, load.now)
        return self.rung

    def _move(self, rung: int, now: float) -> None:
        self.rung, self._changed = rung, now
