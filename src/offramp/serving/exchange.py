"""One HTTP request, below the wire formats: its headers in one pass, its body within limits, its answer."""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, final

from offramp.serving.endpoint import Reply
from offramp.serving.request import Refusal

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from offramp.serving.request import Request, RowResult
    from offramp.serving.running import Running
    from offramp.serving.service import Service

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's names for the two
_ID_LENGTH, _ID_CHARACTERS = 128, frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.:")
_PROCESS = secrets.token_hex(6)
_ids = (f"{_PROCESS}-{number}" for number in count(1))


class ClientGone(Exception):
    """The client closed the connection before it got an answer."""


@final
class Exchange:
    """A request and the way to answer it.

    Attributes:
        headers: names in lower case; of several with one name the last.
        method, path: of the request; the path without the prefix under which a proxy mounts the server.
        request_id: the client's own, where it is fit for a log, else a new one.
        rows: how many it has, once it is read.
        running: its rows, once a service has accepted them.
        untouched: whether nothing of the body was read.
    """

    __slots__ = ("_receive", "_send", "headers", "method", "path", "request_id", "rows", "running", "untouched")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.method: str = scope["method"]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        own_id = self.headers.get("x-request-id", "")
        fit = 0 < len(own_id) <= _ID_LENGTH and _ID_CHARACTERS.issuperset(own_id)
        self.request_id = own_id if fit else next(_ids)
        self.rows = 0
        self.running: Running | None = None
        self.untouched = True

    async def body(self, limit: int) -> bytes:
        """Read the body, decompressed where it came compressed.

        Raises:
            Refusal: it has more bytes than the limit, or cannot be decompressed.
            ClientGone: the client closed the connection before its end.
        """
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        self.untouched = False
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            body = await self._longer(bytearray(body), limit)
        elif message["type"] == "http.disconnect":
            raise ClientGone
        if len(body) > limit:
            raise _too_large(limit)
        encoding = self.headers.get("content-encoding", "identity").lower()
        return body if encoding == "identity" else _decompressed(body, encoding, limit)

    async def _longer(self, body: bytearray, limit: int) -> bytes:
        more = True
        while more and len(body) <= limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)

    async def run(self, service: Service, request: Request) -> list[RowResult]:
        """Let a service answer the request's rows.

        Raises:
            Refusal: the service does not accept them.
            ClientGone: the client closed the connection first.
        """
        self.rows = len(request.items)
        running = self.running = await service.start(request)
        if not running.finished.done():
            try:
                await self.wait(running.finished)
            finally:
                if not running.finished.done():
                    service.abandon(running)
        return running.rows()

    async def wait(self, finished: asyncio.Future[None]) -> None:
        """Wait for the end of what answers the request.

        Raises:
            ClientGone: the client closed the connection first.
        """
        while not finished.done():
            message = asyncio.ensure_future(self._receive())
            try:
                await asyncio.wait((finished, message), return_when=asyncio.FIRST_COMPLETED)
                if message.done() and message.result()["type"] == "http.disconnect" and not finished.done():
                    raise ClientGone
            finally:
                message.cancel()

    async def reply(self, reply: Reply, extra: Mapping[str, str]) -> None:
        """Send an answer with more headers."""
        headers = [
            (b"content-type", reply.media_type.encode("latin-1")),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", self.request_id.encode("latin-1")),
        ]
        for more in (reply.headers, extra):
            headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in more.items()]
        start: dict[str, Any] = {"type": "http.response.start", "status": reply.status, "headers": headers}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": reply.body})


def _too_large(limit: int) -> Refusal:
    return Refusal("body_size", f"the body is larger than {limit} bytes, the limit of this server")


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a compressed body as it was, at most `limit` bytes of it."""
    if encoding not in _WINDOW_BITS:
        raise Refusal("malformed", f"no content-encoding {encoding!r} is read; there are: {', '.join(_WINDOW_BITS)}")
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal("malformed", f"the body is not {encoding}: {error}") from None
    if len(content) > limit:
        raise _too_large(limit)
    if not decompressor.eof:
        raise Refusal("malformed", f"the body breaks off before the end of {encoding}")
    return content
