"""uvicorn with deadlines, over real sockets: what a connection may take."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from offramp.serving import connections
from offramp.serving.connections import Connection, close_late

BIG = 10_000_000
WHOLE = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body; with nothing where the client goes before its end."""
    body, message = b"", {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
    await asyncio.sleep(0.5 if scope["path"] == "/slow" else 0)
    size = len(body) * (BIG if scope["path"] == "/big" else 1)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": body * (size // len(body))})


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("READ_S", 0.3), ("WRITE_S", 0.3), ("SWEEP_S", 0.05)):
        monkeypatch.setattr(connections, name, value)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[uvicorn.Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server, and one connection to it."""
    config = uvicorn.Config(echo, http=Connection, ws="none", lifespan="off", log_config=None, port=0)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    sweeping = asyncio.ensure_future(close_late(server.server_state))
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
    try:
        yield server, reader, writer
    finally:
        writer.close()
        sweeping.cancel()
        await server.shutdown()


async def exchange(*parts: bytes | float) -> bytes:
    """Send the parts of a request, with pauses, and return all that comes until the server closes."""
    async with connected() as (_, reader, writer):
        try:
            for part in parts:
                if isinstance(part, bytes):
                    writer.write(part)
                else:
                    await asyncio.sleep(part)
            return await asyncio.wait_for(reader.read(), 3)
        except ConnectionError:
            return b"reset"


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ([], b""),  # half open: a connection without a request
        ([b"POST / HTTP/1.1\r\nhost: a\r\n"], b"HTTP/1.1 408"),
        ([b"POST / HTTP/1.1\r\n", 0.2, b"a: b\r\n", 0.2, b"c: d\r\n"], b"HTTP/1.1 408"),  # slow, never silent
        ([WHOLE[:-1]], b""),  # a body that does not come
        ([WHOLE, 0.1, WHOLE[:20]], b"HTTP/1.1 200"),  # the second request of a connection
        ([b"GET / HTTP/1.1\r\n", *[b"name: %s\r\n" % (b"x" * 9000)] * 9], b"HTTP/1.1 431"),
        ([b"GET /" + b"x" * 70_000], b"HTTP/1.1 431"),
        ([WHOLE.replace(b"\r\n", b"\r\nname: %s\r\n" % (b"x" * 70_000), 1)], b"HTTP/1.1 431"),  # whole, in one piece
        ([CHUNKED, 0.05, b"0\r\ntrailer: ", *[b"x" * 9000, 0.01] * 9], b""),  # endless trailers behind a body
    ],
)
def test_a_connection_that_takes_too_long_or_too_much_is_closed(parts: list[Any], answer: bytes) -> None:
    began = time.monotonic()
    received = asyncio.run(exchange(*parts))
    assert received.startswith(answer)
    assert answer or received in (b"", b"reset")
    assert time.monotonic() - began < 2


def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    async def main() -> None:
        async with connected() as (server, reader, writer):
            writer.write(WHOLE.replace(b"/ ", b"/big "))
            await asyncio.sleep(0.1)
            while server.server_state.connections:
                await asyncio.sleep(0.05)
            read = 0
            with suppress(ConnectionError):
                while chunk := await reader.read(1 << 20):
                    read += len(chunk)
            assert read < 3 * BIG

    asyncio.run(asyncio.wait_for(main(), 3))


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_request_that_asks_for_http_2_is_answered_without_it(pieces: int) -> None:
    """As Java's client and `curl --http2` send it; the connection lives on."""
    asking = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 3\r\n"
    asking += b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\nabc"
    size = -(-len(asking) // pieces)
    parts: list[bytes | float] = []
    for start in range(0, len(asking), size):
        parts += [asking[start : start + size], 0.05]
    answers = asyncio.run(exchange(*parts, WHOLE, 0.05, WHOLE[:9]))
    assert answers.count(b"HTTP/1.1 200") == answers.count(b"\r\n\r\nabc") == 2


def test_requests_within_the_limits_are_answered_on_one_connection() -> None:
    whole = [
        WHOLE,
        0.1,
        WHOLE.replace(b"/ ", b"/slow "),
        0.6,
        CHUNKED + b"0\r\n\r\n",
        0.1,
        WHOLE.replace(b"host: a", b"connection: close"),
    ]
    assert asyncio.run(exchange(*whole)).count(b"HTTP/1.1 200") == 4


class RecordedWrites(asyncio.Transport):
    """Keeps what is written, each system call apart."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []

    def write(self, data: Any) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.calls

    def resume_reading(self) -> None:
        """Read on, as ever."""


def test_headers_and_body_of_an_answer_are_one_write() -> None:
    config, transport = uvicorn.Config(echo, lifespan="off", log_config=None), RecordedWrites()

    async def answer(*requests: bytes) -> None:
        connection = Connection(config, uvicorn.server.ServerState(), {})
        connection.connection_made(transport)
        for request in requests:
            connection.data_received(request)
            await asyncio.sleep(0.05)
        connection.connection_lost(ConnectionResetError())

    asyncio.run(answer(WHOLE, WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")))
    assert [call[-7:] for call in transport.calls] == [b"\r\n\r\nabc", b"\r\n\r\nabc", b"closed"]
