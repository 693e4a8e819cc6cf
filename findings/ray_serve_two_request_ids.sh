#!/usr/bin/env bash
# Expected by most: an answer has one X-Request-ID. A proxy adds the header where the application behind it has none, and
#   leaves it where it has one, as Ray Serve itself does with the request's header.
# What happens: Ray Serve 2.60 appends X-Request-ID to every answer, also to one that has it. An application that returns
#   the id of the request, as many do by a middleware, answers with two headers. Clients that join headers of one name
#   (httpx, browsers, most gateways) see the id twice, "abc, abc", and no log has that id.
# Where it matters: tracing by request id, for every ASGI application that sets the header and is put behind Ray Serve.
# Source: measured here; ray/serve/_private/http_util.py, RequestIdMiddleware
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[serve]==2.60.0" 2>/dev/null
cat > "$folder/ask.py" <<'PYTHON'
import http.client
import sys

import ray
from ray import serve
from starlette.responses import PlainTextResponse


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    own = dict(scope["headers"])[b"x-request-id"].decode()
    await PlainTextResponse("yes", headers={"X-Request-ID": own})(scope, receive, send)


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": 8765})
serve.run(serve.deployment(serve.ingress(lambda: application)()).bind())
connection = http.client.HTTPConnection("127.0.0.1", 8765, timeout=30)
connection.request("GET", "/", headers={"X-Request-ID": "abc"})
answer = connection.getresponse()
ids = [value for name, value in answer.getheaders() if name.lower() == "x-request-id"]
print(f"ray {ray.__version__}")
print(f"the request has the id 'abc', the answer {ids}")
serve.shutdown()
ray.shutdown()
assert ids == ["abc", "abc"], ids
print("as described")
PYTHON
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" -W ignore "$folder/ask.py" "$folder/ray" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
