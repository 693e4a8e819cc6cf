"""A process that runs the model, as the process that speaks HTTP has it: started, given batches, ended."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
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
    PartFrame,
    ReadyFrame,
    StartFrame,
    pack,
    unpack,
)


class ProcessLost(OfframpError):
    """A process ended, or was ended, before it answered."""


@dataclass
class _OpenBatch:
    """A batch that a process runs.

    Attributes:
        answers: to come.
        missing: rows without an answer.
        on_part: is called with answers that come before the others.
    """

    answers: asyncio.Future[AnswersFrame]
    missing: int
    on_part: Callable[[PartFrame], None]

    def take_part(self, frame: PartFrame) -> None:
        """Hand answers on; an error of the one who takes them is that of the batch."""
        self.missing -= len(frame.rows)
        try:
            self.on_part(frame)
        except Exception as error:
            if not self.answers.done():
                self.answers.set_exception(error)


@final
class WorkerProcess:
    """One process, with the batches that it runs.

    Attributes:
        ready: what it said when it was ready.
        rows: without an answer.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ready: ReadyFrame,
    ) -> None:
        self.ready, self.rows = ready, 0
        self._process, self._reader, self._writer = process, reader, writer
        self._open: dict[int, _OpenBatch] = {}  # by number
        self._numbers = count()
        self._alone = False
        self._on_room: Callable[[WorkerProcess], None] = lambda process: None
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    @property
    def has_room(self) -> bool:
        """Return whether it takes another batch."""
        return self.rows < self.ready.room and not self._alone

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

    def watch(self, on_end: Callable[[WorkerProcess], None], on_room: Callable[[WorkerProcess], None]) -> None:
        """Read what the process writes; call back where it ends, or writes what makes no sense, and end it.

        Args:
            on_end: where it ends.
            on_room: where it takes another batch while it runs some.
        """
        self._on_room = on_room
        self._listening = asyncio.get_running_loop().create_task(self._listen(on_end))

    async def _listen(self, on_end: Callable[[WorkerProcess], None]) -> None:
        lost = ProcessLost(f"process {self.pid}, which ran the model, has ended")
        try:
            while True:
                if not self._take(frame := await _receive(self._reader)):
                    lost = ProcessLost(f"process {self.pid} wrote {type(frame).__name__} without being asked")
                    break
        except ProcessLost:
            pass
        for batch in self._open.values():
            if not batch.answers.done():
                batch.answers.set_exception(lost)
        on_end(self)

    def _take(self, frame: Frame) -> bool:
        """Take a message; return whether it makes sense."""
        if isinstance(frame, PartFrame) and (batch := self._open.get(frame.answers.number)) is not None:
            self.rows -= len(frame.rows)
            batch.take_part(frame)
            self._offer()
            return True
        if isinstance(frame, AnswersFrame) and (batch := self._open.pop(frame.number, None)) is not None:
            self.rows -= batch.missing
            self._alone = False
            if not batch.answers.done():  # somebody waits
                batch.answers.set_result(frame)
            return True
        return False

    def _offer(self) -> None:
        if self.has_room:
            self._on_room(self)

    async def run(
        self,
        batch: BatchFrame,
        timeout_s: float,
        on_part: Callable[[PartFrame], None] = lambda part: None,
        alone: bool = False,
    ) -> AnswersFrame:
        """Answer a batch.

        Args:
            batch: its number is that which the process gives it.
            timeout_s: after which the process is ended.
            on_part: is called with answers that come before the others.
            alone: let no other batch come to the process meanwhile.

        Raises:
            ProcessLost: the process ended, or took longer than that and is ended, or its answer makes no sense.
        """
        if self._listening is None or self._listening.done():
            raise ProcessLost(f"process {self.pid}, which ran the model, has ended")
        future: asyncio.Future[AnswersFrame] = asyncio.get_running_loop().create_future()
        batch = replace(batch, number=next(self._numbers))
        self._open[batch.number] = _OpenBatch(future, len(batch.plans), on_part)
        self.rows += len(batch.plans)
        self._alone = alone
        self._writer.write(pack(batch))
        self._offer()
        try:
            answers = await asyncio.wait_for(future, timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            self.kill()
            raise ProcessLost(f"process {self.pid} took longer than {timeout_s:g} s for a batch") from None
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
