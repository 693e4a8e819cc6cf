"""uvicorn's HTTP protocol with limits on what a connection may take: time to send a request, bytes of its headers.

uvicorn itself waits for ever for a request that does not come or comes slowly, reads headers of any size, and loses the
body of a request that asks for another protocol.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn.server import ServerState

HEADER_BYTES = 65536
"""Of a request's first line and headers together."""
READ_S = 30.0
"""For a whole request, from its first byte (for the first one of a connection: from the connection) to its last."""
WRITE_S = 30.0
"""For a client that does not read its answer."""
SWEEP_S = 1.0
_CLOSE = b"content-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _CLOSE


@final
class _OneWrite:
    """A transport whose writes go together once the loop's callback that makes them has ended.

    uvicorn writes headers and body one after the other, and each write would be a system call that wakes the client:
    two are a sixth of the processor time of an answer.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiting: list[bytes] = []

    def write(self, content: bytes) -> None:
        """Write soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(content)

    def close(self) -> None:
        """Write what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            content = b"".join(self._waiting)
            self._waiting.clear()
            self._transport.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@final
class Connection(HttpToolsProtocol):
    """A connection with deadlines; `close_late` looks at them."""

    _deadline: float | None = None
    _begun = False
    _unparsed = 0  # bytes since the last part of a request was complete: its headers, or a piece of its body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(_OneWrite(transport))  # type: ignore[arg-type]
        self._deadline = time.monotonic() + READ_S

    def on_message_begin(self) -> None:
        """Expect the end of the request that begins."""
        super().on_message_begin()
        self._deadline = time.monotonic() + READ_S
        self._begun = True

    def on_headers_complete(self) -> None:
        """Start to answer the request."""
        large = self._unparsed > HEADER_BYTES and self._header_bytes() > HEADER_BYTES  # they came in one piece
        self._begun, self._unparsed = False, 0
        if large:
            self._end(_TOO_LARGE)
            raise httptools.HttpParserError("headers are too large")
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect nothing more."""
        if not self.parser.should_upgrade():
            self._deadline, self._unparsed = None, 0
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Read bytes; close the connection where headers, or what follows a body in chunks, have too many."""
        self._unparsed += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._unparsed > HEADER_BYTES:
            self._end(_TOO_LARGE)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self.parser.get_method() == b"CONNECT":
                self.send_400_response("This server is no proxy.")
            else:
                self._parse_without_upgrade(data[stop.args[0] :])
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")

    def _parse_without_upgrade(self, body: bytes) -> None:
        """Parse a request anew as if it did not ask for another protocol, of which httptools leaves out the body.

        Java's client asks for HTTP/2 with its first request, and takes an answer without it.
        """
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def pause_writing(self) -> None:
        """Expect the client to read."""
        super().pause_writing()
        self._deadline = time.monotonic() + WRITE_S

    def resume_writing(self) -> None:
        """Expect nothing more."""
        super().resume_writing()
        self._deadline = None

    def close_if_late(self, now: float) -> None:
        """Close the connection where its deadline has passed."""
        if self._deadline is None or now < self._deadline:
            return
        if self.flow.write_paused:
            self.transport.abort()
        else:
            self._end(b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSE if self._begun else b"")

    def _end(self, answer: bytes) -> None:
        """Close the connection, with an answer where none is on its way."""
        if not self.transport.is_closing():
            if answer and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(answer)
            self.transport.close()
        self._deadline = None


async def close_late(state: ServerState) -> None:
    """Close connections whose deadline has passed, for ever."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now = time.monotonic()
        for connection in list(state.connections):
            if isinstance(connection, Connection):
                connection.close_if_late(now)
