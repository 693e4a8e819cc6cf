"""The processes that run the model: started, asked, and started again where one ends. For one event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import final

import msgspec
from msgspec.structs import replace

from offramp.errors import InvalidInput, OfframpError
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

START_S, START_TIMES = 60.0, 10
"""A process that starts again is ended after so long, or so many times what the first one took: it hangs."""


class ProcessLost(OfframpError):
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
        self._answer: asyncio.Future[Frame] | None = None  # to the batch that it runs
        self._listening: asyncio.Task[None] | None = None

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
        own, other = socket.socketpair()
        with other:
            command = [sys.executable, "-m", "offramp.serving.worker", str(other.fileno())]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()])
        opened: socket.socket | asyncio.StreamWriter = own
        try:
            reader, opened = await asyncio.open_connection(sock=own)
            opened.write(pack(start))
            first = await _receive(reader)
            if isinstance(first, FaultFrame):
                raise InvalidInput(first.message)
            if not isinstance(first, ReadyFrame):
                raise ProcessLost(f"a process began with {type(first).__name__}")
        except BaseException:
            opened.close()
            await _ended(process)
            raise
        return cls(process, reader, opened, first)

    def watch(self, on_end: Callable[[WorkerProcess], None]) -> None:
        """Read what the process writes; call back where it ends, or writes what makes no sense, and end it."""
        self._listening = asyncio.get_running_loop().create_task(self._listen(on_end))

    async def _listen(self, on_end: Callable[[WorkerProcess], None]) -> None:
        lost = ProcessLost(f"process {self.pid}, which ran the model, has ended")
        try:
            while True:
                frame = await _receive(self._reader)
                if self._answer is None or not isinstance(frame, AnswersFrame):
                    lost = ProcessLost(f"process {self.pid} wrote {type(frame).__name__} without being asked")
                    break
                if not self._answer.done():  # nobody waits any more
                    self._answer.set_result(frame)
                self._answer = None
        except ProcessLost:
            pass
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(lost)
        on_end(self)

    async def run(self, batch: BatchFrame, timeout_s: float) -> AnswersFrame:
        """Answer a batch.

        Raises:
            ProcessLost: the process ended, or took longer than that and is ended, or its answer makes no sense.
        """
        if self._listening is None or self._listening.done():
            raise ProcessLost(f"process {self.pid}, which ran the model, has ended")
        self._answer = asyncio.get_running_loop().create_future()
        self._writer.write(pack(batch))
        try:
            answers = await asyncio.wait_for(self._answer, timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            self.kill()
            raise ProcessLost(f"process {self.pid} took longer than {timeout_s:g} s for a batch") from None
        assert isinstance(answers, AnswersFrame)
        if not len(batch.plans) == len(answers.exit_layers) == answers.logits.shape[0]:
            self.kill()
            raise ProcessLost(f"process {self.pid} answered {len(answers.exit_layers)} rows of {len(batch.plans)}")
        return answers

    def kill(self) -> None:
        """End the process; the callback of `watch` follows."""
        self._process.kill()

    async def close(self) -> int:
        """End the process at once, which has nothing to lose; return its exit status."""
        if self._listening is not None:
            self._listening.cancel()
        self._writer.close()
        return await _ended(self._process)


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """End a process; return its exit status."""
    process.kill()
    return await asyncio.to_thread(process.wait)


async def _receive(reader: asyncio.StreamReader) -> Frame:
    """Return the next message.

    Raises:
        ProcessLost: the other end closed, or wrote what is no message.
    """
    try:
        length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
        return unpack(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ProcessLost(f"a process that runs the model has ended ({type(error).__name__})") from None
    except msgspec.DecodeError as error:
        raise ProcessLost(f"a process that runs the model wrote no message ({error})") from None


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
        process.watch(self._lost)
        self.give_back(process)
        return process

    def give_back(self, process: WorkerProcess) -> None:
        """Take back a process that has answered its batch."""
        if process in self._all:
            self.idle.append(process)
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
