"""The other end of `explain_process`: starts that process on first use, and ends it once it is idle. No torch."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, final

import msgspec

from offramp.data.padding import Array
from offramp.serving.request import Refusal
from offramp.serving.served import FULL, Served

log = logging.getLogger("offramp.serving")

IDLE_S = 120.0
"""How long the process waits for another row before it is ended."""
LONGEST_LINE = 2**26
Result = TypeVar("Result")


class ExplainedModel(msgspec.Struct):
    """The first message: see `offramp.serving.ui.explain.Explainable`; points as they are saved, None = full depth."""

    problem_type: str
    labels: list[str]
    layers: list[int]
    points: dict[str, dict[str, Any] | None]


class Row(msgspec.Struct):
    """A row: the layers of the exits that were read, and their logits, (E, C)."""

    layers: list[int]
    logits: list[list[float]]


def model_of(served: Served, names: Sequence[str]) -> ExplainedModel:
    """Return the first message for a model, with the points of these names in their order."""
    config = served.config
    labels = [config.id2label[number] for number in range(config.num_labels)]
    points = {name: None if name == FULL else served.points[name].to_json() for name in names}
    return ExplainedModel(config.problem_type, labels, list(config.layers), points)


@final
class Explainer:
    """Explains rows, one after the other.

    Args:
        model: the first message.
        idle_s: after which the process is ended.
    """

    def __init__(self, model: ExplainedModel, idle_s: float = IDLE_S) -> None:
        self._model, self._idle_s = model, idle_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def explain(self, layers: Sequence[int], logits: Array, timeout_s: float) -> bytes:
        """Return the JSON of a list of `ExplainedPoint`; where the client goes, the process ends its row all the same.

        Raises:
            Refusal: the process ended, or took too long and is ended.
        """
        return await asyncio.shield(self._start_task(self._explain(Row(list(layers), logits.tolist()), timeout_s)))

    async def _explain(self, row: Row, timeout_s: float) -> bytes:
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                answer = await asyncio.wait_for(self._ask(row), timeout_s)
            except BaseException as error:
                await self.close()
                if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
                    raise Refusal("timeout", "the exits were not explained within the server's time limit") from None
                if isinstance(error, OSError):
                    raise Refusal("failed", "the process that explains exits has ended") from None
                raise
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._end)
            return answer

    async def _ask(self, row: Row) -> bytes:
        if self._stream is None:
            self._stream = await self._start()
        reader, writer = self._stream
        writer.write(msgspec.json.encode(row) + b"\n")
        await writer.drain()
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError
        return line

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        own, other = socket.socketpair()
        with other:
            command = [sys.executable, "-m", "offramp.serving.ui.explain_process", str(other.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()])
        reader, writer = await asyncio.open_connection(sock=own, limit=LONGEST_LINE)
        writer.write(msgspec.json.encode(self._model) + b"\n")
        return reader, writer

    def _end(self) -> None:
        self._start_task(self.close())

    def _start_task(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more

    async def close(self) -> None:
        """End the process, which has nothing to lose; another row starts another one."""
        if self._idle is not None:
            self._idle.cancel()
        process, stream = self._process, self._stream
        self._process = self._stream = None
        if stream is not None:
            stream[1].close()
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
