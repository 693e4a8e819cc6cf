"""Rows that wait for a free process, and those that go next. No clock, no I/O: the caller passes the time.

    queue.add(rows)
    for batch in queue.next_batches(now, idle=2): ...   # each for one free process
    queue.cancel(request)                               # its rows cost nothing any more
    queue.expired(now)                                  # rows whose deadline has passed, taken out

Rows go in the order of their deadlines, and of their arrival where these are equal; so no row waits for ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, eq=False)
class WaitingRow:
    """A row that waits.

    Attributes:
        request: names the request that it belongs to.
        tokens: of the row.
        deadline: in seconds of the caller's clock; after it nobody wants the answer.
        content: the caller's own, not looked at.
        alone: the row goes in a batch of its own: one with it has ended a process.
    """

    request: Hashable
    tokens: int
    deadline: float
    content: Any
    alone: bool = False


@final
class Queue:
    """Rows that wait, at most so many rows and tokens (padding included) a batch."""

    def __init__(self, batch_rows: int, batch_tokens: int) -> None:
        self._batch_rows, self._batch_tokens = batch_rows, batch_tokens
        self._rows: list[WaitingRow] = []

    def __len__(self) -> int:
        """Return how many rows wait."""
        return len(self._rows)

    def add(self, rows: Sequence[WaitingRow]) -> None:
        """Let rows wait."""
        self._rows = sorted([*self._rows, *rows], key=lambda row: row.deadline)

    def next_batches(self, now: float, idle: int) -> list[list[WaitingRow]]:
        """Return batches for at most `idle` processes, and take their rows out; rows past their deadline stay."""
        batches: list[list[WaitingRow]] = []
        while self._rows and len(batches) < idle:
            batches.append(self._rows[: self._batch_rows])
            self._rows = self._rows[self._batch_rows :]
        return batches

    def cancel(self, request: Hashable) -> None:
        """Take out the rows of a request, if some wait."""
        self._rows = [row for row in self._rows if row.request is not request]

    def expired(self, now: float) -> list[WaitingRow]:
        """Take out and return the rows whose deadline has passed."""
        late = [row for row in self._rows if row.deadline <= now]
        self._rows = [row for row in self._rows if row.deadline > now]
        return late
