"""Which rung of the ladder load calls for. No I/O; the caller passes the time.

    rung = controller.look(load)        # every few hundredths of a second

Down: once a row has waited for STEP_SHARE of the target, or the rows that wait will take as long. The queue's length
chooses how many rungs at once, by their costs; the time that a row has waited, which a step does not shorten at once,
leads one rung further every STEP_S.

Back: one rung a CALM_S without such rows, where the processes would be at most ROOM busy on the stricter rung. A rung
that had to be left is let alone for PAUSE_S, AGAIN times as long each time that this happens within LASTS_S, unless the
load has become small. A rung for which there seems to be no room is tried after LONG_PAUSE_S: costs may be wrong. So a
constant load settles, whatever the costs are: between changes there is more and more time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from offramp.serving.ladder import Ladder

STEP_SHARE, STEP_S = 0.5, 0.06
SMOOTH_S = 0.5
"""The time over which the processes' work is averaged."""
CALM_S, PAUSE_S, LONG_PAUSE_S, LONGEST_PAUSE_S = 1.0, 4.0, 64.0, 1024.0
AGAIN, LASTS_S = 4.0, 60.0
ROOM, SMALL = 0.8, 0.3
"""How busy the processes may be on a stricter rung, and how busy they are at a small load."""


@final
@dataclass(frozen=True)
class Load:
    """The load of a server at a look.

    Attributes:
        now: seconds of the clock.
        wait_s: how long the row that goes next has waited.
        queue_s: how long the processes need for the rows that wait, at the rung in force.
        busy: the share of the processes' time that the batches which ended since the last look took, had they been
            large.
    """

    now: float
    wait_s: float
    queue_s: float
    busy: float


@final
@dataclass
class _Pause:
    """A rung that had to be left.

    Attributes:
        left: when.
        taken: when it was taken before that, or again.
        seconds: for which it is let alone.
    """

    left: float
    taken: float = -math.inf
    seconds: float = PAUSE_S


@final
class LoadController:
    """Holds the rung that load calls for.

    Attributes:
        rung: its number.
        target_s: how soon answers are wanted.
    """

    def __init__(self, ladder: Ladder, target_s: float) -> None:
        self.rung, self.target_s = ladder.rest, target_s
        self._costs = [rung.cost for rung in ladder.rungs]
        self._rest, self._floor = ladder.rest, ladder.floor
        self._looked = self._changed = self._calm_since = -math.inf
        self._demand = 0.0  # how busy the processes would be at full depth
        self._pauses: dict[int, _Pause] = {}

    def look(self, load: Load) -> int:
        """Return the rung for a load."""
        weight = 1 - math.exp(-(load.now - self._looked) / SMOOTH_S)
        self._demand += weight * (load.busy / self._costs[self.rung] - self._demand)
        self._looked = load.now
        limit = STEP_SHARE * self.target_s
        if max(load.wait_s, load.queue_s) > limit:
            self._calm_since = load.now
            if self.rung < self._floor and (load.queue_s > limit or load.now - self._changed >= STEP_S):
                self._step_down(load.now, limit * self._costs[self.rung] / max(load.queue_s, limit))
        elif self.rung > self._rest and self._may_return(load.now):
            self._take(self.rung - 1, load.now)
        return self.rung

    def _step_down(self, now: float, cost: float) -> None:
        """Leave for the strictest looser rung of at most this cost; for the floor where there is none."""
        looser = range(self.rung + 1, self._floor + 1)
        end = next((rung for rung in looser if self._costs[rung] <= cost), self._floor)
        for rung in range(self.rung, end):
            pause = self._pauses.setdefault(rung, _Pause(now))
            if rung == self.rung:
                again = -math.inf < pause.taken and now - pause.taken < LASTS_S
                pause.seconds = min(AGAIN * pause.seconds, LONGEST_PAUSE_S) if again else PAUSE_S
            pause.left = now
        self.rung, self._changed = end, now

    def _may_return(self, now: float) -> bool:
        """Return whether the next stricter rung may be taken."""
        rung = self.rung - 1
        if now - max(self._calm_since, self._changed) < CALM_S:
            return False
        busy = self._demand * self._costs[rung]
        if busy <= SMALL:
            self._pauses.pop(rung, None)
        pause = self._pauses.get(rung)
        if pause is None:
            return True
        seconds = pause.seconds if busy <= ROOM else max(pause.seconds, LONG_PAUSE_S)
        return now - pause.left >= seconds

    def _take(self, rung: int, now: float) -> None:
        self.rung = rung
        self._changed = self._calm_since = now
        if rung in self._pauses:
            self._pauses[rung].taken = now
