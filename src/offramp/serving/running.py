"""Requests on their way through the server, and who counts them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol, final

from offramp.serving.request import Refusal, Request, RowResult


class Watcher(Protocol):
    """Counts what happens; see `offramp.serving.metrics`."""

    def row_left(self, layer: int, point: str) -> None:
        """Count a row with an answer."""

    def row_failed(self, kind: str) -> None:
        """Count a row without an answer."""

    def batch_done(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a batch: its rows, its tokens with padding, the seconds that the engine took."""

    def rows_retried(self, rows: int) -> None:
        """Count rows of a process that ended."""


@final
@dataclass(eq=False)
class Running:
    """A request on its way.

    Attributes:
        request: with its rows.
        point: the name of its operating point; of one that the server's ladder decides on, that of when it came.
        adapts: whether the server's ladder decides on it.
        results: of each row; None = not yet.
        finished: set when every row has a result.
        begin, tokenized, dequeued, answered: seconds of the clock; `dequeued` = when the last row went to a process.
        due: when its rows are, somewhat before its answer is wanted.
        tokens: of all rows.
    """

    request: Request
    point: str
    results: list[RowResult | None]
    finished: asyncio.Future[None]
    begin: float
    due: float
    tokens: int = 0
    tokenized: float = 0.0
    dequeued: float = 0.0
    answered: float = 0.0
    missing: int = 0
    adapts: bool = False

    def rows(self) -> list[RowResult]:
        """Return the results, once all are there."""
        return [result for result in self.results if result is not None]


def ending() -> Refusal:
    """Return the refusal of a server that ends."""
    return Refusal("unavailable", "the server is shutting down", 1.0)


def too_late() -> Refusal:
    """Return the refusal of rows whose time is over."""
    return Refusal("timeout", "no answer within the server's time limit")
