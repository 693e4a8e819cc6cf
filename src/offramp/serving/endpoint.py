"""The seam between wire formats and the server: bytes -> `Request`, results -> bytes. No I/O, no HTTP library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import msgspec

from offramp.serving.request import Kind, Options, Refusal, Request, RowResult
from offramp.serving.served import Served

STATUS: Mapping[Kind, int] = {
    "empty": 400,
    "malformed": 400,
    "mistyped": 400,
    "validation": 400,
    "batch_size": 422,
    "unknown_model": 404,
    "not_applicable": 400,
    "unauthorized": 401,
    "body_size": 413,
    "overloaded": 429,
    "unavailable": 503,
    "timeout": 504,
    "failed": 500,
}
"""Statuses of refusals, where a protocol has no others."""


@final
@dataclass(frozen=True)
class Call:
    """A request as HTTP brings it.

    Attributes:
        body: its bytes; empty for GET.
        headers: their names in lower case.
        path: values of the path's parameters.
    """

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Reply:
    """An answer as HTTP takes it."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"


@final
@dataclass(frozen=True)
class Endpoint:
    """A route that answers rows: POST.

    Attributes:
        paths: Starlette's patterns, the first one is the main one.
        read: returns the request of a call; raises a `Refusal`.
        write: returns the reply to a request with its results, one for each of its items.
        refuse: returns the reply to a call that is refused, in the protocol's form.
        takes: the type of the body, for OpenAPI; a tuple where a path has several.
        gives: the type of the answer, for OpenAPI; likewise.
        summary: one line, for OpenAPI.
        protocol: a short name, for metrics: "tei", "vllm", "kserve", "oip", "openai", "systemone", or "shared" where
            several have the path.
    """

    paths: tuple[str, ...]
    read: Callable[[Call, Served], Request]
    write: Callable[[Request, Sequence[RowResult], Served], Reply]
    refuse: Callable[[Call, Refusal], Reply]
    takes: Any
    gives: Any
    summary: str
    protocol: str


@final
@dataclass(frozen=True)
class Page:
    """A route that describes the server: GET, without rows.

    Attributes:
        paths: Starlette's patterns.
        write: returns the reply to a call; raises a `Refusal`.
        refuse: as in `Endpoint`.
        gives: the type of the answer, for OpenAPI.
        summary: one line, for OpenAPI.
        ready: whether it is refused as "unavailable" while no rows are answered.
    """

    paths: tuple[str, ...]
    write: Callable[[Call, Served], Reply]
    refuse: Callable[[Call, Refusal], Reply]
    gives: Any
    summary: str
    ready: bool = False


def body_types(side: Any) -> tuple[Any, ...]:
    """Return the types of `Endpoint.takes` or `Endpoint.gives`."""
    return side if isinstance(side, tuple) else (side,)


class EarlyExit(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The field "early_exit" of a request, in every JSON format.

    Attributes:
        operating_point: a point of the model, or "full".
        max_depth: the deepest layer.
        details: whether the answer has a field "early_exit" too.
        latency_budget_ms: how soon an answer is wanted; see `Options`.
    """

    operating_point: str | None = None
    max_depth: int | None = None
    details: bool = False
    latency_budget_ms: float | None = None


def early_options(early: EarlyExit | None) -> Options:
    """Return the options of a request that the field "early_exit" has; without it the server's own."""
    if early is None:
        return Options()
    return Options(early.operating_point, early.max_depth, early.details, latency_budget_ms=early.latency_budget_ms)


class ExitProbabilities(msgspec.Struct):
    """One exit of the field "early_exit" of an answer: probabilities by label, or the values of a regression."""

    layer: int
    outputs: dict[str, float]


class ExitDetails(msgspec.Struct):
    """The field "early_exit" of an answer, of one row.

    Attributes:
        exit_layer: the layer after which the row left; 0 = before the first.
        operating_point: its name; "full" = full depth.
        engine: with its precision.
        exits: that were read on the way.
        certificate: of the point, as it is saved; None where it has none.
    """

    exit_layer: int
    operating_point: str
    engine: str
    exits: list[ExitProbabilities]
    certificate: dict[str, Any] | None


def decode(body: bytes, kind: Any) -> Any:
    """Return a JSON body as a msgspec type.

    Raises:
        Refusal: malformed, or mistyped.
    """
    if not body:
        raise Refusal("malformed", "the body is empty; it must be JSON")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal("mistyped", f"the body cannot be read: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refusal("malformed", f"the body cannot be read: {error}") from None
