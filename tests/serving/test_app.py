"""The application in process: a service with processes that are played, and one endpoint of a made-up protocol."""

import asyncio
import gzip
import json
import logging
import os
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from offramp.serving.app import App, with_cors
from offramp.serving.endpoint import STATUS, Call, Endpoint, Page, Reply, decode
from offramp.serving.frames import AnswersFrame, ArrayFrame, BatchFrame
from offramp.serving.logs import TextLines, logging_to_stderr
from offramp.serving.metrics import Metrics
from offramp.serving.openapi import openapi
from offramp.serving.protocols.registry import protocol_modules
from offramp.serving.queue import Queue
from offramp.serving.request import Kind, Options, Refusal, Request
from offramp.serving.served import Limits, Served
from offramp.serving.service import Service
from offramp.serving.settings import ModelSettings, ServerSettings

LIMITS = Limits(max_concurrent_requests=4, max_client_batch_size=3, payload_limit=1000)


class Words(msgspec.Struct):
    texts: list[str]


def read(call: Call, served: Served) -> Request:
    texts = decode(call.body, Words).texts
    if texts == ["bug"]:
        raise ZeroDivisionError("a secret")
    return Request(texts, Options(), None)


def write(request: Request, results: Any, served: Served) -> Reply:
    return Reply(json.dumps([result.exit_layer for result in results]).encode())


def refuse(call: Call, refusal: Refusal) -> Reply:
    return Reply(json.dumps({"why": refusal.kind, "text": str(refusal)}).encode(), STATUS[refusal.kind])


ENDPOINT = Endpoint(("/words", "/m/{name}/words"), read, write, refuse, Words, list[int], "Count.", "toy")
PAGE = Page(
    ("/rows",), lambda call, served: Reply(served.name.encode()), refuse, str, "Whether rows are answered.", True
)


class Lengths:
    """A tokenizer: a text's tokens are as many as its characters."""

    def encode(self, items: Any, options: Options) -> tuple[dict[int, Any], dict[int, Refusal]]:
        rows = {number: {"input_ids": [1] * len(text)} for number, text in enumerate(items) if text}
        return rows, {number: Refusal("empty", "blank") for number, text in enumerate(items) if not text}

    def copy(self) -> "Lengths":
        return self


class Process:
    """A process: a row of n tokens leaves after layer n; where it is held, once it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()
        self.batches = self.rows = 0

    async def run(self, batch: BatchFrame, timeout_s: float, *_: Any) -> AnswersFrame:
        self.batches += 1
        await self.released.wait()
        lengths = batch.inputs["input_ids"].array().sum(axis=1)
        logits = ArrayFrame.of(np.zeros((len(lengths), 2), np.float32))
        return AnswersFrame(logits, lengths.tolist(), [False] * len(lengths), {}, None, (), 0.01)


def server(limits: Limits = LIMITS, **settings: Any) -> tuple[App, Process]:
    """An application whose service has one process; in a running event loop."""
    process = Process()
    metrics = Metrics()
    app = App(ServerSettings(ModelSettings("m"), limits, **settings), metrics)
    pool: Any = SimpleNamespace(idle=[process], alive=1, size=2, restarts=3, pids=[], on_idle=None)

    def give_back(process: Process) -> None:
        pool.idle.append(process)
        pool.on_idle()

    pool.give_back = give_back
    served: Any = Served("m", SimpleNamespace(pad_token_id=0), {}, None, "none", (4,), 32, "", 0.0, limits)  # type: ignore[arg-type]
    app.service = metrics.service = Service(served, Lengths(), None, pool, Queue(8, 1000), metrics)  # type: ignore[arg-type]
    return app, process


@pytest.fixture(autouse=True)
def one_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "offramp.serving.app.protocol_modules", lambda: [SimpleNamespace(ENDPOINTS=[ENDPOINT], PAGES=[PAGE])]
    )


class Answer:
    """An answer as ASGI's `send` brings it."""

    status, body = 0, b""
    headers: dict[str, str]

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]


async def ask(
    app: Any,
    path: str,
    *chunks: bytes,
    method: str = "POST",
    root_path: str = "",
    gone: asyncio.Event | None = None,
    **headers: str,
) -> Answer:
    """Send a request in chunks; `gone` = when the client closes the connection."""
    left, answer = list(chunks or [b""]), Answer()

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs, "query_string": b""}
    scope["root_path"] = root_path
    await app(scope, receive, answer)
    return answer


def words(*texts: str) -> bytes:
    return json.dumps({"texts": texts}).encode()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_answers_carry_text_embeddings_inferences_headers() -> None:
    async def main() -> None:
        app, _ = server()
        answer = await ask(app, "/words", words("a", "abc"))
        assert (answer.status, json.loads(answer.body)) == (200, [1, 3])
        assert answer.headers["x-compute-tokens"] == "4"
        for name in ("total", "tokenization", "queue", "inference"):
            assert answer.headers[f"x-{name}-time"].isdecimal()
        assert (await ask(app, "/m/any/words", words("ab"))).body == b"[2]"

    run(main)


@pytest.mark.parametrize(
    ("path", "chunks", "headers", "status", "kind"),
    [
        ("/words", [b"x" * 1001], {}, 413, "body_size"),
        ("/words", [b"x" * 600, b"x" * 600], {}, 413, "body_size"),
        ("/words", [b""], {"content_length": "1001"}, 413, "body_size"),
        ("/words", [gzip.compress(b"x" * 1001)], {"content_encoding": "gzip"}, 413, "body_size"),
        ("/words", [gzip.compress(words("ab"))], {"content_encoding": "GZip"}, 200, None),
        ("/words", [gzip.compress(words("ab"))[:-4]], {"content_encoding": "gzip"}, 400, "malformed"),
        ("/words", [b"no gzip"], {"content_encoding": "gzip"}, 400, "malformed"),
        ("/words", [words("ab")], {"content_encoding": "br"}, 400, "malformed"),
        ("/words", [b"[" * 900], {}, 400, "mistyped"),
        ("/words", [words("ab")[:5], words("ab")[5:]], {}, 200, None),
        ("/words", [words("a", "b", "c", "d")], {}, 422, "batch_size"),
        ("/words", [words("bug")], {}, 500, "failed"),
        ("/nowhere", [b""], {}, 404, None),
    ],
)
def test_statuses(path: str, chunks: list[bytes], headers: dict[str, str], status: int, kind: str | None) -> None:
    async def main() -> None:
        app, _ = server()
        answer = await ask(app, path, *chunks, **headers)
        assert answer.status == status
        assert kind is None or json.loads(answer.body)["why"] == kind
        assert b"secret" not in answer.body
        assert (await ask(app, "/words", words("a"))).status == 200

    run(main)


def test_a_small_body_that_becomes_large_is_refused_before_it_takes_memory() -> None:
    async def main() -> None:
        app, _ = server(Limits(payload_limit=100_000))
        bomb = gzip.compress(bytes(20_000_000))
        assert len(bomb) < 100_000
        tracemalloc.start()
        answer = await ask(app, "/words", bomb, content_encoding="gzip")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (answer.status, peak < 1_000_000) == (413, True)

    run(main)


@pytest.mark.parametrize(("length", "closes"), [("2000", True), ("15", False)])
def test_a_body_that_was_not_asked_for_ends_the_connection(length: str, closes: bool) -> None:
    async def main() -> None:
        app, _ = server()
        answer = await ask(app, "/words", words("a"), expect="100-continue", content_length=length)
        assert (answer.headers.get("connection") == "close") is closes

    run(main)


def test_a_path_with_another_method_names_the_right_one() -> None:
    async def main() -> None:
        app, _ = server()
        answer = await ask(app, "/words", method="GET")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert (await ask(app, "/livez", method="HEAD")).status == 200

    run(main)


def test_a_full_server_answers_429_and_says_when_to_come_again() -> None:
    async def main() -> None:
        app, process = server()
        process.released.clear()
        waiting = [asyncio.create_task(ask(app, "/words", words("a", "b"))) for _ in range(2)]
        await asyncio.sleep(0.01)
        for texts in (("a",), ("a", "b")):  # the same rule for one and for several
            answer = await ask(app, "/words", words(*texts))
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (await ask(app, "/health", method="GET")).status == 200
        process.released.set()
        assert [(await task).status for task in waiting] == [200, 200]

    run(main)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda app: setattr(app, "service", None), 503),
        (lambda app: setattr(app, "draining", True), 503),
        (lambda app: setattr(app.service.pool, "alive", 0), 503),
        (lambda app: None, 200),
    ],
    ids=["starting", "draining", "no process", "ready"],
)
def test_health(change: Callable[[App], None], status: int) -> None:
    async def main() -> None:
        app, _ = server()
        change(app)
        for path in ("/readyz", "/health", "/healthz", "/ping", "/", "/rows"):
            assert (await ask(app, path, method="GET")).status == status, path
        assert ((await ask(app, "/", method="GET")).body == b'{"status":"alive"}') == (status == 200)
        for path in ("/livez", "/v2/health/live"):
            assert (await ask(app, path, method="GET")).status == 200
        if app.service is None:
            answer = await ask(app, "/words", words("a"))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")

    run(main)


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", "/words", None, 401),
        ("POST", "/words", "Bearer wrong", 401),
        ("POST", "/words", "Bearer one\xe9", 401),
        ("POST", "/words", "one", 401),
        ("POST", "/words", "Bearer one", 200),
        ("POST", "/words", "bearer two", 200),
        ("POST", "/words", "Basic two", 401),
        ("POST", "/", None, 401),
        ("GET", "/openapi.json", None, 401),
        ("GET", "/nowhere", None, 401),
        *(("GET", path, None, 200) for path in ("/", "/health", "/livez", "/readyz", "/ping", "/metrics")),
    ],
)
def test_keys(method: str, path: str, key: str | None, status: int) -> None:
    async def main() -> None:
        app, _ = server(api_keys=("one", "two"))
        headers = {} if key is None else {"authorization": key}
        answer = await ask(app, path, words("a"), method=method, **headers)
        assert answer.status == status
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        if status == 401:  # in the form of the wire format, if there is one
            assert answer.body.startswith(b'{"why": "unauthorized"') if path == "/words" else answer.body == b""

    run(main)


def test_a_server_below_a_prefix_has_the_same_paths() -> None:
    async def main() -> None:
        app, _ = server()
        for path in ("/words", "/a/words"):
            assert (await ask(app, path, words("a"), root_path=path.removesuffix("/words"))).status == 200
        assert (await ask(app, "/a", method="GET", root_path="/a")).status == 200
        assert (await ask(app, "/a/words", words("a"), root_path="/b")).status == 404

    run(main)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/words", b'{"why": "unknown_model"'),
        ("/health", b'{"error":"no model","error_type":"unknown_model"}'),
        ("/nowhere", b'{"error":"no model","error_type":"unknown_model"}'),
    ],
)
def test_a_refusal_from_outside_has_the_form_of_the_route(path: str, body: bytes) -> None:
    async def main() -> None:
        app, process = server()
        refusal = Refusal("unknown_model", "no model")
        method = "POST" if path == "/words" else "GET"

        async def refused(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send, refusal)

        answer = await ask(refused, path, words("a"), method=method)
        assert (answer.status, process.batches) == (404, 0)
        assert answer.body.startswith(body)

    run(main)


@pytest.mark.parametrize(
    ("own", "kept"), [("abc-1.2_3:4", True), ("", False), ("x" * 129, False), ("a\nb", False), ("a b", False)]
)
def test_request_ids(own: str, kept: bool) -> None:
    async def main() -> None:
        app, _ = server()
        first, second = [(await ask(app, "/words", words("a"), x_request_id=own)).headers for _ in range(2)]
        assert (first["x-request-id"] == own) is kept
        assert (first["x-request-id"] == second["x-request-id"]) is kept

    run(main)


def test_a_client_that_goes_costs_nothing_more() -> None:
    async def main() -> None:
        app, process = server()
        process.released.clear()
        first = asyncio.create_task(ask(app, "/words", words("a")))
        await asyncio.sleep(0.01)
        gone = asyncio.Event()
        second = asyncio.create_task(ask(app, "/words", words("b"), gone=gone))
        await asyncio.sleep(0.01)
        assert app.service is not None
        assert len(app.service.queue) == 1
        gone.set()
        assert (await second).status == 0
        assert len(app.service.queue) == 0
        process.released.set()
        assert (await first).body == b"[1]"
        assert (process.batches, app.service.rows) == (1, 0)
        values = await metrics_of(app)
        assert values["offramp_requests_total", "toy", "/words", "499"] == 1

    run(main)


async def metrics_of(app: App) -> dict[tuple[str, ...], float]:
    """The values of GET /metrics by the names of the samples and the values of their labels."""
    text = (await ask(app, "/metrics", method="GET")).body.decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:  # the parser adds to counters the "_total" that te_ counters do not have
            name = sample.name.removesuffix("_total") if sample.name.startswith("te_") else sample.name
            values[(name, *sample.labels.values())] = sample.value
    return values


def test_metrics_are_what_was_asked() -> None:
    async def main() -> None:
        app, process = server()
        for texts in (("a",), ("ab",), ("abc", "ab"), ("", "a"), ("a", "b", "c", "d")):
            await ask(app, "/words", words(*texts))
        await ask(app, "/m/1/words", b"no json")
        await ask(app, "/m/2/words", words("bug"))
        await ask(app, "/nowhere")
        process.released.clear()
        held = []
        for _ in range(2):  # the first one is with the process, the second one waits
            held.append(asyncio.create_task(ask(app, "/words", words("a", "b"))))
            await asyncio.sleep(0.01)
        assert (await ask(app, "/words", words("a"))).status == 429
        values = await metrics_of(app)
        process.released.set()
        await asyncio.gather(*held)

        expected = {
            ("offramp_requests_total", "toy", "/words", "200"): 4,
            ("offramp_requests_total", "toy", "/words", "422"): 1,
            ("offramp_requests_total", "toy", "/words", "400"): 1,
            ("offramp_requests_total", "toy", "/words", "500"): 1,
            ("offramp_requests_total", "toy", "/words", "429"): 1,
            ("offramp_requests_total", "none", "none", "404"): 1,
            ("offramp_rows_total", "1", "full"): 2,
            ("offramp_rows_total", "2", "full"): 2,
            ("offramp_rows_total", "3", "full"): 1,
            ("offramp_row_failures_total", "empty"): 1,
            ("offramp_layers_saved_ratio",): 1 - 9 / (5 * 4),
            ("offramp_batch_rows_count",): 4,
            ("offramp_batch_tokens_sum",): 1 + 2 + 6 + 1,
            ("offramp_request_seconds_count", "toy"): 4,
            ("offramp_request_phase_seconds_count", "queue"): 4,
            ("offramp_request_tokens_sum",): 1 + 2 + 5 + 1,
            ("offramp_queue_rows",): 2,
            ("offramp_rows_in_flight",): 4,
            ("offramp_processes", "busy"): 1,
            ("offramp_processes", "missing"): 1,
            ("offramp_process_restarts_total", "inference"): 3,
            ("te_request_count", "single"): 3,  # two answered, one refused since the server was full
            ("te_request_count", "batch"): 3,
            ("te_request_success", "single"): 2,
            ("te_request_success", "batch"): 2,
            ("te_request_failure", "batch_size"): 1,
            ("te_request_failure", "overloaded"): 1,
            ("te_request_failure", "validation"): 1,
            ("te_request_failure", "inference"): 1,
            ("te_predict_count",): 6,
            ("te_predict_success",): 5,
            ("te_queue_size",): 2,
            ("te_batch_next_size_sum",): 5,
            ("te_batch_next_tokens_bucket", "+Inf"): 4,
            ("te_request_duration_count",): 4,
        }
        assert {name: values.get(name) for name in expected} == pytest.approx(expected)

    run(main)


def test_every_reason_of_a_refusal_has_text_embeddings_inferences_word() -> None:
    metrics = Metrics()
    for kind in get_args(Kind):
        metrics.request_done(("toy", "/words", 400), 0.1, kind, 0, None)
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("te_request_failure{")]
    words = {"validation", "model_type", "batch_size", "overloaded", "inference"}
    assert {line.split('"')[1] for line in lines} == words
    assert sum(float(line.split()[1]) for line in lines) == len(get_args(Kind))


def test_a_span_belongs_to_the_callers_trace() -> None:
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from offramp.serving.traces import Traces

    sent: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sent.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    async def main(traces: Traces) -> None:
        app, _ = server()
        app.traces = traces
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert (await ask(app, "/words", words("ab", "a"), traceparent=trace)).status == 200
        await ask(app, "/words", words("bug"))

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        traces = Traces(f"http://127.0.0.1:{collector.server_port}")
        asyncio.run(main(traces))
        traces.close()
        collector.shutdown()
        thread.join()
    spans = [
        span
        for body in sent
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [(span.name, span.status.code) for span in spans] == [("POST /words", 0), ("POST /words", 2)]
    assert (spans[0].trace_id.hex(), spans[0].parent_span_id.hex()) == (
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
    )
    values = {attribute.key: attribute.value for attribute in spans[0].attributes}
    assert [value.int_value for value in values["offramp.exit_layers"].array_value.values] == [2, 1]


def test_pages_of_named_sites_may_ask_from_a_browser_and_others_not() -> None:
    async def main() -> None:
        for origins, allowed in (((), None), (("https://a.example",), "https://a.example")):
            app, _ = server(cors_origins=origins)
            answer = await ask(with_cors(app), "/words", words("a"), origin="https://a.example")
            assert answer.headers.get("access-control-allow-origin") == allowed

    run(main)


def test_the_openapi_document_is_valid_and_names_every_route() -> None:
    modules = list(protocol_modules())
    document = json.loads(msgspec.json.encode(openapi(modules)))
    validate(document)
    routes = [route for module in modules for name in ("ENDPOINTS", "PAGES") for route in getattr(module, name, ())]
    for route in routes:
        assert {path.replace(":path", "") for path in route.paths} <= set(document["paths"])
    assert {"/metrics", "/readyz"} <= set(document["paths"])


@pytest.mark.parametrize(("level", "routes"), [("debug", ["/words", "/words"]), ("info", ["/words"])])
def test_the_log_has_failed_requests_and_at_debug_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, routes: list[str]
) -> None:
    async def main() -> None:
        app, _ = server()
        await ask(app, "/words", words("ab", "a"), x_request_id="mine")
        await ask(app, "/words", words("bug"))

    path = tmp_path / "log"
    with path.open("w") as file:
        monkeypatch.setattr("sys.stderr", file)
        with logging_to_stderr("json", level):
            run(main)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [line["route"] for line in requests] == routes
    assert (requests[-1]["status"], requests[-1]["level"]) == (500, "warning")
    assert any("ZeroDivisionError" in line.get("exception", "") for line in lines)
    if level == "debug":
        facts = {name: requests[0][name] for name in ("request_id", "status", "rows", "exit_layers")}
        assert facts == {"request_id": "mine", "status": 200, "rows": 2, "exit_layers": [2, 1]}


def test_a_log_that_cannot_be_written_stops_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        app, _ = server()
        for _ in range(50):
            assert (await ask(app, "/words", words("ab"))).status == 200

    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("sys.stderr", full)
        with logging_to_stderr("text", "debug"):
            run(main)
        with pytest.raises(OSError, match="No space left"):
            full.write(b"x")


def test_a_line_of_text_stays_one_line() -> None:
    record = logging.makeLogRecord({"msg": "a\nb %s", "args": ("\x1b[31m",), "facts": {"error": "c\rd é"}})
    assert TextLines().format(record).endswith(r"a\nb \x1b[31m error=c\rd é")


def test_a_log_that_nobody_reads_stops_neither_an_answer_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr("offramp.serving.logs.WAITING_LINES", 5)
    monkeypatch.setattr("offramp.serving.logs.END_S", 0.05)
    with os.fdopen(reader, "rb") as end, os.fdopen(writer, "wb") as begin:
        monkeypatch.setattr("sys.stderr", begin)
        with logging_to_stderr("text", "info"):
            for number in range(100):
                logging.getLogger("offramp.serving").info("line %d %s", number, "x" * 100_000)
            handler: Any = logging.getLogger("offramp").handlers[0]
            assert handler.queue.qsize() <= 5  # the others are dropped
        first = os.read(end.fileno(), 200_000).splitlines()[0]
        assert b"line 0" in first
