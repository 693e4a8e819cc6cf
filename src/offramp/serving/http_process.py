"""The process that speaks HTTP: `python -m offramp.serving.http_process LISTENING_FD CONTROL_FD`.

It reads its settings from the control socket, listens at once (not ready), loads the model in processes of its own,
and writes "ready" to that socket. SIGTERM, or the end of the control socket, drains it: no new connections, requests
that were accepted are answered, at most `drain_s` long, then it ends with status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import final

import uvicorn
import uvloop
from prometheus_client import disable_created_metrics

from offramp.errors import OfframpError, one_line
from offramp.serving.app import App, with_cors
from offramp.serving.connections import Connection, close_late
from offramp.serving.logs import logging_to_stderr
from offramp.serving.metrics import Metrics, served_point
from offramp.serving.service import Service
from offramp.serving.settings import ServerSettings
from offramp.serving.setup import open_service

log = logging.getLogger("offramp.serving")

READY = b"ready\n"
BACKLOG = 2048
KEEP_ALIVE_S = 75
"""How long a connection may be idle: longer than clients and load balancers keep one (mostly 60 s)."""
FILES = 65536
LINGER_S = 0.1
"""How long requests on connections that live on are still read, and answered that the server ends."""
FLUSH_S = 2
"""How long answers may take to leave after the drain."""


@final
class _Server(uvicorn.Server):
    """uvicorn without signals: `HttpProcess` handles them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@final
class HttpProcess:
    """Serves until it is to end.

    Attributes:
        app: answers the requests.
    """

    def __init__(self, settings: ServerSettings, listening: socket.socket, control: socket.socket) -> None:
        self._settings, self._listening, self._control = settings, listening, control
        self._metrics = Metrics(settings.http_restarts)
        self.app = App(settings, self._metrics)
        config = uvicorn.Config(
            with_cors(self.app),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.limits.drain_s) + FLUSH_S,
        )
        self._server = _Server(config)
        self._end = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal; return the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end.set)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._end.set)  # the supervisor has ended
        serving = loop.create_task(self._server.serve([self._listening]))
        sweeping = loop.create_task(close_late(self._server.server_state))
        ending = loop.create_task(self._end.wait())
        loading = loop.create_task(self._load())
        status = 0
        await asyncio.wait((serving, ending, loading), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            status = loading.result()
        if status == 0 and not serving.done():
            await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        await self._drain(loading)
        await serving
        sweeping.cancel()
        await self.app.close()
        return status

    async def _load(self) -> int:
        """Load the model; return the exit status where it cannot be loaded, else 0."""
        settings = self._settings
        progress = asyncio.ensure_future(_show_progress(settings.model.folder))
        try:
            service = await open_service(settings, self._metrics)
        except (OfframpError, OSError) as error:
            log.error("%s", one_line(error))
            return 1
        finally:
            progress.cancel()
            if sys.stderr.isatty():
                sys.stderr.write("\r\033[K")
                sys.stderr.flush()
        gc.collect()
        gc.freeze()  # what was loaded lives as long as the process; collections need not look at it
        self.app.service = self._metrics.service = service
        _announce(service, settings)
        with contextlib.suppress(OSError):
            self._control.send(READY)
        return 0

    async def _drain(self, loading: asyncio.Task[int]) -> None:
        """Answer what was accepted, and close the connections."""
        self.app.draining = True
        if self._server.started:
            for server in self._server.servers:
                server.close()
        await asyncio.sleep(LINGER_S)
        self._server.should_exit = True  # connections without a request are closed, the others after their answer
        if not loading.done():
            loading.cancel()
            await asyncio.wait((loading,))
        service = self.app.service
        if service is None:
            return
        rows = service.rows
        refused = await service.drain()
        log.info("drained: %d rows were in flight, %d of them refused", rows, refused)


def _announce(service: Service, settings: ServerSettings) -> None:
    """Log that the server is ready, with what it serves; for machines print the same."""
    served = service.served
    facts = {
        "url": settings.url,
        "model": served.name,
        "engine": served.engine,
        "operating_point": served_point(service),
        "processes": service.pool.alive,
    }
    log.info("ready", extra={"facts": facts})
    if settings.print_ready and settings.http_restarts == 0:
        print(json.dumps(facts), flush=True)


async def _show_progress(folder: str) -> None:
    """Count the seconds on a terminal, for ever; elsewhere nothing."""
    begin = time.monotonic()
    while sys.stderr.isatty():
        sys.stderr.write(f"\rloading {folder}: {time.monotonic() - begin:.0f} s ")
        sys.stderr.flush()
        await asyncio.sleep(0.5)


def _raise_limit_of_files() -> None:
    """Allow as many connections as the system does; most shells begin at 1,024 files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> int:
    """Serve the sockets that the command line names."""
    _raise_limit_of_files()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the supervisor decides
    listening, control = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:3])
    with control.makefile("rb") as lines:
        settings = ServerSettings.from_json(lines.readline())
    disable_created_metrics()  # type: ignore[no-untyped-call]  # one more sample for each counter, which nothing reads
    with logging_to_stderr(settings.log_format, settings.log_level):

        async def serve() -> int:
            return await HttpProcess(settings, listening, control).run()

        return uvloop.run(serve())


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread that still reads the model, perhaps from a network, holds up no end
