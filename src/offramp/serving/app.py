"""The ASGI application: all wire formats of `protocols`, health, metrics, OpenAPI; keys, limits and the log.

A row that leaves before the first layer is answered within its request's own task, so what stands before and behind it
is one pass over headers and one look into a table of paths; Starlette matches what has parameters in its path.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path

from offramp.serving.endpoint import Call, Reply
from offramp.serving.exchange import ClientGone, Exchange
from offramp.serving.handlers import BodyHandler, EndpointHandler, PageHandler, Path, Refuse, starting
from offramp.serving.metrics import Metrics
from offramp.serving.openapi import openapi
from offramp.serving.protocols.registry import protocol_modules
from offramp.serving.replies import answer_headers, no_route, plain_error, plain_refusal
from offramp.serving.request import Refusal
from offramp.serving.settings import ServerSettings
from offramp.serving.ui.routes import FILES, Ui, refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from offramp.serving.service import Service
    from offramp.serving.traces import Traces

log = logging.getLogger("offramp.serving")

CLIENT_GONE = 499
"""The status in the metrics of a request whose client closed the connection; nginx has the same."""
_PAGES = ("/", "/health", "/healthz", "/livez", "/readyz", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready")
OPEN = frozenset((*_PAGES, *FILES))
"""Paths whose GET needs no key."""
Answer = Callable[[Exchange, Path], Awaitable[tuple[Reply, "Refusal | None"]]]


@final
@dataclass(frozen=True)
class Route:
    """What answers one method of a path.

    Attributes:
        name: the first path, for the metrics.
        protocol: for the metrics.
        answer: returns the reply, and the refusal if it is one.
        refuse: returns the reply to a request that is refused before it is read.
    """

    name: str
    protocol: str
    answer: Answer
    refuse: Refuse


@final
class App:
    """The application.

    Attributes:
        settings: of the server.
        metrics: that it counts in.
        service: answers the rows; None = the model is being loaded.
        draining: whether the server ends.
        ui: the page.
        traces: where spans go; None = nowhere.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.traces = _traces(settings.otlp_endpoint)
        self.service: Service | None = None
        self.draining = False
        self._keys = [key.encode() for key in settings.api_keys]
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        self.ui = Ui(metrics.traffic)
        self._openapi = b""
        self._mount()

    # --- routes ---------------------------------------------------------------------------------------------

    def _mount(self) -> None:
        for module in protocol_modules():
            for endpoint in getattr(module, "ENDPOINTS", ()):
                answer = BodyHandler(self, EndpointHandler(endpoint), endpoint.refuse)
                self._add("POST", endpoint.paths, endpoint.protocol, answer, endpoint.refuse)
            for page in getattr(module, "PAGES", ()):
                self._add("GET", page.paths, "pages", PageHandler(self, page), page.refuse)
        self._add("GET", ("/health", "/healthz", "/ping", "/readyz", "/"), "pages", self._health)
        self._add("GET", ("/livez", "/v2/health/live"), "pages", self._live)
        self._add("GET", ("/metrics",), "pages", self._metrics)
        self._add("GET", ("/openapi.json",), "pages", self._document)
        for path in FILES:
            self._add("GET", (path,), "ui", self._file)
        self._add("GET", ("/ui/traffic",), "ui", self._traffic, refuse)
        self._add("POST", ("/ui/explain",), "ui", BodyHandler(self, self.ui.explain, refuse), refuse)

    def _add(
        self, method: str, paths: tuple[str, ...], protocol: str, answer: Answer, refuse: Refuse = plain_refusal
    ) -> None:
        route = Route(paths[0], protocol, answer, refuse)
        for path in paths:
            if "{" not in path:
                methods = self._exact.setdefault(path, {})
            else:
                pattern = compile_path(path)[0]
                methods = next((routes for known, routes in self._patterns if known == pattern), {})
                if not methods:
                    self._patterns.append((pattern, methods))
            if method in methods:
                raise ValueError(f"two routes for {method} {path}")
            methods[method] = route

    def _find(self, path: str) -> tuple[Mapping[str, Route], Path]:
        """Return the methods of a path and the values of its parameters."""
        methods = self._exact.get(path)
        if methods is not None:
            return methods, {}
        for pattern, methods in self._patterns:
            if match := pattern.match(path):
                return methods, match.groupdict()
        return {}, {}

    # --- requests -------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send, refusal: Refusal | None = None) -> None:
        """Answer a request; where there is a refusal already, with that, in the form of the request's route."""
        if scope["type"] != "http":
            raise RuntimeError(f"this server does not speak {scope['type']}")
        begin = time.perf_counter()
        exchange = Exchange(scope, receive, send)
        methods, values = self._find(exchange.path)
        route = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if not self._allowed(exchange):
            refusal = Refusal("unauthorized", "no key, or a wrong one: send the header Authorization: Bearer KEY")
        if refusal is not None:
            reply = (route.refuse if route else plain_refusal)(Call(b"", exchange.headers, values), refusal)
        elif route is None:
            reply = no_route(exchange.method, exchange.path, methods)
        else:
            try:
                reply, refusal = await route.answer(exchange, values)
            except ClientGone:
                self._count(exchange, route, CLIENT_GONE, begin, None)
                return
        self._count(exchange, route, reply.status, begin, refusal)
        extra = answer_headers(exchange.running, refusal, begin)
        if self.draining or (exchange.untouched and "expect" in exchange.headers):
            # the next request goes elsewhere; or the body was not asked for, and may come
            extra["connection"] = "close"
        await exchange.reply(reply, extra)

    def _allowed(self, exchange: Exchange) -> bool:
        """Return whether a request has a key; every key is compared, each in constant time."""
        if not self._keys or (exchange.path in OPEN and exchange.method in ("GET", "HEAD")):
            return True
        scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
        equal = [hmac.compare_digest(key.encode("latin-1"), known) for known in self._keys]
        return scheme.lower() == "bearer" and any(equal)

    def _count(
        self, exchange: Exchange, route: Route | None, status: int, begin: float, refusal: Refusal | None
    ) -> None:
        seconds = time.perf_counter() - begin
        name, protocol = (route.name, route.protocol) if route else ("none", "none")
        kind = None if refusal is None else refusal.kind
        self.metrics.request_done((protocol, name, status), seconds, kind, exchange.rows, exchange.running)
        level = logging.WARNING if status >= 500 and status != 503 else logging.DEBUG
        logged = log.isEnabledFor(level)
        if not logged and self.traces is None:
            return
        layers = [] if exchange.running is None else [row.exit_layer for row in exchange.running.rows()]
        facts: dict[str, Any] = {
            "request_id": exchange.request_id,
            "route": name,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "rows": exchange.rows,
            "exit_layers": layers,
        }
        if refusal is not None:
            facts["error"] = str(refusal)
        if logged:
            log.log(level, "request", extra={"facts": facts})
        if self.traces is not None:
            self.traces.add(exchange.headers, exchange.method, seconds, facts)

    async def close(self) -> None:
        """End what runs beside the requests: the processes of the model and of the page, the sending of spans."""
        await self.ui.close()
        if self.service is not None:
            await self.service.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)

    # --- pages of the server --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Return whether rows are answered: the model is warm, a process lives, and the server does not end."""
        service = self.service
        return service is not None and not self.draining and service.pool.alive > 0

    @property
    def reason(self) -> str:
        """Return why no rows are answered."""
        return "the server is shutting down" if self.draining else "no process that runs the model is ready"

    async def _health(self, exchange: Exchange, path: Path) -> tuple[Reply, None]:
        if self.ready:
            return Reply(b'{"status":"alive"}'), None  # KServe's words, which its client looks for
        return plain_error(503, self.reason, "unhealthy"), None

    async def _live(self, exchange: Exchange, path: Path) -> tuple[Reply, None]:
        return Reply(b'{"live":true}'), None

    async def _metrics(self, exchange: Exchange, path: Path) -> tuple[Reply, None]:
        return Reply(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"), None

    async def _file(self, exchange: Exchange, path: Path) -> tuple[Reply, None]:
        return FILES[exchange.path], None

    async def _traffic(self, exchange: Exchange, path: Path) -> tuple[Reply, Refusal | None]:
        if self.service is None:
            refusal = starting()
            return refuse(Call(), refusal), refusal
        return self.ui.state(self.service), None

    async def _document(self, exchange: Exchange, path: Path) -> tuple[Reply, None]:
        if not self._openapi:
            self._openapi = msgspec.json.encode(openapi(list(protocol_modules())))
        return Reply(self._openapi), None


def _traces(endpoint: str | None) -> Traces | None:
    if endpoint is None:
        return None
    from offramp.serving.traces import Traces

    return Traces(endpoint)


def with_cors(app: App) -> ASGIApp:
    """Return the application, answering pages of the sites that the settings name."""
    origins = list(app.settings.cors_origins)
    if not origins:
        return app
    return CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
