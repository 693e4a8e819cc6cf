"""Spans for OpenTelemetry: one for each request, within the caller's trace (`traceparent`). Imported only if wanted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


@final
class Traces:
    """Sends spans to a collector, from a thread of its own; where it does not answer, spans are dropped."""

    def __init__(self, endpoint: str) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "offramp")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("offramp.serving")
        self._propagator = TraceContextTextMapPropagator()

    def add(self, headers: Mapping[str, str], method: str, seconds: float, facts: Mapping[str, Any]) -> None:
        """Record the span of a request that ends now.

        Args:
            headers: of the request.
            method: of the request.
            seconds: that it took.
            facts: of its line in the log.
        """
        end = time.time_ns()
        route, status = facts["route"], facts["status"]
        own = {f"offramp.{name}": value for name, value in facts.items() if name not in ("route", "status", "ms")}
        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(headers),
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route, "http.response.status_code": status, **own},
            start_time=end - int(seconds * 1e9),
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, facts.get("error")))
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
