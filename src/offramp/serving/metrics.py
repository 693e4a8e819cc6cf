"""What a server counts, for Prometheus: `GET /metrics`.

All counts are those of the process that speaks HTTP, which sees every request and every row; so they are right with any
number of processes that run the model. The names of text-embeddings-inference are computed from them (`tei_metrics`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from offramp.serving.served import FULL
from offramp.serving.settings import VERSION
from offramp.serving.tei_metrics import tei_text
from offramp.serving.ui.traffic import Traffic

if TYPE_CHECKING:
    from offramp.serving.audit import Audit
    from offramp.serving.ladder import Ladder
    from offramp.serving.request import Kind
    from offramp.serving.running import Running
    from offramp.serving.service import Service

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PHASES = ("tokenization", "queue", "inference")


@final
class Metrics:
    """Counts requests, rows and batches; the watcher of a `Service`.

    Attributes:
        registry: of the counters.
        service: whose state is read when the metrics are; None = not yet there.
        traffic: of the last minute.
    """

    def __init__(self, http_restarts: int = 0) -> None:
        self.registry = CollectorRegistry()
        self.traffic = Traffic(time.monotonic)
        self.service: Service | None = None
        self._http_restarts = http_restarts
        registry = self.registry
        self._requests = Counter("offramp_requests", "Requests.", ("protocol", "route", "status"), registry=registry)
        self._failures = Counter(
            "offramp_request_failures", "Requests that were refused, by reason.", ("kind",), registry=registry
        )
        self._rows = Counter(
            "offramp_rows", "Rows that were answered.", ("layer", "operating_point"), registry=registry
        )
        self._row_failures = Counter(
            "offramp_row_failures", "Rows without an answer, by reason.", ("kind",), registry=registry
        )
        self._retried = Counter(
            "offramp_rows_retried", "Rows that ran once more, after their process ended.", registry=registry
        )
        self._seconds = Histogram(
            "offramp_request_seconds", "Time to answer a request.", ("protocol",), buckets=SECONDS, registry=registry
        )
        phases = Histogram(
            "offramp_request_phase_seconds",
            "Time of a request's phases.",
            ("phase",),
            buckets=SECONDS,
            registry=registry,
        )
        self._phases = [phases.labels(phase) for phase in PHASES]
        sizes = Histogram("offramp_request_rows", "Rows of a request.", ("outcome",), buckets=ROWS, registry=registry)
        self._sizes = {outcome: sizes.labels(outcome) for outcome in ("answered", "refused")}
        self._tokens = Histogram("offramp_request_tokens", "Tokens of a request.", buckets=TOKENS, registry=registry)
        self._batch_rows = Histogram("offramp_batch_rows", "Rows of a batch.", buckets=ROWS, registry=registry)
        self._batch_tokens = Histogram(
            "offramp_batch_tokens", "Tokens of a batch, with padding.", buckets=TOKENS, registry=registry
        )
        self._batch_seconds = Histogram(
            "offramp_batch_seconds", "Time that the engine took for a batch.", buckets=SECONDS, registry=registry
        )
        self._by_request: dict[tuple[str, str, int], Counter] = {}
        self._by_row: dict[tuple[int, str], Counter] = {}
        self._by_protocol: dict[str, Histogram] = {}
        self._layer_sum = self._row_count = 0
        registry.register(_State(self))

    def row_left(self, layer: int, point: str) -> None:
        """Count a row with an answer."""
        child = self._by_row.get((layer, point))
        if child is None:
            child = self._by_row[layer, point] = self._rows.labels(str(layer), point)
        child.inc()
        self.traffic.row_left(layer, point)
        self._layer_sum += layer
        self._row_count += 1

    def row_failed(self, kind: str) -> None:
        """Count a row without an answer."""
        self._row_failures.labels(kind).inc()

    def batch_done(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_rows.observe(rows)
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)

    def rows_retried(self, rows: int) -> None:
        """Count rows of a process that ended."""
        self._retried.inc(rows)

    def request_done(
        self, route: tuple[str, str, int], seconds: float, kind: Kind | None, rows: int, running: Running | None
    ) -> None:
        """Count a request.

        Args:
            route: the protocol of its endpoint, the endpoint's first path, the status of the answer (499 = the client
                has gone).
            seconds: from its headers to its answer.
            kind: why it was refused; None = it was not.
            rows: that it has; 0 = it could not be read.
            running: its rows, where a service accepted them.
        """
        child = self._by_request.get(route)
        if child is None:
            child = self._by_request[route] = self._requests.labels(route[0], route[1], str(route[2]))
        child.inc()
        answered = kind is None and running is not None and running.answered > 0
        if kind is not None:
            self._failures.labels(kind).inc()
        if rows:
            self._sizes["answered" if answered else "refused"].observe(rows)
            if route[0] != "ui":
                self.traffic.request_done(seconds if answered else None)
        if running is None or not answered:
            return
        total = self._by_protocol.get(route[0])
        if total is None:
            total = self._by_protocol[route[0]] = self._seconds.labels(route[0])
        total.observe(seconds)
        self._tokens.observe(running.tokens)
        for phase, value in zip(self._phases, phase_seconds(running), strict=True):
            phase.observe(value)

    def layers_saved(self) -> float:
        """Return the share of layers that the rows so far did not run, 0 to 1."""
        if self.service is None or not self._row_count:
            return 0.0
        return 1 - self._layer_sum / (self._row_count * self.service.served.layers_read[-1])

    def state(self) -> Iterable[Metric]:
        """Yield what holds at this moment."""
        yield GaugeMetricFamily("offramp_layers_saved_ratio", "Share of layers not run.", self.layers_saved())
        yield _memory(self.service)
        restarts = CounterMetricFamily("offramp_process_restarts", "Processes started again.", labels=("process",))
        restarts.add_metric(("http",), self._http_restarts)
        service = self.service
        restarts.add_metric(("inference",), 0 if service is None else service.pool.restarts)
        yield restarts
        waiting = 0 if service is None else len(service.queue)
        yield GaugeMetricFamily("offramp_queue_rows", "Rows that wait for a process.", waiting)
        rows = 0 if service is None else service.rows
        yield GaugeMetricFamily("offramp_rows_in_flight", "Rows that were accepted and have no answer yet.", rows)
        if service is None:
            return
        points = GaugeMetricFamily("offramp_operating_point", "1 = in force.", labels=("operating_point",))
        in_force = served_point(service)
        for name in dict.fromkeys((FULL, *service.served.points)):
            points.add_metric((name,), float(name == in_force))
        yield points
        if service.adaptive is not None and service.adaptive.audit is not None:
            yield from _audit_metrics(service.adaptive.audit, service.adaptive.ladder)
        depth = None if service.adaptive is None else service.adaptive.depth
        if depth is not None:
            yield GaugeMetricFamily("offramp_mean_depth", "Layers a row, in the last window.", depth.mean)
        processes = GaugeMetricFamily("offramp_processes", "Processes that run the model.", labels=("state",))
        idle, alive = len(service.pool.idle), service.pool.alive
        for name, count in (("idle", idle), ("busy", alive - idle), ("missing", service.pool.size - alive)):
            processes.add_metric((name,), count)
        yield processes
        build = GaugeMetricFamily("offramp_build_info", "What is served.", labels=("version", "model", "engine"))
        build.add_metric((VERSION, service.served.name, service.served.engine), 1)
        yield build

    def text(self) -> bytes:
        """Return everything in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry) + tei_text(list(self.registry.collect())).encode()


@final
class _State:
    """Yields what holds at the moment of the scrape, as a collector of prometheus_client."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.state()


def _audit_metrics(audit: Audit, ladder: Ladder) -> Iterable[Metric]:
    """Yield what the audit has counted, and for each point that it watches what is known of it."""
    rows = CounterMetricFamily("offramp_audit_rows", "Rows drawn for the audit.", labels=("outcome",))
    rows.add_metric(("audited",), audit.audited)
    rows.add_metric(("dropped",), audit.dropped)
    yield rows
    name = ("operating_point",)
    alarms = CounterMetricFamily("offramp_drift_alarms", "Points that are no longer used.", labels=name)
    bounds = GaugeMetricFamily(
        "offramp_agreement_bound", "The agreement with full depth was below it, with confidence.", labels=name
    )
    for rung, monitor in audit.monitors.items():
        alarms.add_metric((ladder.rungs[rung].name,), audit.alarms.count(rung))
        bounds.add_metric((ladder.rungs[rung].name,), monitor.bound)
    yield alarms
    yield bounds


def served_point(service: Service) -> str:
    """Return the name of the point of requests that name none."""
    if service.adaptive is not None:
        return service.adaptive.point
    return service.served.default_point or FULL


def phase_seconds(running: Running) -> Sequence[float]:
    """Return the seconds of an answered request's PHASES."""
    return (
        running.tokenized - running.begin,
        running.dequeued - running.tokenized,
        max(running.answered - running.dequeued, 0.0),
    )


def _memory(service: Service | None) -> Metric:
    """Return the resident memory of the processes, where the system has /proc."""
    family = GaugeMetricFamily("offramp_resident_memory_bytes", "Resident memory.", labels=("process",))
    pids = [] if service is None else service.pool.pids
    for name, numbers in (("supervisor", [os.getppid()]), ("http", [os.getpid()]), ("inference", pids)):
        pages = [_pages(pid) for pid in numbers]
        if None not in pages:
            family.add_metric((name,), sum(count for count in pages if count) * os.sysconf("SC_PAGE_SIZE"))
    return family


def _pages(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
