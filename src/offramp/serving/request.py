"""Requests and results in the server's own terms, whatever the wire format. No I/O, no HTTP library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from offramp.data.padding import Array
from offramp.data.rows import Text
from offramp.errors import OfframpError

Kind = Literal[
    "empty",  # a text without content
    "malformed",  # no JSON
    "mistyped",  # JSON, with a field that is missing or of another type
    "validation",  # a value that cannot be answered: an unknown point, a text that is too long
    "batch_size",  # more texts than one request may have
    "unknown_model",
    "not_applicable",  # a question that this model does not answer
    "unauthorized",
    "body_size",
    "overloaded",
    "unavailable",  # starting, ending, or no process to run the model
    "timeout",
    "failed",  # the model cannot answer: its logits are not finite, or it raises
]


@final
class Refusal(OfframpError):
    """A request that gets no answer; the message is one line.

    Attributes:
        kind: decides the status and the form that a protocol gives it.
        retry_after_s: when another try may succeed; None = not known.
    """

    def __init__(self, kind: Kind, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.retry_after_s = kind, retry_after_s


@final
@dataclass(frozen=True)
class TokenIds:
    """A text as its token ids, special tokens included."""

    ids: Sequence[int]


Item = Text | TokenIds
"""A text, a pair of texts, or token ids."""


def characters_of(item: Item) -> int:
    """Return the characters of a text or a pair; token ids have none."""
    if isinstance(item, str):
        return len(item)
    return sum(map(len, item)) if isinstance(item, tuple) else 0


@final
@dataclass(frozen=True)
class Options:
    """How the rows of a request are answered.

    Attributes:
        operating_point: a name of `Served.points`, or "full"; None = the server's own.
        max_depth: rows leave at the last exit that is no deeper than this layer, if not before; None = no bound.
        details: whether the answer holds the fields of early exit.
        truncate: whether a text that is too long is cut; False = it is refused; None = as the server is set.
        max_tokens: of a text, with its special tokens; None = as many as the model takes.
        truncation_side: the side of a text that is cut off, "left" or "right"; None = the tokenizer's own.
        latency_budget_ms: how soon an answer is wanted, in milliseconds: rows that are due first go first, and a
            server with a ladder answers at a looser point where it takes that; None = as the server is set.
    """

    operating_point: str | None = None
    max_depth: int | None = None
    details: bool = False
    truncate: bool | None = None
    max_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    latency_budget_ms: float | None = None


@final
@dataclass(frozen=True)
class Request:
    """Rows to be answered.

    Attributes:
        items: the rows; at least one.
        options: of all of them.
        form: what the protocol needs to write the answer.
    """

    items: Sequence[Item]
    options: Options = Options()
    form: Any = None


@final
@dataclass(frozen=True)
class RowResult:
    """The answer to a row, or why there is none.

    Attributes:
        logits: (C,) float32; empty where there is an error.
        exit_layer: the layer after which the row left, 0 = before the first.
        tokens: of the row, special tokens included.
        error: the reason why there is no answer.
        logits_by_exit: {layer number: (C,) float32} of the exits that were read on the way; only for `Options.details`.
        point: the name of the operating point that answered it; "" = none.
    """

    logits: Array
    exit_layer: int
    tokens: int
    error: Refusal | None = None
    logits_by_exit: dict[int, Array] = field(default_factory=dict)
    point: str = ""

    @classmethod
    def refused(cls, refusal: Refusal, layer: int = 0, tokens: int = 0) -> RowResult:
        """Return the result of a row without an answer."""
        return cls(np.empty(0, np.float32), layer, tokens, error=refusal)
