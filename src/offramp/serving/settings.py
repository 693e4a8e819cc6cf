"""What a server is started with; as JSON it goes from the supervisor to the process that speaks HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, final

import msgspec

from offramp.serving.served import LATENCY_TARGET_MS, Limits
from offramp.types.operating_point import DEFAULT

VERSION = version("offramp")


@final
@dataclass(frozen=True)
class ModelSettings:
    """Which model is served, and how it runs.

    Attributes:
        folder: of the model, or a hub name.
        name: by which requests may ask for it; None = the folder's own.
        operating_point: of requests that name none; "full" = full depth.
        engine: a name of ENGINES, or "auto".
        workers: processes; None = as many as the cores have the engine's threads.
        threads: that compute a batch, in each process; None = the engine's default.
        allow_other_engine: run points with a certificate on an engine that they do not hold for.
    """

    folder: str
    name: str | None = None
    operating_point: str | None = DEFAULT
    engine: str = "auto"
    workers: int | None = None
    threads: int | None = None
    allow_other_engine: bool = False

    @property
    def served_name(self) -> str:
        """Return the name by which requests may ask for it: its own, else that of its folder, or its hub name."""
        return self.name or (Path(self.folder).resolve().name if Path(self.folder).is_dir() else self.folder)


@final
@dataclass(frozen=True)
class LadderSettings:
    """How a server moves along its ladder.

    Attributes:
        floor: the name of the loosest point that load may lead to; None = the ladder's loosest.
        latency_target_ms: how soon answers are wanted, of requests that do not say.
        audit_share: of rows, that are audited.
        proposals: the folder of what drift makes the server propose; None = "proposals" in the model's folder.
        depth_budget: layers a row, from which on the server steps to looser points; None = no bound.
    """

    floor: str | None = None
    latency_target_ms: float = LATENCY_TARGET_MS
    audit_share: float = 0.01
    proposals: str | None = None
    depth_budget: float | None = None


@final
@dataclass(frozen=True)
class ServerSettings:
    """Everything that a server is started with.

    Attributes:
        model: that is served.
        limits: of requests.
        ladder: of points along which the server moves; None = every request has the model's point, or its own.
        url: where it listens, for the log.
        api_keys: of which a request must have one; () = any request is answered.
        cors_origins: pages of which sites may ask from a browser; "*" = any; () = none.
        log_format: of the lines on standard error.
        log_level: of the lines on standard error; at "debug" a line for each request.
        print_ready: whether a JSON object with the URL goes to standard output once the server is ready.
        otlp_endpoint: a collector of OpenTelemetry, as "http://localhost:4318"; None = no spans.
        http_restarts: how often the process that speaks HTTP was started again.
    """

    model: ModelSettings
    limits: Limits = field(default_factory=Limits)
    ladder: LadderSettings | None = None
    url: str = ""
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    print_ready: bool = False
    otlp_endpoint: str | None = None
    http_restarts: int = 0

    def to_json(self) -> bytes:
        """Return one line."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> ServerSettings:
        """Return the settings of a line."""
        return msgspec.json.decode(line, type=cls)
