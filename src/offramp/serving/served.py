"""The model that a server serves, for the wire formats: names, classes, points, limits. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from offramp.serving.request import Options, Refusal
from offramp.types.operating_point import OperatingPoint

if TYPE_CHECKING:
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig

FULL = "full"
"""The name by which requests ask for full depth."""
LATENCY_TARGET_MS = 50.0
"""How soon answers are wanted where neither the server nor the request says."""


@final
@dataclass(frozen=True)
class Limits:
    """The limits of a server; names and defaults are those of text-embeddings-inference.

    Attributes:
        max_concurrent_requests: rows that are answered or wait at the same time, from which on no request is accepted.
        max_batch_tokens: of a batch, padding included.
        max_batch_requests: rows of a batch; None = as many as costs measured on this machine say are worth it.
        max_client_batch_size: texts of a request.
        payload_limit: bytes of a request's body.
        auto_truncate: whether texts that are too long are cut where the request does not say.
        timeout_s: after which an accepted request is refused.
        drain_s: how long an ending server goes on answering.
    """

    max_concurrent_requests: int = 512
    max_batch_tokens: int = 16384
    max_batch_requests: int | None = None
    max_client_batch_size: int = 32
    payload_limit: int = 2_000_000
    auto_truncate: bool = True
    timeout_s: float = 30.0
    drain_s: float = 30.0


@final
@dataclass(frozen=True)
class Served:
    """A model as it is served.

    Attributes:
        name: by which requests may ask for it.
        config: of the model.
        points: those that the engine can run.
        default_point: the name of the point of requests that name none; None = full depth.
        engine: with its precision, as "onnx-int8".
        layers_read: the layers whose exits are read, increasing; the last one is the model's last.
        max_tokens: of a text, special tokens included.
        digest: SHA-256 of the weights.
        started: seconds since 1970 when the server was started.
        limits: of the server.
        latency_target_ms: how soon answers are wanted, of requests that do not say.
    """

    name: str
    config: MultiExitConfig | GraphConfig
    points: Mapping[str, OperatingPoint]
    default_point: str | None
    engine: str
    layers_read: tuple[int, ...]
    max_tokens: int
    digest: str
    started: float
    limits: Limits = field(default_factory=Limits)
    latency_target_ms: float = LATENCY_TARGET_MS

    def point_name(self, options: Options) -> str:
        """Return the name of the point that answers a request; FULL = full depth.

        Raises:
            Refusal: there is no such point, or no exit before `max_depth`.
        """
        name = options.operating_point or self.default_point or FULL
        if name != FULL and name not in self.points:
            known = ", ".join([*self.points, FULL])
            raise Refusal("validation", f"no operating point {name!r}; there are: {known}")
        point = self.point(name)
        first = self.layers_read[0] if point is None else point.layers_read(self.config.layers)[0]
        if options.max_depth is not None and options.max_depth < first:
            raise Refusal("validation", f"max_depth must be at least {first}, the first exit; got {options.max_depth}")
        return name

    def point(self, name: str) -> OperatingPoint | None:
        """Return a point by a name of `point_name`; None = full depth."""
        return None if name == FULL else self.points[name]

    def max_depth(self, options: Options) -> int | None:
        """Return the bound of a request's rows; None = none, or one that no layer reaches, however large it is."""
        depth = options.max_depth
        return None if depth is None or depth >= self.layers_read[-1] else depth

    def budget_s(self, options: Options) -> float:
        """Return how soon a request's rows are due, in seconds; never after the server's time limit.

        Raises:
            Refusal: the latency budget is no number above 0.
        """
        budget = options.latency_budget_ms
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            raise Refusal("validation", f"latency_budget_ms must be a number above 0, in milliseconds; got {budget:g}")
        return min((self.latency_target_ms if budget is None else budget) / 1000, self.limits.timeout_s)

    def check_model(self, model: str | None) -> None:
        """Refuse a request for another model; None and "" name this one.

        Raises:
            Refusal: it names another one.
        """
        if model and model != self.name:
            raise Refusal("unknown_model", f"no model {model!r}; this server has {self.name!r}")
