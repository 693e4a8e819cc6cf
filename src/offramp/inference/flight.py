"""Rows on their way through a model's exits, for every engine: NumPy in, NumPy out. No torch, no transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from offramp.data.padding import Array

Rows = TypeVar("Rows", bound="Flight")


@dataclass(frozen=True)
class LeftRows:
    """The answers of rows that have left, in any order.

    Attributes:
        rows: (K,) int64 numbers by which the caller knows the rows.
        logits: (K, C) of the answers.
        exit_layers: (K,) int64 layer numbers, 0 = before the first layer.
        failed: (K,) bool; see `offramp.types.outputs.Answers`.
    """

    rows: Array
    logits: Array
    exit_layers: Array
    failed: Array


class Flight(Protocol):
    """Rows that stand before the same stage: the blocks that lead to an exit, the exit, and the cut behind it."""

    @property
    def rows(self) -> Array:
        """Return the numbers by which the caller knows the rows, (B,) int64."""

    @property
    def stage(self) -> int:
        """Return the number of the stage, from 0."""

    @property
    def tokens(self) -> Array:
        """Return how many tokens of each row the stage runs on, padding apart, (B,) int64."""

    def advance(self) -> tuple[LeftRows | None, Flight | None]:
        """Run the stage on all rows; return those that leave, and those that go on: None where there are none."""

    def take(self, positions: Array) -> Flight:
        """Return the rows at these positions, (K,), alone."""

    def merge(self: Rows, others: Sequence[Rows]) -> Rows:
        """Join rows that stand before the same stage."""


class Runner(Protocol):
    """An engine at an operating point."""

    @property
    def stages(self) -> int:
        """Return the number of stages; 1 = one call answers a row."""

    def start(self, rows: Array, tokens: Sequence[Mapping[str, Any]]) -> Flight:
        """Return rows that stand before the first stage.

        Args:
            rows: (B,) int64 numbers by which the caller knows them.
            tokens: of each row, as `offramp.data.batching.encode` returns them.
        """
