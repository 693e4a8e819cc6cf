"""A Ray Serve deployment in simulated time: the router, replicas of one core, the autoscaler. No I/O.

A replica has the queue and, with a ladder, the load controller of `offramp serve`: the product's own objects, which
take the time from the caller. One core reads requests and runs the model, a row that leaves before the first layer too.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from offramp.serving.adaptive import Adaptive
from offramp.serving.ladder import Ladder
from offramp.serving.load_controller import AIM, LoadController
from offramp.serving.queue import Queue, WaitingRow
from offramp.serving.served import Limits
from offramp.serving.service import LOOK_S
from offramp.types.problem_types import SINGLE_LABEL
from serve_day_parts import BATCH_TOKENS, Autoscaler, Rows, Scaling, Times

MOST_ROWS = Limits().max_concurrent_requests
NOISE = 0.2
"""A batch takes so much more or less than its costs say, evenly spread."""


class Silent:
    """Hears alarms of drift, which there are none of."""

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        """Do nothing."""

    def audited(self, logits: Any, tokens: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Attributes:
        ladder: whose rungs the replicas have; where `nominal` is `floor` they stay there.
        target_s: how soon answers are wanted.
        scaling: None = as many replicas as `first`, always.
        first: replicas at the beginning.
        batch_rows: of a batch, at most.
        noise: of a batch's time.
    """

    ladder: Ladder
    target_s: float
    scaling: Scaling | None
    first: int
    batch_rows: int = 8
    noise: float = NOISE


@dataclass
class Outcome:
    """What became of the rows.

    Attributes:
        waits: (N,) seconds from arrival to answer; infinite where a replica had MOST_ROWS already and refused the row.
        rungs: (N,) at which each row ran.
        replicas: (time, number of replicas that are paid for) at every change.
    """

    waits: np.ndarray
    rungs: np.ndarray
    replicas: list[tuple[float, int]] = field(default_factory=list)

    def hours(self, end: float) -> float:
        """Return the replica-hours until a time."""
        spans = pairwise([*self.replicas, (end, 0)])
        return sum(count * (after - now) for (now, count), (after, _) in spans) / 3600


@dataclass(eq=False)
class Replica:
    """A replica that answers.

    Attributes:
        queue: rows that wait.
        adaptive: which rung; None = always the same.
        ongoing: rows that run or wait.
        looked: when the load was looked at.
    """

    queue: Queue
    adaptive: Adaptive | None
    ongoing: int = 0
    looked: float = 0.0


class Deployment:
    """Replicas, the router that chooses the less busy one of two, and the autoscaler."""

    def __init__(self, plan: Plan, rows: Rows, times: Times, seed: int) -> None:
        self.plan, self.rows, self.times = plan, rows, times
        self.replicas = [self._replica() for _ in range(plan.first)]
        self._numbers = {name: number for number, name in enumerate(plan.ladder.names)}
        self._random = Random(f"deployment {seed}")
        self._ends: list[tuple[float, int, Replica, list[WaitingRow], list[str], float]] = []
        self._batches = 0
        self._starting: deque[float] = deque()  # when replicas will answer
        self._samples: deque[tuple[float, int]] = deque()
        self._pushed = self._average = 0.0
        self._autoscaler = None if plan.scaling is None else Autoscaler(plan.scaling)

    def run(self, arrivals: np.ndarray) -> Outcome:
        """Let rows arrive, and end when all are answered."""
        count = len(arrivals)
        self.drawn = np.random.default_rng(self._random.randrange(2**32)).integers(len(self.rows.tokens), size=count)
        self.outcome = Outcome(np.zeros(count), np.zeros(count, dtype=np.int8), [(0.0, len(self.replicas))])
        tick = 1.0
        for number, (now, row) in enumerate(zip(arrivals.tolist(), self.drawn.tolist(), strict=True)):
            while tick <= now:
                self._end_until(tick)
                self._tick(tick)
                tick += 1.0
            self._end_until(now)
            self._arrive(number, row, now)
        self._end_until(math.inf)
        return self.outcome

    def _replica(self) -> Replica:
        plan, adaptive = self.plan, None
        if plan.ladder.nominal != plan.ladder.floor:
            controller = LoadController(plan.ladder, AIM * plan.target_s)
            adaptive = Adaptive(plan.ladder, controller, None, Silent(), SINGLE_LABEL)
        return Replica(Queue(plan.batch_rows, BATCH_TOKENS), adaptive)

    def _arrive(self, number: int, row: int, now: float) -> None:
        replica = self._less_busy()
        if replica.ongoing >= MOST_ROWS:
            self.outcome.waits[number] = math.inf
            return
        waiting = WaitingRow(number, self.rows.tokens[row], now, now + AIM * self.plan.target_s, math.inf, row)
        replica.ongoing += 1
        if replica.ongoing > 1:
            replica.queue.add([waiting])
            self._look(replica, now)
        else:  # the queue would return this row
            self._look(replica, now)
            self._start(replica, [waiting], now)

    def _less_busy(self) -> Replica:
        if len(self.replicas) == 1:
            return self.replicas[0]
        count = len(self.replicas)
        first = int(self._random.random() * count)
        one, other = self.replicas[first], self.replicas[first - 1 - int(self._random.random() * (count - 1))]
        return one if one.ongoing <= other.ongoing else other

    def _look(self, replica: Replica, now: float) -> None:
        if replica.adaptive is not None and now - replica.looked >= LOOK_S:
            replica.adaptive.look(replica.queue, 1, now)
            replica.looked = now

    def _start(self, replica: Replica, batch: list[WaitingRow], now: float) -> None:
        longest = max(row.tokens for row in batch)
        if replica.adaptive is None:
            points = [self.plan.ladder.rungs[self.plan.ladder.nominal].name] * len(batch)
        else:
            points = [replica.adaptive.point_of(row, longest * len(batch), now) for row in batch]
        rungs = [self._numbers[point] for point in points]
        exits = [self.rows.exits[rung][row.content] for rung, row in zip(rungs, batch, strict=True)]
        spread = self._random.uniform(1 - self.plan.noise, 1 + self.plan.noise)
        took = self.times.seconds(exits, longest) * spread
        for row, rung in zip(batch, rungs, strict=True):
            self.outcome.waits[row.request] = now + took - row.since
            self.outcome.rungs[row.request] = rung
        self._batches += 1
        heapq.heappush(self._ends, (now + took, self._batches, replica, batch, points, took))

    def _end_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            end, _, replica, batch, points, took = heapq.heappop(self._ends)
            if replica.adaptive is not None:
                replica.adaptive.batch_done(points, max(row.tokens for row in batch) * len(batch), took)
            replica.ongoing -= len(batch)
            self._look(replica, end)
            for following in replica.queue.next_batches(1):
                self._start(replica, following, end)

    def _tick(self, now: float) -> None:
        """Look at the rows in all replicas, and let the autoscaler decide; once a second."""
        if self._autoscaler is None:
            return
        scaling = self._autoscaler.scaling
        while self._starting and self._starting[0] <= now:
            self._starting.popleft()
            self.replicas.append(self._replica())
        self._samples.append((now, sum(replica.ongoing for replica in self.replicas)))
        while self._samples[0][0] <= now - scaling.look_back_s:
            self._samples.popleft()
        if now - self._pushed >= scaling.push_s:
            self._pushed, self._average = now, sum(rows for _, rows in self._samples) / len(self._samples)
        paid = len(self.replicas) + len(self._starting)
        wanted = self._autoscaler.decide(now, self._average, len(self.replicas), paid)
        self._scale(now, wanted - paid)

    def _scale(self, now: float, more: int) -> None:
        if not more:
            return
        for _ in range(more):
            self._starting.append(now + self.plan.scaling.start_s)  # type: ignore[union-attr]
        while more < 0 and self._starting:
            self._starting.pop()
            more += 1
        for _ in range(-more):  # the least busy one answers what it has, and gets no more
            self.replicas.remove(min(self.replicas, key=lambda replica: replica.ongoing))
        self.outcome.replicas.append((now, len(self.replicas) + len(self._starting)))
