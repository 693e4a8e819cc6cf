"""The least that `serving_cost.py` compares with: a Starlette route on uvicorn that returns a constant.

    python benchmarks/serving_bare.py 8000 '[{"label": "a", "score": 1.0}]'

uvicorn's settings are those of `offramp serve`.
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main() -> None:
    """Serve until the process is ended."""
    port, content = int(sys.argv[1]), sys.argv[2].encode()

    async def constant(request: Request) -> Response:
        return Response(content, media_type="application/json")

    async def health(request: Request) -> Response:
        return Response()

    routes = [Route("/predict", constant, methods=["POST"]), Route("/health", health)]
    uvicorn.run(
        Starlette(routes=routes),
        host="127.0.0.1",
        port=port,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    main()
