"""Which rung of the ladder load calls for. No I/O; the caller passes the time.

    rung = controller.look(load)        # every few hundredths of a second

Down: where rows have waited, or will wait, for longer than the target, or where the rung in force is too slow for more
than LATE_SHARE of the rows (see `Adaptive.point_of`). The queue's length chooses how many rungs at once, by their
costs, so that what waits takes STEP_SHARE of the target; the time that a row has waited, which a step does not shorten
at once, leads one rung further every STEP_S.

Back: one rung a CALM_S without such rows, where the processes would be at most ROOM busy on the stricter rung. A rung
that had to be left is let alone for PAUSE_S, AGAIN times as long each time that this happens within LASTS_S, unless the
load has fallen to half since, or no row has run for PAUSE_S. One for which there seems to be no room is tried after
LONG_PAUSE_S: costs may be wrong. So a constant load settles whatever the costs are: trials that fail become rarer and
rarer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from offramp.serving.ladder import Ladder

STEP_SHARE, STEP_S, LATE_SHARE = 0.5, 0.06, 0.1
SMOOTH_S, SLOW_S = 0.5, 2.0
"""The time over which the demand and the share of late rows are averaged; the same where a fall of the demand is
looked for, which chance does not make of so many rows."""
CALM_S, PAUSE_S, LONG_PAUSE_S, LONGEST_PAUSE_S = 1.0, 4.0, 64.0, 1024.0
AGAIN, LASTS_S = 16.0, 60.0
AIM = 0.6
"""Of the time within which an answer is wanted, the share after which its row is due: batches take longer than
expected, and reading requests and writing answers takes time too. With an aim of 1 the 99th percentile of simulated
bursts is beyond the target."""
ROOM, FALLEN, SMALL = 0.8, 0.5, 0.1
"""How busy the processes may be on a stricter rung; what share of the largest demand since it was left is a load that
has fallen; how busy that one had kept them there, at least: less is halved by chance."""


@final
@dataclass(frozen=True)
class Load:
    """The load of a server at a look.

    Attributes:
        now: seconds of the clock.
        wait_s: how long the row that goes next has waited.
        queue_s: how long the processes need for the rows that wait, at the rung in force.
        demand: the share of the processes' time that the rows which ended since the last look would have taken in
            large batches at full depth; above 1 they would be too slow.
        late: the share of the rows since the last look for which the rung in force was too slow, 0 to 1.
    """

    now: float
    wait_s: float
    queue_s: float
    demand: float
    late: float


@final
@dataclass
class _Pause:
    """A rung that had to be left.

    Attributes:
        left: when.
        taken: when it was taken before that, or again.
        seconds: for which it is let alone.
        demand: the largest one since it was left, on a slow average.
    """

    left: float
    taken: float = -math.inf
    seconds: float = PAUSE_S
    demand: float = 0.0


@final
class LoadController:
    """Holds the rung that load calls for.

    Attributes:
        rung: its number.
        target_s: how soon rows are due.
    """

    def __init__(self, ladder: Ladder, target_s: float) -> None:
        self.rung, self.target_s = ladder.nominal, target_s
        self._costs = [rung.cost for rung in ladder.rungs]
        self._nominal, self._floor = ladder.nominal, ladder.floor
        self._looked = self._changed = self._calm_since = self._no_room = self._worked = -math.inf
        self._demand = self._slow_demand = self._late = 0.0  # on average
        self._pauses: dict[int, _Pause] = {}

    def look(self, load: Load) -> int:
        """Return the rung for a load."""
        weight, slow = (1 - math.exp(-(load.now - self._looked) / seconds) for seconds in (SMOOTH_S, SLOW_S))
        self._looked = load.now
        if load.demand > 0:
            self._worked = load.now
        self._demand += weight * (load.demand - self._demand)
        self._slow_demand += slow * (load.demand - self._slow_demand)
        for pause in self._pauses.values():
            pause.demand = max(pause.demand, self._slow_demand)
        self._late += weight * (load.late - self._late)
        longest_s, limit_s = max(load.wait_s, load.queue_s), STEP_SHARE * self.target_s
        if self._late > LATE_SHARE or longest_s > self.target_s:
            self._calm_since = load.now
            if self.rung < self._floor and (load.queue_s > self.target_s or load.now - self._changed >= STEP_S):
                self._step_down(load.now, limit_s * self._costs[self.rung] / max(load.queue_s, limit_s))
        elif self.rung > self._nominal and self._may_return(load.now):
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
            pause.left, pause.demand = now, self._slow_demand
        self.rung, self._changed, self._late = end, now, 0.0

    def _may_return(self, now: float) -> bool:
        """Return whether the next stricter rung may be taken."""
        rung = self.rung - 1
        busy = self._demand * self._costs[rung]
        if busy > ROOM:
            self._no_room = now
        if now - max(self._calm_since, self._changed) < CALM_S:
            return False
        pause = self._pauses.get(rung)
        if pause is None:
            return True
        fallen = pause.demand * self._costs[rung] > SMALL and self._slow_demand <= FALLEN * pause.demand
        if fallen or now - self._worked >= PAUSE_S:
            pause.seconds = PAUSE_S
        seconds = pause.seconds if now - self._no_room >= CALM_S else max(pause.seconds, LONG_PAUSE_S)
        return now - pause.left >= seconds

    def _take(self, rung: int, now: float) -> None:
        self.rung = rung
        self._changed = self._calm_since = now
        if rung in self._pauses:
            self._pauses[rung].taken = now
