"""A process with several batches, as the process that speaks HTTP has it; the test writes what the process would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from offramp.serving.frames import (
    LENGTH_BYTES,
    AnswersFrame,
    ArrayFrame,
    BatchFrame,
    Frame,
    PartFrame,
    ReadyFrame,
    pack,
    unpack,
)
from offramp.serving.worker_process import ProcessLost, WorkerProcess


def batch(rows: int) -> BatchFrame:
    return BatchFrame({"input_ids": ArrayFrame.of(np.ones((rows, 3), np.int64))}, [("full", None)] * rows, False)


def answers(number: int, rows: int) -> AnswersFrame:
    return AnswersFrame(
        ArrayFrame.of(np.zeros((rows, 2), np.float32)), [1] * rows, [False] * rows, {}, None, (), 0.0, number
    )


class Other:
    """A process with room for three rows, and its other end."""

    def __init__(self, process: WorkerProcess, connection: socket.socket, killed: list[bool]) -> None:
        self.process, self.connection, self.killed = process, connection, killed
        self.ends: list[WorkerProcess] = []
        self.rooms: list[int] = []
        process.watch(self.ends.append, lambda process: self.rooms.append(process.rows))

    @classmethod
    async def open(cls) -> Other:
        own, other = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=own)
        ready, killed = ReadyFrame("torch-float32", (1,), [], 8, 3, "", 0.0), list[bool]()
        popen: Any = SimpleNamespace(pid=1, kill=lambda: killed.append(True), wait=lambda: 0)
        return cls(WorkerProcess(popen, reader, writer, ready), other, killed)

    async def read(self) -> Any:
        await asyncio.sleep(0.01)
        content = self.connection.recv(int.from_bytes(self.connection.recv(LENGTH_BYTES), "big"))
        return unpack(content)

    async def write(self, frame: Frame) -> None:
        self.connection.sendall(pack(frame))
        await asyncio.sleep(0.01)


def run(story: Callable[[Other], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        other = await Other.open()
        await story(other)
        other.connection.close()
        await other.process.close()

    asyncio.run(asyncio.wait_for(whole(), 10))


def test_batches_run_beside_each_other_and_rows_that_leave_make_room() -> None:
    async def story(other: Other) -> None:
        process, parts = other.process, list[PartFrame]()
        first = asyncio.create_task(process.run(batch(2), 5, parts.append))
        second = asyncio.create_task(process.run(batch(2), 5))
        assert [(await other.read()).number, (await other.read()).number] == [0, 1]
        assert (process.rows, process.has_room, other.rooms) == (4, False, [2])
        await other.write(PartFrame([1], answers(0, 1)))
        assert (process.rows, other.rooms, [part.rows for part in parts]) == (3, [2], [[1]])
        await other.write(answers(1, 2))
        assert second.done()
        assert (process.rows, process.has_room, first.done()) == (1, True, False)
        await other.write(answers(0, 2))
        assert (await first).number == 0
        assert process.rows == 0

        alone = asyncio.create_task(process.run(batch(1), 5, alone=True))
        await other.read()
        assert (process.rows, process.has_room, other.rooms) == (1, False, [2])
        await other.write(answers(2, 1))
        assert alone.done()
        assert process.has_room

    run(story)


@pytest.mark.parametrize("fault", ["end", "unknown batch", "unasked part", "other message", "time"])
def test_with_a_process_all_its_batches_are_lost(fault: str) -> None:
    async def story(other: Other) -> None:
        limits = (0.05, 50) if fault == "time" else (50, 50)
        tasks = [asyncio.create_task(other.process.run(batch(2), limit)) for limit in limits]
        await other.read()
        if fault == "end":
            other.connection.close()
        elif fault == "time":
            await asyncio.sleep(0.06)
            assert other.killed == [True]
            other.connection.close()
        else:
            frames = {"unknown batch": answers(2, 2), "unasked part": PartFrame([0], answers(9, 1))}
            await other.write(frames.get(fault, batch(1)))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ProcessLost, ProcessLost]
        assert other.ends == [other.process]
        with pytest.raises(ProcessLost):
            await other.process.run(batch(1), 5)

    run(story)


def test_what_fails_in_taking_a_part_fails_its_own_batch_alone() -> None:
    async def story(other: Other) -> None:
        def fail(part: PartFrame) -> None:
            raise KeyError("a part")

        first = asyncio.create_task(other.process.run(batch(2), 5, fail))
        second = asyncio.create_task(other.process.run(batch(2), 5))
        await other.read()
        await other.write(PartFrame([0], answers(0, 1)))
        with pytest.raises(KeyError):
            await first
        await other.write(answers(0, 2))
        await other.write(answers(1, 2))
        assert (await second).number == 1
        assert (other.process.rows, other.ends) == (0, [])

    run(story)


def test_answers_to_fewer_rows_end_the_process() -> None:
    async def story(other: Other) -> None:
        task = asyncio.create_task(other.process.run(batch(2), 5))
        await other.read()
        await other.write(answers(0, 1))
        with pytest.raises(ProcessLost, match="answered 1 rows of 2"):
            await task
        assert other.killed == [True]

    run(story)
