"""The real application with models that are played: HTTP and wire formats run, no weights do."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvicorn

from offramp.serving.app import App
from offramp.serving.metrics import Metrics
from offramp.serving.request import Request, RowResult
from offramp.serving.running import Running
from offramp.serving.served import Served
from offramp.serving.settings import ModelSettings, ServerSettings


class PlayedService:
    """Answers each text with logits that its characters decide."""

    def __init__(self, served: Served) -> None:
        self.served, self.pool = served, SimpleNamespace(alive=1)

    async def start(self, request: Request) -> Running:
        point = self.served.point_name(request.options)
        results: list[RowResult | None] = [self._result(str(text)) for text in request.items]
        finished = asyncio.get_running_loop().create_future()
        finished.set_result(None)
        return Running(request, point, results, finished, time.monotonic(), math.inf, answered=time.monotonic())

    def _result(self, text: str) -> RowResult:
        seed = list(text.encode())
        logits = np.random.default_rng(seed).normal(size=self.served.config.num_labels).astype(np.float32)
        return RowResult(logits, 2, len(seed), logits_by_exit={1: logits, 2: logits})


def played_app(served: Served, *keys: str) -> App:
    app = App(ServerSettings(ModelSettings("m"), served.limits, api_keys=keys), Metrics())
    app.service = PlayedService(served)  # type: ignore[assignment]
    return app


@contextmanager
def played(apps: Mapping[str, App]) -> Iterator[str]:
    """Serve each application below its name, as http://127.0.0.1:PORT/NAME; yields the address without a name."""

    async def route(scope: Any, receive: Any, send: Any) -> None:
        name, _, path = scope["path"].removeprefix("/").partition("/")
        await apps[name](scope | {"path": f"/{path}"}, receive, send)

    server = uvicorn.Server(uvicorn.Config(route, port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
