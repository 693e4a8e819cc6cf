"""The processes that run the model: started, asked, and started again where one ends. For one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import final

from msgspec.structs import replace

from offramp.errors import InvalidInput, OfframpError
from offramp.serving.frames import ReadyFrame, StartFrame
from offramp.serving.worker_process import ProcessLost, WorkerProcess

log = logging.getLogger("offramp.serving")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""How long to wait before a process is started again: doubled each time, until one is ready."""

START_S, START_TIMES = 60.0, 10
"""A process that starts again is ended after so long, or so many times what the first one took: it hangs."""


@final
class ProcessPool:
    """A number of processes, each started again where it ends.

    Attributes:
        size: how many there should be.
        restarts: how many were started again so far.
        ready: what the first one said.
        idle: those that take a batch, the one with the fewest rows last.
        on_idle: is called where one of them takes a batch again.
    """

    def __init__(self, start: StartFrame, size: int) -> None:
        self.size, self.restarts = size, 0
        self.ready: ReadyFrame | None = None
        self.idle: list[WorkerProcess] = []
        self.on_idle: Callable[[], None] = lambda: None
        self._start = start
        self._all: set[WorkerProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def alive(self) -> int:
        """Return how many processes are ready or busy."""
        return len(self._all)

    @property
    def pids(self) -> list[int]:
        """Return the numbers of the processes."""
        return [process.pid for process in self._all]

    async def open(self) -> ReadyFrame:
        """Start all processes, the first one alone, and wait for them; return what the first one said.

        Raises:
            InvalidInput: the model cannot be loaded.
            ProcessLost: a process ended before it was ready.
        """
        try:
            self.ready = (await self._add()).ready
            await asyncio.gather(*(self._add() for _ in range(self.size - 1)))
        except BaseException:
            await self.close()
            raise
        return self.ready

    async def _add(self) -> WorkerProcess:
        process = await WorkerProcess.launch(self._start)
        try:
            if self._closed:
                raise ProcessLost("the server is ending")
            if self.ready is not None and replace(process.ready, seconds=0) != replace(self.ready, seconds=0):
                raise InvalidInput(f"{self._start.folder}: the model has changed since the server was started")
        except OfframpError:
            await process.close()
            raise
        self._all.add(process)
        process.watch(self._lost, self.give_back)
        self.give_back(process)
        return process

    def give_back(self, process: WorkerProcess) -> None:
        """Take back a process that has room for another batch, if it has."""
        if process in self._all and process.has_room:
            if process not in self.idle:
                self.idle.append(process)
            self.idle.sort(key=lambda one: -one.rows)
            self.on_idle()

    def _lost(self, process: WorkerProcess) -> None:
        """Start another process in place of one that has ended."""
        if self._closed:
            return
        self._all.discard(process)
        if process in self.idle:
            self.idle.remove(process)
        task = asyncio.get_running_loop().create_task(self._replace(process))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, process: WorkerProcess) -> None:
        log.warning("process %d ended with status %d; another one is started", process.pid, await process.close())
        pause_s = FIRST_PAUSE_S
        limit_s = max(START_S, START_TIMES * (self.ready.seconds if self.ready else 0))
        while not self._closed:
            self.restarts += 1
            try:
                await asyncio.wait_for(self._add(), limit_s)
                return
            except (OfframpError, OSError, asyncio.TimeoutError) as error:
                reason = f"not ready after {limit_s:g} s" if isinstance(error, asyncio.TimeoutError) else error
                if not self._closed:
                    log.error("a process cannot be started, the next try is in %.1f s: %s", pause_s, reason)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        self.idle.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(process.close() for process in self._all))
        self._all.clear()
