"""Requests that no honest client sends, for a running server of a tiny model called "tiny".

Bodies are valid ones of every wire format with one value replaced, dropped, or doubled; their bytes may be cut short.
`connections` has what no HTTP library sends: halves, several requests at once, other methods, odd headers and paths.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

BOUND_S = 20.0
"""A server that takes longer for an answer hangs; a busy machine is slow too."""
TEXT = "the cat is good"
QUESTION = {
    "type": "choice",
    "instructions": "which?",
    "choices": [{"value": name} for name in ("bad", "fine", "good")],
}
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
EARLY_EXIT = {"operating_point": "full", "max_depth": 3, "details": True}

BODIES: dict[str, tuple[Any, ...]] = {
    "/predict": ({"inputs": TEXT}, {"inputs": [["a", "b"], [TEXT]], "raw_scores": True, "early_exit": EARLY_EXIT}),
    "/": ({"inputs": TEXT}, {"inputs": [TEXT], "parameters": {"top_k": 2, "function_to_apply": "softmax"}}),
    "/rerank": ({"query": "a", "texts": [TEXT, "b"], "return_text": True}, {"query": "a", "documents": [TEXT]}),
    "/classify": ({"input": [TEXT], "model": "tiny"}, {"input": [1, 5, 6, 2], "truncate_prompt_tokens": 3}),
    "/score": ({"text_1": "a", "text_2": [TEXT], "model": "tiny"},),
    "/v2/rerank": ({"query": "a", "documents": [TEXT, "b"], "top_n": 1},),
    "/v1/models/tiny:predict": ({"instances": [TEXT, {"text": "a", "text_pair": "b"}, ["a", "b"]]},),
    "/v2/models/tiny/infer": (
        {"inputs": [TENSOR], "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}]},
        {"id": "1", "inputs": [TENSOR], "parameters": {"max_depth": 2, "details": True}},
    ),
    "/v1/moderations": ({"input": [TEXT, {"type": "text", "text": "a"}], "model": "tiny", "early_exit": EARLY_EXIT},),
    "/v1/decisions": ({"input": [{"role": "user", "content": TEXT}], "questions": [QUESTION]},),
    "/v1/systemone": (
        {"state": TEXT, "questions": {"q": {"type": "choice", "criteria": {"bad": None, "fine": None, "good": None}}}},
    ),
}
TWO_CLASSES = ("/rerank", "/score", "/v2/rerank", "/v1/moderations")
"""Paths that a model with three classes refuses."""

_CHARACTERS = st.characters(exclude_categories=())  # control characters and lone surrogates too
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0]),
    st.floats(),
    st.text(_CHARACTERS, max_size=20),
    st.sampled_from(["", " ", "\0", "\x1b[2J", "\ud83d", "\u202e", "full", "a" * 70_000, "\u0301" * 3000, "../../etc"]),
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
_LARGE: tuple[Any, ...] = (["a"] * 33, ["a b c"] * 5000, [[]] * 2000)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """The containers and keys of all values inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *_places(inner)]]


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """A body for a path, most of them wrong in one value."""
    body = json.loads(json.dumps(draw(st.sampled_from(BODIES[path]))))
    container, key = draw(st.sampled_from(_places(body)))
    change = draw(st.sampled_from(["replace"] * 8 + ["large", "drop", "add", "nothing"]))
    if change == "replace":
        container[key] = draw(_VALUES)
    elif change == "large":
        container[key] = draw(st.sampled_from(_LARGE))
    elif change == "drop":
        del container[key]
    elif change == "add" and isinstance(container, dict):
        container[draw(st.text(_CHARACTERS, max_size=5))] = draw(_VALUES)
    content = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 15)):
        case 0:
            return content[: draw(st.integers(0, len(content)))]
        case 1:
            return content.replace(b"{", b'{"inputs": null, "input": 7, ', 1)  # a name twice
        case 2:
            return draw(st.binary(max_size=40)) + content
        case 3:
            return b"[" * draw(st.sampled_from([1, 500, 100_000])) + content
    return content


HEADERS: tuple[dict[str, str], ...] = (
    *({"content-type": "application/json"},) * 12,
    {},
    {"content-type": "text/plain; charset=utf-16"},
    {"content-type": "multipart/form-data"},
    {"content-encoding": "gzip"},
    {"content-encoding": "br"},
    {"x-request-id": "\xff" * 300},
    {"authorization": "Bearer \xe9"},
    {"inference-header-content-length": "-1"},
    {"inference-header-content-length": "9" * 30},
    {"inference-header-content-length": "10"},
    {"expect": "100-continue"},
    {"traceparent": "00-zz"},
    {"x-many": "a" * 8000},
)


class Abuser:
    """Sends requests to a server and counts the statuses of its answers.

    Attributes:
        port: of the server, on this machine.
        statuses: of the answers so far; "closed" where the server closed the connection without one.
        faults: requests that got what no request may get.
        slowest_s: the longest that a request took.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.statuses = Counter[str]()
        self.faults: list[str] = []
        self.slowest_s = 0.0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_S)

    def send(self, path: str, body: bytes | Iterator[bytes], headers: dict[str, str], method: str = "POST") -> bytes:
        """Send a request; return the answer's body, empty where its status is not 200."""
        begin = time.perf_counter()
        try:
            chunked = not isinstance(body, bytes)
            self._connection.request(method, path, body, headers, encode_chunked=chunked)
            answer = self._connection.getresponse()
            content, status = answer.read(), answer.status
        except (ConnectionError, http.client.RemoteDisconnected):  # a body that is too large is not read to its end
            self._connection.close()
            self.statuses["closed"] += 1
            return b""
        except (TimeoutError, http.client.HTTPException) as error:
            self._connection.close()
            self._fault(f"{method} {path[:80]}: {type(error).__name__}")
            return b""
        self._count(
            f"{method} {path[:80]} {headers} {body[:300]!r}" if isinstance(body, bytes) else path, status, begin
        )
        if status != 200 or method == "HEAD":
            return b""
        return content

    def send_raw(self, content: bytes, half: bool = False) -> None:
        """Send bytes on a connection of their own; with `half` hang up, else count what comes back."""
        begin = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port), BOUND_S) as connection:
            connection.sendall(content)
            if half:
                self.statuses["half"] += 1
                return
            connection.shutdown(socket.SHUT_WR)
            received = bytearray()
            try:
                while part := connection.recv(1 << 16):
                    received += part
            except ConnectionResetError:
                pass
            except TimeoutError:
                self._fault(f"no end of the answer to {content[:80]!r}")
        statuses = [int(line[9:12]) for line in bytes(received).split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        for status in statuses:
            self._count(repr(content[:200]), status, begin)
        if not statuses:
            self.statuses["closed"] += 1

    def close(self) -> None:
        self._connection.close()

    def _count(self, request: str, status: int, begin: float) -> None:
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begin)
        self.statuses[str(status)] += 1
        if status >= 500 and status != 503:
            self._fault(f"{status}: {request}")

    def _fault(self, fault: str) -> None:
        self.statuses["fault"] += 1
        self.faults.append(fault)


def head(method: str = "POST", path: str = "/predict", *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: a", *lines, "", ""]).encode("latin-1")


def connections() -> list[tuple[bytes, bool]]:
    """What is sent on a connection of its own, and whether the client then hangs up."""
    body = json.dumps({"inputs": TEXT}).encode()
    whole = head("POST", "/predict", f"content-length: {len(body)}") + body
    chunked = head("POST", "/predict", "transfer-encoding: chunked")
    paths = ("/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//predict", "/predict/", "/predict?a=%00", "/%ff", "*")
    paths += (
        "/v2/models/%2e%2e%2fx/infer",
        "/v1/models/" + "a" * 5000,
        "http://other/predict",
        "/v1/models/%00:predict",
    )
    whole_ones = [
        whole * 20,  # pipelined
        chunked + b"5\r\n" + body[:5] + b"\r\n%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n",
        chunked + b"zz\r\n",
        chunked + b"5\r\nab",
        head("POST", "/predict", "content-length: -5"),
        head("POST", "/predict", "content-length: 99999999999999999999"),
        head("POST", "/predict", "content-length: 3", "content-length: 4") + b"abc",
        head("POST", "/predict", "content-length: 3", "transfer-encoding: chunked") + b"0\r\n\r\n",
        head("GET", "/health", "upgrade: websocket", "connection: upgrade"),
        head("GET", "/metrics", *(f"x-{number}: a" for number in range(300))),
        head("GET", "/" + "a" * 70_000),
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS handshake
        b"\r\n" * 1000,
        b"\0" * 1000,
        b"",
    ]
    methods = ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "A" * 100)
    whole_ones += [head(method, path) for method in methods for path in ("/predict", "/health")]
    whole_ones += [head(method, path, "content-length: 0") for method in ("GET", "POST") for path in paths]
    halves = [whole[:number] for number in (1, 20, len(whole) // 2, len(whole) - 1, len(whole))]
    return [(content, False) for content in whole_ones] + [(content, True) for content in halves]
