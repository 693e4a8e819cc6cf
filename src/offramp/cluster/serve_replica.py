"""A replica of Ray Serve: the server's application for each of its models, in the replica's event loop.

What the supervisor and the process that speaks HTTP do for `offramp serve`, Ray Serve does here: its proxy speaks HTTP,
its controller watches the replica, starts another one where it ends, and lets it answer before it goes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, final

from prometheus_client import disable_created_metrics
from ray import serve

from offramp.errors import OfframpError, one_line
from offramp.serving.app import App, with_cors
from offramp.serving.logs import logging_to_stderr
from offramp.serving.metrics import Metrics
from offramp.serving.request import Refusal
from offramp.serving.settings import ServerSettings
from offramp.serving.setup import open_service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


@serve.ingress()
class Replica:
    """Loads the models, and says whether they answer.

    Args:
        servers: what each model is served with, by its name in the header `serve_multiplexed_model_id`; "" = its own.
        cores: that each model may use.
    """

    def __init__(self, servers: Mapping[str, ServerSettings], cores: int) -> None:
        self._servers = {name or settings.model.served_name: settings for name, settings in servers.items()}
        self._apps: dict[str, App] = {}
        first = next(iter(servers.values()))
        self._log = ExitStack()  # a replica logs as long as it lives
        self._log.enter_context(logging_to_stderr(first.log_format, first.log_level))
        os.environ["OMP_NUM_THREADS"] = str(cores)  # by which processes and threads are counted
        disable_created_metrics()  # type: ignore[no-untyped-call]

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load all models; return what answers requests."""
        for name in self._servers:
            await self.load(name)
        return Models(self._apps)

    @serve.multiplexed(max_num_models_per_replica=-1)  # type: ignore[untyped-decorator]
    async def load(self, name: str) -> None:
        """Load a model; Ray Serve remembers which replica has it.

        Raises:
            RuntimeError: it cannot be loaded, or served; the message is one line.
        """
        settings = self._servers[name]
        app = App(settings, Metrics())
        try:
            app.service = app.metrics.service = await open_service(settings, app.metrics)
        except (OfframpError, OSError) as error:
            raise RuntimeError(one_line(error)) from None
        self._apps[name] = app

    async def check_health(self) -> None:
        """Do nothing while every model answers; Ray Serve replaces a replica that raises three times in a row.

        Raises:
            RuntimeError: no process runs one of the models; it is started again meanwhile.
        """
        for name, app in self._apps.items():
            if not app.ready:
                raise RuntimeError(f"{name}: {app.reason}")


@final
class Models:
    """The application of a replica: hands each request to its model's own.

    Attributes:
        apps: by name; the first one answers requests that name none.
    """

    def __init__(self, apps: Mapping[str, App]) -> None:
        self.apps = apps
        self._answer = {name: with_cors(app) for name, app in apps.items()}
        self._first = next(iter(apps))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live from the start of the replica to its end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":  # Ray Serve adds the request's id itself
                message["headers"] = [header for header in message["headers"] if header[0] != b"x-request-id"]
            await send(message)

        name = serve.get_multiplexed_model_id() or self._first
        if (answer := self._answer.get(name)) is not None:
            await answer(scope, receive, send_once)
            return
        refusal = Refusal("unknown_model", f"no model {name!r}; this deployment has: {', '.join(self.apps)}")
        await self.apps[self._first](scope, receive, send_once, refusal)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for app in self.apps.values():
            app.draining = True
        await asyncio.gather(*(app.service.drain() for app in self.apps.values() if app.service is not None))
        await asyncio.gather(*(app.close() for app in self.apps.values()))
        await send({"type": "lifespan.shutdown.complete"})
