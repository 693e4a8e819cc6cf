"""A server with a ladder whose processes, texts and clock are simulated: open arrivals, batches, a queue."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from offramp.serving.adaptive import Adaptive
from offramp.serving.ladder import Ladder, Rung
from offramp.serving.load_controller import LoadController
from offramp.serving.queue import Queue, WaitingRow

LOOK_S, ROW_TOKENS = 0.02, 10
PROCESSES, BATCH_ROWS = 2, 16
BATCH_S, ROW_S = 0.004, 0.016
"""The time of a batch, and of each of its rows at full depth: 125 rows a second, less in small batches."""


class Silent:
    """Hears alarms, and does nothing."""

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        """Do nothing."""

    def audited(self, logits: Any, tokens: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def ladder_of_costs(costs: Sequence[float], nominal: int = 0, floor: int | None = None) -> Ladder:
    rungs = tuple(Rung(str(number), cost, None) for number, cost in enumerate(costs))
    return Ladder(rungs, nominal, len(costs) - 1 if floor is None else floor)


class SimulatedServer:
    """Runs a trace of arrivals.

    Attributes:
        adaptive: what is tested.
        rungs: (time, rung in force) at every look.
        waits: (arrival, seconds until its answer) of every row.
    """

    def __init__(self, ladder: Ladder, target_s: float, true_costs: Sequence[float], seed: int) -> None:
        self.adaptive = Adaptive(ladder, LoadController(ladder, target_s), None, Silent(), "regression")
        self.rungs: list[tuple[float, int]] = []
        self.waits: list[tuple[float, float]] = []
        self._target_s, self._costs, self._random = target_s, true_costs, Random(seed)
        self._queue = Queue(BATCH_ROWS, 10_000)
        self._running: list[tuple[float, int, list[WaitingRow], list[str], float]] = []

    def run(self, rate: Callable[[float], float], seconds: float) -> SimulatedServer:
        """Let rows come at a rate a second, which may change with time, and end after some seconds."""
        now, arrival, look, number = 0.0, 0.0, 0.0, 0
        while now < seconds:
            ends = self._running[0][0] if self._running else seconds
            now = min(arrival, look, ends)
            if now == ends and self._running:
                self._end(now)
            elif now == arrival:
                self._queue.add([WaitingRow(number, ROW_TOKENS, now, now + self._target_s, now + 1e6, None)])
                number += 1
                arrival = now + self._random.expovariate(rate(now))
            else:
                self.adaptive.look(self._queue, PROCESSES, now)
                self.rungs.append((now, self.adaptive.rung))
                look = now + LOOK_S
            self._dispatch(now)
        return self

    def changes(self, begin: float, end: float) -> int:
        """Return how often the rung has changed between two times."""
        some = [rung for now, rung in self.rungs if begin <= now < end]
        return sum(one != other for one, other in pairwise(some))

    def _dispatch(self, now: float) -> None:
        for batch in self._queue.next_batches(PROCESSES - len(self._running)):
            points = [self.adaptive.point_of(row, ROW_TOKENS * len(batch), now) for row in batch]
            row_s = ROW_S * sum(self._costs[int(point)] for point in points)
            took = (BATCH_S + row_s) * self._random.uniform(0.8, 1.2)
            heapq.heappush(self._running, (now + took, id(batch), batch, points, took))

    def _end(self, now: float) -> None:
        _, _, batch, points, took = heapq.heappop(self._running)
        self.adaptive.batch_done(points, ROW_TOKENS * len(batch), took)
        self.waits += [(row.since, now - row.since) for row in batch]
