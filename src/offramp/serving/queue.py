"""Rows that wait for a free process, and those that go next. No clock, no I/O: the caller passes the time.

    queue.add(rows)
    queue.expired(now)                             # rows whose deadline has passed, taken out
    for batch in queue.next_batches(idle=2): ...   # each for one free process
    queue.cancel(request)                          # its rows cost nothing any more

Rows go in the order in which they are due, and of their arrival where that is equal; late ones too. The first one is
part of the first batch, whatever its length; those that go with it are the nearest to it in length among the next ones.
So no row waits for ever, as long as no row is due before those that came long before it.
`offramp.inference.scheduler` forms batches in the same way (`nearest_rows`). Its `Scheduler` serves rows that go from
stage to stage; none of them is due at a time, and it looks at all rows that wait for every batch.
"""

from __future__ import annotations

from bisect import bisect_right, insort_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, final

import numpy as np

from offramp.inference.scheduler import nearest_rows
from offramp.inference.workers import shared

LOOKAHEAD = 4
"""Batches for each free process whose rows are looked at: more give less padding, fewer keep the order better."""

LEAST_SHARE, SHORT = 0.5, 32
"""A row goes with others of at most twice its tokens, or of at most SHORT: padding takes as long as tokens do."""

_DUE = attrgetter("due")


@final
@dataclass(frozen=True, eq=False)
class WaitingRow:
    """A row that waits.

    Attributes:
        request: names the request that it belongs to.
        tokens: of the row.
        since: when it came, in seconds of the caller's clock.
        due: when its answer is wanted.
        deadline: `due` or later; after it nobody wants the answer.
        content: the caller's own, not looked at.
        alone: the row goes in a batch of its own: one with it has ended a process.
    """

    request: Hashable
    tokens: int
    since: float
    due: float
    deadline: float
    content: Any
    alone: bool = False


@final
class Queue:
    """Rows that wait, at most so many rows and tokens (padding included) a batch; a longer row goes alone."""

    def __init__(self, batch_rows: int, batch_tokens: int) -> None:
        self._batch_rows, self._batch_tokens = batch_rows, batch_tokens
        self._rows: list[WaitingRow] = []  # as they are due; those of cancelled requests are dropped later
        self._wanted: dict[Hashable, set[WaitingRow]] = {}
        self._count = 0

    @property
    def first(self) -> WaitingRow | None:
        """Return the row that goes next; None where none waits."""
        return next((row for row in self._rows if self._is_wanted(row)), None)

    @property
    def last(self) -> WaitingRow | None:
        """Return the row that is due the latest; None where none waits."""
        return next((row for row in reversed(self._rows) if self._is_wanted(row)), None)

    def __len__(self) -> int:
        """Return how many rows wait."""
        return self._count

    def add(self, rows: Sequence[WaitingRow]) -> None:
        """Let rows wait."""
        for row in rows:
            if not self._rows or self._rows[-1].due <= row.due:
                self._rows.append(row)
            else:
                insort_right(self._rows, row, key=_DUE)
            self._wanted.setdefault(row.request, set()).add(row)
        self._count += len(rows)

    def next_batches(self, idle: int) -> list[list[WaitingRow]]:
        """Return batches for at most `idle` processes, and take their rows out."""
        if not self._count or idle < 1:
            return []
        waiting, end = self._first(LOOKAHEAD * idle * self._batch_rows)
        batches: list[list[WaitingRow]] = []
        while waiting and len(batches) < idle:
            batch = self._batch(waiting)
            batches.append(batch)
            chosen = set(batch)
            waiting = [row for row in waiting if row not in chosen]
        self._rows[:end] = waiting
        for batch in batches:
            self._forget(batch)
        return _divided(batches, idle)

    def cancel(self, request: Hashable) -> None:
        """Take out the rows of a request, if some wait."""
        self._count -= len(self._wanted.pop(request, ()))
        if not self._count:
            self._rows.clear()
        elif len(self._rows) > 2 * self._count + SHORT:  # so each row is looked at about once
            self._rows = [row for row in self._rows if self._is_wanted(row)]

    def expired(self, now: float) -> list[WaitingRow]:
        """Take out and return the rows whose deadline has passed."""
        end = bisect_right(self._rows, now, key=_DUE)
        due = [row for row in self._rows[:end] if self._is_wanted(row)]
        late = [row for row in due if row.deadline <= now]
        if late:
            self._rows[:end] = [row for row in due if row.deadline > now]
            self._forget(late)
        return late

    def _is_wanted(self, row: WaitingRow) -> bool:
        return row in self._wanted.get(row.request, ())

    def _first(self, count: int) -> tuple[list[WaitingRow], int]:
        """Return up to so many wanted rows, and the position behind them."""
        rows: list[WaitingRow] = []
        end = 0
        while end < len(self._rows) and len(rows) < count:
            if self._is_wanted(self._rows[end]):
                rows.append(self._rows[end])
            end += 1
        return rows, end

    def _batch(self, waiting: Sequence[WaitingRow]) -> list[WaitingRow]:
        """Return the first row with those that go with it, the longest first."""
        if waiting[0].alone:
            return [waiting[0]]
        together = [row for row in waiting if not row.alone]
        tokens = np.array([row.tokens for row in together])
        chosen = nearest_rows(tokens, self._batch_rows, self._batch_tokens, LEAST_SHARE, SHORT)
        return [together[index] for index in chosen.tolist()]

    def _forget(self, rows: Sequence[WaitingRow]) -> None:
        for row in rows:
            others = self._wanted[row.request]
            others.discard(row)
            if not others:
                del self._wanted[row.request]
        self._count -= len(rows)
        if not self._count:
            self._rows.clear()


def _divided(batches: list[list[WaitingRow]], idle: int) -> list[list[WaitingRow]]:
    """Divide batches among processes that would have none."""
    parts: list[list[WaitingRow]] = []
    for number, batch in enumerate(batches):
        count = idle // len(batches) + (number < idle % len(batches))
        lengths = [row.tokens for row in batch]
        parts += [[batch[index] for index in some] for some in shared([range(len(batch))], lengths, count)]
    return parts
