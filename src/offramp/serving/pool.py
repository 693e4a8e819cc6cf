"""The processes that run the model: started, asked, and started again where one ends. For one event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import final

from offramp.errors import InvalidInput
from offramp.serving.frames import (
    LENGTH_BYTES,
    AnswersFrame,
    BatchFrame,
    FaultFrame,
    Frame,
    ReadyFrame,
    StartFrame,
    pack,
    unpack,
)

log = logging.getLogger("offramp.serving")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""How long to wait before a process is started again: doubled each time, until one is ready."""


class ProcessLost(Exception):
    """A process ended, or was ended, before it answered."""


@final
class WorkerProcess:
    """One process; it answers one batch at a time.

    Attributes:
        ready: what it said when it was ready.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ready: ReadyFrame,
    ) -> None:
        self.ready = ready
        self._process, self._reader, self._writer = process, reader, writer

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    @classmethod
    async def launch(cls, start: StartFrame) -> WorkerProcess:
        """Start a process and wait until it is ready.

        Raises:
            InvalidInput: it cannot load the model.
            ProcessLost: it ended before it was ready.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "offramp.serving.worker", str(theirs.fileno())]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            first = await _ask(reader, writer, start)
        except BaseException:
            process.kill()
            writer.close()
            await asyncio.to_thread(process.wait)
            raise
        if isinstance(first, FaultFrame):
            writer.close()
            await asyncio.to_thread(process.wait)
            raise InvalidInput(first.message)
        assert isinstance(first, ReadyFrame)
        return cls(process, reader, writer, first)

    async def run(self, batch: BatchFrame, timeout_s: float) -> AnswersFrame:
        """Answer a batch.

        Raises:
            ProcessLost: the process ended, or took longer than that and is ended.
        """
        try:
            answers = await asyncio.wait_for(_ask(self._reader, self._writer, batch), timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            self._process.kill()
            raise ProcessLost(f"process {self.pid} took longer than {timeout_s:g} s for a batch") from None
        assert isinstance(answers, AnswersFrame)
        return answers

    async def close(self) -> int:
        """End the process, which ends with its socket; return its exit status."""
        self._writer.close()
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._process.wait), 5)
        except (asyncio.TimeoutError, TimeoutError):
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frame: Frame) -> Frame:
    """Send a message and return the next one.

    Raises:
        ProcessLost: the other end closed.
    """
    try:
        writer.write(pack(frame))
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
        return unpack(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ProcessLost(f"a process that runs the model has ended ({type(error).__name__})") from None


@final
class ProcessPool:
    """A number of processes, each started again where it ends.

    Attributes:
        size: how many there should be.
        restarts: how many were started again so far.
        ready: what the first one said.
        idle: those without a batch.
        on_idle: is called where one of them has no batch any more.
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
        self.ready = (await self._add()).ready
        await asyncio.gather(*(self._add() for _ in range(self.size - 1)))
        return self.ready

    async def _add(self) -> WorkerProcess:
        process = await WorkerProcess.launch(self._start)
        if self._closed:
            await process.close()
            raise ProcessLost("the server is ending")
        self._all.add(process)
        self.give_back(process)
        return process

    def give_back(self, process: WorkerProcess) -> None:
        """Take back a process that has answered its batch."""
        self.idle.append(process)
        self.on_idle()

    def lost(self, process: WorkerProcess) -> None:
        """Start another process in place of one that has ended."""
        if process in self._all:
            self._all.discard(process)
            task = asyncio.get_running_loop().create_task(self._replace(process))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _replace(self, process: WorkerProcess) -> None:
        log.warning("process %d ended with status %d; another one is started", process.pid, await process.close())
        pause_s = FIRST_PAUSE_S
        while not self._closed:
            self.restarts += 1
            try:
                await self._add()
                return
            except (InvalidInput, ProcessLost, OSError) as error:
                if not self._closed:
                    log.error("a process cannot be started, the next try is in %.1f s: %s", pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self.idle.clear()
        await asyncio.gather(*(process.close() for process in self._all))
        self._all.clear()
