"""Parts of the simulated day of `serve_day.py`: arrivals, the rule of the autoscaler, the times of batches. No I/O.

The arrivals: a daily wave, as the access traces of Wikipedia have it (Urdaneta, Pierre and van Steen, Computer Networks
2009; Ali-Eldin et al., IC2E 2014), and volume spikes that rise, hold and decay (Bodik et al., SoCC 2010). The sizes are
the arguments of `Day`, not those of one trace. The autoscaler is the rule of Ray Serve's default policy.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from offramp.serving.served import Limits
from offramp.types.cost_table import CostTable

DAY_S = 86_400.0
BATCH_TOKENS = Limits().max_batch_tokens


# --- arrivals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Day:
    """The rate of arrivals over a day.

    Attributes:
        mean: rows a second, without bursts.
        ratio: the rate of the busiest moment over that of the quietest, without bursts.
        bursts: how many come, at random times.
        factor: by which a burst multiplies the rate.
        rise_s: in which a burst grows to that.
        hold_s: the shortest and the longest time for which it stays.
        fall_s: in which it ends.
        seconds: of the day.
    """

    mean: float = 40.0
    ratio: float = 4.0
    bursts: int = 12
    factor: float = 3.0
    rise_s: float = 10.0
    hold_s: tuple[float, float] = (60.0, 120.0)
    fall_s: float = 30.0
    seconds: float = DAY_S

    def draw_bursts(self, seed: int) -> list[tuple[float, float]]:
        """Return begin and length of each burst's full height, by time."""
        random = Random(f"bursts {seed}")
        return sorted((random.uniform(0, self.seconds), random.uniform(*self.hold_s)) for _ in range(self.bursts))

    def rates(self, seed: int) -> np.ndarray:
        """Return the rows a second in each second, (S,); where bursts meet, the larger factor counts."""
        now = np.arange(int(self.seconds)) + 0.5
        swing = (self.ratio - 1) / (self.ratio + 1)
        factor = np.ones_like(now)
        for begin, hold_s in self.draw_bursts(seed):
            times = (begin - self.rise_s, begin, begin + hold_s, begin + hold_s + self.fall_s)
            factor = np.maximum(factor, np.interp(now, times, (1.0, self.factor, self.factor, 1.0)))
        return self.mean * (1 - swing * np.cos(2 * np.pi * now / self.seconds)) * factor

    def arrivals(self, seed: int) -> np.ndarray:
        """Return the times of arrival, (N,), increasing: a Poisson process of these rates."""
        random = np.random.default_rng(seed)
        counts = random.poisson(self.rates(seed))
        return np.sort(np.repeat(np.arange(len(counts)), counts) + random.random(counts.sum()))


# --- autoscaling ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """The settings of the autoscaler, with Ray Serve's defaults but for the bounds and the time of a start.

    Attributes:
        target: rows that run or wait, a replica.
        least: replicas.
        most: replicas.
        up_s: for how long more replicas must be wanted without a break.
        down_s: for how long fewer must be.
        look_back_s: over which the rows are averaged.
        push_s: how often the averages reach the autoscaler.
        start_s: from the decision until a new replica answers; not Ray's.
    """

    target: float = 2.0
    least: int = 1
    most: int = 100
    up_s: float = 30.0
    down_s: float = 600.0
    look_back_s: float = 30.0
    push_s: float = 10.0
    start_s: float = 30.0


class Autoscaler:
    """Decides how many replicas there should be, as `replica_queue_length_autoscaling_policy` of Ray Serve does."""

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling
        self._since: float | None = None  # when more or fewer were first wanted
        self._direction = 0

    def decide(self, now: float, rows: float, running: int, wanted: int) -> int:
        """Return the number of replicas that should be.

        Args:
            now: seconds of the clock.
            rows: that run or wait in all replicas, on average.
            running: replicas that answer.
            wanted: replicas that should be, by the last decision.
        """
        desired = running * (rows / (self.scaling.target * running))
        count = max(math.ceil(running + (desired - running)), 1)
        direction = (count > wanted) - (count < wanted)
        if direction != self._direction or direction == 0:
            self._direction, self._since = direction, now
        delay_s = self.scaling.up_s if direction > 0 else self.scaling.down_s
        if direction == 0 or now - (self._since or 0.0) + 1e-6 < delay_s:
            count = wanted
        else:
            self._direction = 0
        return max(self.scaling.least, min(self.scaling.most, count))


# --- rows and their times ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Real rows, of which arrivals are drawn.

    Attributes:
        tokens: of each row.
        exits: for each rung, the number of the exit at which each row leaves.
    """

    tokens: list[int]
    exits: list[list[int]]


class Times:
    """The seconds of batches, from measured costs of single rows and of batches, by exit.

    A segment is what runs from one exit to the next. Its time is interpolated in the tokens that are in flight, between
    the batches of the tables, and grows beyond them as between the last two.
    """

    def __init__(self, tables: Sequence[CostTable], row_s: float) -> None:
        """Take tables of the same exits, batches growing, and what each row takes beside the model."""
        tokens = [table.batch_size * (table.tokens or 0.0) for table in tables]
        totals = np.array([[table.batch_size * ms / 1000 for ms in table.ms] for table in tables])  # (tables, exits)
        every = np.arange(BATCH_TOKENS + 1)
        self._segments = [_interpolated(every, tokens, part) for part in np.diff(totals, axis=1, prepend=0).T]
        self._ends = [list(part) for part in np.cumsum(self._segments, axis=0)]
        self._segments = [list(part) for part in self._segments]
        self._row_s = row_s

    def seconds(self, exits: Sequence[int], longest: int) -> float:
        """Return the seconds of a batch: the exit of each of its rows, and the tokens of the longest one."""
        taken = self._row_s * len(exits)
        if len(exits) == 1:
            return taken + self._ends[exits[0]][longest]
        ordered = sorted(exits)
        if ordered[0] == ordered[-1]:
            return taken + self._ends[ordered[0]][longest * len(exits)]
        for exit in range(ordered[-1] + 1):
            taken += self._segments[exit][(len(ordered) - bisect_left(ordered, exit)) * longest]
        return taken


def _interpolated(every: np.ndarray, tokens: Sequence[float], seconds: np.ndarray) -> np.ndarray:
    """Return a segment's seconds at every number of tokens, never below 0, with straight lines at both ends."""
    values = np.interp(every, tokens, seconds)
    for (left, right), outside in (((0, 1), every < tokens[0]), ((-2, -1), every > tokens[-1])):
        slope = (seconds[right] - seconds[left]) / (tokens[right] - tokens[left])
        values[outside] = seconds[left] + slope * (every[outside] - tokens[left])
    return np.maximum(values, 0.0)
