"""The pool of processes, with processes that are fakes: starts, restarts and ends that overlap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from offramp.errors import InvalidInput
from offramp.serving import pool as pool_module
from offramp.serving.frames import ReadyFrame, StartFrame
from offramp.serving.pool import ProcessPool
from offramp.serving.worker_process import ProcessLost, WorkerProcess

START = StartFrame("folder", "onnx-int8", 1, "default", False, 100, None)
READY = ReadyFrame("onnx-int8", (1, 2), ["default"], 32, 1, "digest", 0.5)


class Fake:
    """A process that is nothing but its number."""

    def __init__(self, pid: int, ready: ReadyFrame) -> None:
        self.pid, self.ready, self.closed = pid, ready, False
        self.rows, self.has_room = 0, True
        self.on_end: Callable[[Any], None] = lambda process: None

    def watch(self, on_end: Callable[[Any], None], on_room: Callable[[Any], None]) -> None:
        self.on_end = on_end

    async def close(self) -> int:
        self.closed = True
        return -9


class Launches:
    """What becomes of each launch: an error, another `ready`, or, once `hold` is cleared, nothing before it is set."""

    def __init__(self, *outcomes: Exception | ReadyFrame) -> None:
        self.outcomes, self.processes, self.begun = list(outcomes), list[Fake](), 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, start: StartFrame) -> Any:
        self.begun += 1
        await self.hold.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else READY
        if isinstance(outcome, Exception):
            raise outcome
        self.processes.append(Fake(len(self.processes), outcome))
        return self.processes[-1]


def run(story: Callable[[pytest.MonkeyPatch], Coroutine[Any, Any, None]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "FIRST_PAUSE_S", 0.001)
        asyncio.run(asyncio.wait_for(story(patch), 10))


def use(patch: pytest.MonkeyPatch, *outcomes: Exception | ReadyFrame) -> Launches:
    launches = Launches(*outcomes)
    patch.setattr(WorkerProcess, "launch", launches)
    return launches


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_a_process_that_ends_is_missed_at_once_and_another_one_is_started_until_one_is_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(patch: pytest.MonkeyPatch) -> None:
        errors = (
            ProcessLost("it ended"),
            InvalidInput("no such file"),
            OSError("no memory"),
            replace(READY, digest="x"),
        )
        launches = use(patch, READY, READY, *errors)
        pool = ProcessPool(START, 2)
        assert await pool.open() is READY
        pool.idle.remove(busy := pool.idle[0])
        launches.processes[0].on_end(busy)
        assert (pool.alive, len(pool.idle)) == (1, 1)
        pool.give_back(busy)  # its last batch was answered, and it is no use any more
        assert len(pool.idle) == 1
        launches.processes[1].on_end(launches.processes[1])
        assert (pool.alive, len(pool.idle)) == (0, 0)
        await until(lambda: pool.alive == 2)
        assert [process.closed for process in launches.processes] == [
            True,
            True,
            True,
            False,
            False,
        ]  # the third is other
        assert pool.restarts == 6
        await pool.close()
        assert all(process.closed for process in launches.processes)

    with caplog.at_level(logging.WARNING, "offramp.serving"):
        run(story)
    assert sum("another one is started" in message for message in caplog.messages) == 2
    assert sum("cannot be started" in message for message in caplog.messages) == 4


def test_an_end_in_the_middle_of_a_restart_leaves_no_process() -> None:
    async def story(patch: pytest.MonkeyPatch) -> None:
        launches = use(patch)
        pool = ProcessPool(START, 2)
        await pool.open()
        launches.hold.clear()
        launches.processes[0].on_end(launches.processes[0])
        await until(lambda: launches.begun == 3)
        await pool.close()
        launches.hold.set()
        await asyncio.sleep(0.01)
        assert [process.closed for process in launches.processes] == [True, True]
        assert (pool.alive, pool.idle, pool._tasks) == (0, [], set())
        launches.processes[1].on_end(launches.processes[1])  # its socket closes only now
        await asyncio.sleep(0.01)
        assert launches.begun == 3

    run(story)


def test_a_process_that_hangs_while_it_starts_again_is_given_up_for_another_one() -> None:
    async def story(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(pool_module, "START_S", 0.01)
        patch.setattr(pool_module, "START_TIMES", 0.02)  # of half a second
        launches = use(patch)
        pool = ProcessPool(START, 1)
        await pool.open()
        launches.hold.clear()
        launches.processes[0].on_end(launches.processes[0])
        await until(lambda: launches.begun >= 3)  # the second launch has hung
        launches.hold.set()
        await until(lambda: pool.alive == 1)
        await pool.close()

    run(story)


def test_where_one_cannot_be_started_the_others_are_ended() -> None:
    async def story(patch: pytest.MonkeyPatch) -> None:
        launches = use(patch, READY, READY, InvalidInput("no memory for a third"))
        pool = ProcessPool(START, 3)
        with pytest.raises(InvalidInput, match="no memory for a third"):
            await pool.open()
        assert [process.closed for process in launches.processes] == [True, True]

    run(story)
