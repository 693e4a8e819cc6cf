"""Which rows go on together: batches of rows that stand before the same stage. No clock, no threads, no torch.

    scheduler.add(flight, now)                 # rows that have come
    batch = scheduler.next_batch(now)          # None: nothing that is worth it yet
    left, onward = batch.flight().advance()    # in any thread
    scheduler.done(batch, [onward], now)

A batch is worth it where its stage has enough waiting rows; the deepest such stage goes first, since its rows take the
most memory and are nearest to their answer. A batch of less goes where waiting brings nothing: its rows have waited for
`linger_s`, no row can come from the stages before, no more rows come, or no more may come. Every batch takes the row of
its stage that has waited longest and those nearest to it in length, so that no row waits for ever.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp.data.padding import Array
from offramp.inference.flight import Flight
from offramp.inference.workers import LEAST_ROWS, shared

WORTH = 0.05
"""A batch is worth it within this share of the least time a row."""


@dataclass(frozen=True)
class Batch:
    """Rows of some flights before the same stage, which go on together.

    Attributes:
        parts: flights with the positions of their rows; None = all.
        stage: which they stand before.
        tokens: of all rows.
    """

    parts: tuple[tuple[Flight, Array | None], ...]
    stage: int
    tokens: int

    def flight(self) -> Flight:
        """Return the rows as one flight."""
        first, *others = (flight if rows is None else flight.take(rows) for flight, rows in self.parts)
        return first.merge(others) if others else first


@dataclass
class _Waiting:
    """The rows of a flight that still wait.

    Attributes:
        flight: all of its rows.
        since: when they came.
        tokens: of the rows that wait, (K,).
        positions: of these, (K,); None = all rows of the flight.
    """

    flight: Flight
    since: float
    tokens: Array
    positions: Array | None = None

    def take(self, chosen: Array) -> tuple[Flight, Array | None]:
        """Return the flight with the positions of some of the waiting rows."""
        if self.positions is None:
            return self.flight, None if len(chosen) == len(self.tokens) else chosen
        return self.flight, self.positions[chosen]

    def without(self, chosen: Array) -> _Waiting | None:
        """Return the other rows; None where there are none."""
        if len(chosen) == len(self.tokens):
            return None
        stays = np.ones(len(self.tokens), bool)
        stays[chosen] = False
        positions = np.flatnonzero(stays) if self.positions is None else self.positions[stays]
        return _Waiting(self.flight, self.since, self.tokens[stays], positions)


@final
class Scheduler:
    """Rows in flight, from their first stage to the last.

    Attributes:
        sizes: rows of a batch that is worth it, by stage.
        most_tokens: in flight, from which on no more rows are to be added.
        linger_s: how long a row waits for others before a stage, at most; inf = until no more can come.
        workers: that run batches at the same time.
        tokens: in flight now.
    """

    def __init__(self, sizes: Sequence[int], most_tokens: float, linger_s: float, workers: int = 1) -> None:
        self.sizes, self.most_tokens, self.linger_s, self.workers = sizes, most_tokens, linger_s, workers
        self.tokens = 0
        self._ended = False
        self._waiting: list[list[_Waiting]] = [[] for _ in sizes]
        self._rows = [0] * len(sizes)  # that wait
        self._running = [0] * len(sizes)  # batches
        self._planned: list[deque[Batch]] = [deque() for _ in sizes]

    @property
    def room(self) -> bool:
        """Return whether more rows may be added."""
        return self.tokens < self.most_tokens

    @property
    def empty(self) -> bool:
        """Return whether no row is in flight."""
        return not self._ahead(len(self.sizes))

    @property
    def full(self) -> bool:
        """Return whether a batch is there that is worth it."""
        return any(self._planned) or any(rows >= size for rows, size in zip(self._rows, self.sizes, strict=True))

    @property
    def due(self) -> float:
        """Return when the first row will have waited for `linger_s`; inf where none waits."""
        return min((waiting[0].since for waiting in self._waiting if waiting), default=math.inf) + self.linger_s

    def add(self, flight: Flight, now: float) -> None:
        """Let rows wait before their stage; what comes from another stage goes through `done`."""
        tokens = flight.tokens
        self._waiting[flight.stage].append(_Waiting(flight, now, tokens))
        self._rows[flight.stage] += len(tokens)
        self.tokens += int(tokens.sum())

    def end(self) -> None:
        """No more rows come, so none waits for them."""
        self._ended = True

    def next_batch(self, now: float) -> Batch | None:
        """Return rows that go on now, to be run at once; None where there are none, or waiting is worth it."""
        batch = self._choose(now)
        if batch is not None:
            self._running[batch.stage] += 1
        return batch

    def done(self, batch: Batch, onward: Sequence[Flight | None], now: float) -> None:
        """Take back the rows of a batch that go on to the next stage; the others have left."""
        self._running[batch.stage] -= 1
        self.tokens -= batch.tokens
        for flight in onward:
            if flight is not None:
                self.add(flight, now)

    def _choose(self, now: float) -> Batch | None:
        stages = range(len(self.sizes))
        for stage in stages:
            if self._ended and self._waiting[stage] and not self._ahead(stage):
                self._plan(stage)
        for stage in reversed(stages):
            waiting = self._waiting[stage]
            if self._planned[stage]:
                return self._planned[stage].popleft()
            if self._rows[stage] >= self.sizes[stage] or (waiting and waiting[0].since + self.linger_s <= now):
                return self._take(stage)
        for stage in stages:
            if self._waiting[stage] and (self._ended or not self.room or (stage and not self._ahead(stage))):
                return self._take(stage)
        return None

    def _ahead(self, stage: int) -> bool:
        """Return whether rows are in flight that may still come to a stage."""
        return any(self._rows[:stage]) or any(self._running[:stage]) or any(self._planned[:stage])

    def _take(self, stage: int) -> Batch:
        """Return the row that has waited longest and those nearest to it in length."""
        waiting, size = self._waiting[stage], self.sizes[stage]
        if len(waiting[0].tokens) >= size:
            return self._cut(stage, [np.arange(size)])
        tokens = np.concatenate([part.tokens for part in waiting])
        chosen = np.arange(len(tokens)) if len(tokens) <= size else nearest_rows(tokens, size)
        return self._cut(stage, self._by_part(stage, chosen))

    def _plan(self, stage: int) -> None:
        """Divide all rows that wait before a stage into batches, longest first, the last ones among the workers."""
        waiting, size = self._waiting[stage], self.sizes[stage]
        if len(waiting) == 1 and (count := len(waiting[0].tokens)) <= size and count < 2 * LEAST_ROWS:
            self._planned[stage].append(self._cut(stage, [np.arange(count)]))
            return
        tokens = np.concatenate([part.tokens for part in waiting])
        order = np.argsort(-tokens, kind="stable")
        batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
        parts = [self._by_part(stage, np.array(rows)) for rows in shared(batches, tokens.tolist(), self.workers)]
        self._planned[stage].extend(self._batch(stage, chosen) for chosen in parts)
        self._waiting[stage], self._rows[stage] = [], 0

    def _by_part(self, stage: int, chosen: Array) -> list[Array]:
        """Return which rows of each waiting flight are chosen; `chosen` numbers them over all flights."""
        ends = np.cumsum([len(part.tokens) for part in self._waiting[stage]])
        part = np.searchsorted(ends, chosen, side="right")
        starts = np.append(0, ends[:-1])
        return [chosen[part == number] - starts[number] for number in range(part.max() + 1)]

    def _batch(self, stage: int, chosen: Sequence[Array]) -> Batch:
        pairs = [(part, rows) for part, rows in zip(self._waiting[stage], chosen, strict=False) if len(rows)]
        tokens = sum(int(part.tokens[rows].sum()) for part, rows in pairs)
        return Batch(tuple(part.take(rows) for part, rows in pairs), stage, tokens)

    def _cut(self, stage: int, chosen: Sequence[Array]) -> Batch:
        """Return a batch and leave its rows out of those that wait."""
        batch, waiting = self._batch(stage, chosen), self._waiting[stage]
        left = [part.without(rows) for part, rows in zip(waiting, chosen, strict=False)]
        self._waiting[stage] = [part for part in left if part is not None] + waiting[len(chosen) :]
        self._rows[stage] -= sum(map(len, chosen))
        return batch


def nearest_rows(
    tokens: Array, size: int, most_tokens: float = math.inf, least_share: float = 0.0, short: float = 0.0
) -> Array:
    """Return which rows make a batch with the first one: as many as may, with the least padding; the longest first.

    Args:
        tokens: of each row, (N,).
        size: rows of a batch, at most.
        most_tokens: of a batch, padding included; a longer row is alone.
        least_share: of the longest row's tokens that each row has, at least, in a batch of rows longer than `short`.
        short: tokens.
    """
    order = np.argsort(-tokens, kind="stable")
    lengths, first = tokens[order], int(np.flatnonzero(order == 0)[0])
    starts = np.arange(max(0, first - size + 1), first + 1)
    longest = lengths[starts]
    shortest = np.where(longest > short, least_share * longest, 0)
    similar = np.searchsorted(-lengths, -shortest, side="right") - starts
    fitting = np.maximum(np.floor(most_tokens / np.maximum(longest, 1)), 1)
    counts = np.minimum(np.minimum(similar, size), fitting).astype(np.int64)
    sums = np.append(0, np.cumsum(lengths))
    padding = counts * longest - (sums[starts + counts] - sums[starts])
    counts[starts + counts <= first] = 0  # the first row is not among them
    best = np.lexsort((padding, -counts))[0]
    return order[starts[best] : starts[best] + counts[best]]


def rows_worth(ms_by_rows: Mapping[int, float]) -> int:
    """Return the smallest batch that takes little more a row than the best one.

    Args:
        ms_by_rows: rows of a batch -> milliseconds a row.
    """
    most = (1 + WORTH) * min(ms_by_rows.values())
    return min(rows for rows, ms in ms_by_rows.items() if ms <= most)
