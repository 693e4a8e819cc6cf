#!/usr/bin/env bash
# Expected by most: a server that does not speak HTTP/2 ignores a client's offer to upgrade and answers in HTTP/1.1, body
#   and all: RFC 9110, 7.8 lets a server ignore the field.
# What happens: uvicorn with httptools, its default where that is installed, gives the application an empty body for a POST
#   with `Connection: Upgrade` and `Upgrade: h2c`: the parser stops at the end of the headers, and what follows is dropped.
#   The request has its Content-Length, and no error is raised. With h11 the same server gives the application the body.
# Where it matters: clients that offer HTTP/2 in plain text with every first request (curl --http2, and others): a service
#   answers "the body is empty" to a few clients alone, and only where httptools is installed.
# Source: measured here; uvicorn, protocols/http/httptools_impl.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "uvicorn==0.54.0" "httptools==0.9.0" "h11==0.16.0" 2>/dev/null
cat > "$folder/ask.py" <<'PYTHON'
import asyncio
import socket
from importlib.metadata import version

import uvicorn

REQUEST = (
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nconnection: Upgrade, HTTP2-Settings\r\n"
    b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\nabc"
)
bodies = {}


def application(parser):
    async def answer(scope, receive, send):
        message = await receive()
        bodies[parser] = message.get("body")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return answer


async def ask(parser):
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(application(parser), http=parser, lifespan="off", log_level="error")
    server = uvicorn.Server(settings)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(REQUEST)
    status = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    server.should_exit = True
    await serving
    return status.decode().strip()


print(f"uvicorn {version('uvicorn')}, httptools {version('httptools')}")
for parser in ("h11", "httptools"):
    status = asyncio.run(ask(parser))
    print(f"{parser}: {status}; of the body b'abc' the application gets {bodies[parser]!r}")
assert bodies == {"h11": b"abc", "httptools": b""}, bodies
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
