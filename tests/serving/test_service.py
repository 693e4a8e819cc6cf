"""The service between the wire formats and the processes: with processes that are fakes, and a clock that is one."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit
from offramp.serving.frames import AnswersFrame, ArrayFrame, PartFrame
from offramp.serving.ladder import Ladder, Rung
from offramp.serving.load_controller import LoadController
from offramp.serving.request import Options, Refusal, Request, TokenIds
from offramp.serving.running import Running
from offramp.serving.served import FULL
from support.service import LAYERS, LIMITS, Bench, First, Process, settle


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


def kinds(running: Running) -> list[str | None]:
    return [None if row.error is None else row.error.kind for row in running.rows()]


def ids(*numbers: int) -> TokenIds:
    return TokenIds(numbers)


def test_rows_of_several_requests_go_together_and_answers_come_back_to_their_own() -> None:
    async def story() -> None:
        bench = Bench()
        first = await bench.start(ids(7, 8), ids(9))  # the process is free
        second, third = (
            await bench.start(ids(11, 12, 13), max_depth=10**30),
            await bench.start("a cat", ids(5, 6), max_depth=2),
        )
        bench.process.answer()
        await settle()
        assert first.finished.done()
        assert bench.batch_sizes() == [3]
        plans = sorted(bench.process.waiting[0][0].plans, key=str)
        assert plans == [("default", 2), ("default", 2), ("default", None)]
        bench.process.answer()
        await settle()
        for running, firsts in ((first, [7, 9]), (second, [11]), (third, [2, 5])):  # a text begins with [CLS]
            assert [row.logits[0] for row in running.rows()] == firsts
            assert [row.tokens for row in running.rows()] == [int(row.logits[1]) for row in running.rows()]
        assert (bench.service.rows, len(bench.service.queue)) == (0, 0)
        assert bench.counts.batches == [(2, 4), (3, 12)]
        assert bench.counts.left == [(4, "default")] * 5

    run(story())


def test_rows_that_leave_before_the_first_layer_need_no_process() -> None:
    async def story() -> None:
        bench = Bench(first=First())
        done = await bench.service.start(Request([ids(20), ids(33)]))
        assert done.finished.done()  # in the request's own task
        assert [(row.logits[0], row.exit_layer) for row in done.rows()] == [(20, 0), (33, 0)]
        assert (bench.service.rows, len(bench.service.queue)) == (0, 0)
        mixed = await bench.start(ids(19), ids(21))
        assert [result is not None for result in mixed.results] == [False, True]
        bounded = await bench.start(ids(1), max_depth=0)
        assert bounded.rows()[0].exit_layer == 0
        for options in ({"details": True}, {"operating_point": "full", "max_depth": 0}, {"operating_point": "full"}):
            assert not (await bench.start(ids(39), **options)).finished.done()
        assert bench.counts.left == [(0, "default")] * 4
        assert len(bench.service.queue) == 3  # the row of 19 is with the process

    run(story())


def test_an_abandoned_request_costs_no_batch_row_and_no_answer() -> None:
    async def story() -> None:
        bench = Bench()
        busy, gone, stays = [await bench.start(ids(number)) for number in (5, 6, 7)]
        bench.service.abandon(gone)
        bench.service.abandon(busy)  # on its way: the answer is thrown away
        bench.service.abandon(busy)
        assert bench.service.rows == 1
        bench.process.answer()
        await settle()
        bench.process.answer()
        await settle()
        assert [batch.inputs["input_ids"].array().tolist() for batch in bench.process.done] == [[[5]], [[7]]]
        assert [row.logits[0] for row in stays.rows()] == [7]
        assert gone.finished.cancelled()
        assert busy.rows() == []
        assert (bench.service.rows, bench.counts.left) == (0, [(4, "default")])
        assert not bench.service._running

    run(story())


def test_rows_of_a_process_that_ended_go_once_more_each_alone() -> None:
    async def story() -> None:
        bench = Bench(size=2)
        bench.pool.idle.pop(0)  # the second one only
        process: Process = bench.pool.all[1]
        together = await bench.service.start(Request([ids(5), ids(6)]))
        gone = await bench.start(ids(8))
        assert bench.batch_sizes() == [3]
        bench.service.abandon(gone)
        process.end()
        bench.pool.idle.append(process)
        await settle()
        assert bench.batch_sizes() == [1]
        assert bench.counts.retried == 2
        process.end()  # the first row again: no third try
        bench.pool.give_back(process)
        await settle()
        assert bench.batch_sizes() == [1]
        process.answer()
        await settle()
        assert bench.batch_sizes() == []
        assert kinds(together) == ["unavailable", None]
        assert together.rows()[1].logits[0] == 6

    run(story())


def test_rows_that_leave_first_are_answered_first_and_go_to_no_second_process() -> None:
    async def story() -> None:
        bench = Bench()
        process = bench.process
        first, second = await bench.start(ids(7)), await bench.start(ids(8), ids(9, 9))
        process.answer()
        await settle()  # the first row went alone
        ((batch, _),) = process.waiting
        assert batch.inputs["input_ids"].array().tolist() == [[9, 9], [8, 0]]
        logits = ArrayFrame.of(np.array([[9.0, 2.0, 0.0]], np.float32))
        process.on_part(PartFrame([0], AnswersFrame(logits, [2], [False], {}, None, LAYERS, 0.0)))
        assert [None if row is None else row.exit_layer for row in second.results] == [None, 2]
        assert bench.service.rows == 1
        process.end()
        bench.pool.give_back(process)
        await settle()
        ((batch, _),) = process.waiting
        assert batch.inputs["input_ids"].array().tolist() == [[8]]
        assert bench.counts.retried == 1
        process.answer()
        await second.finished
        assert first.finished.done()
        assert [row.exit_layer for row in second.rows()] == [4, 2]

    run(story())


def test_a_row_that_goes_alone_waits_for_a_process_without_other_rows() -> None:
    async def story() -> None:
        bench = Bench()
        process = bench.process
        await bench.start(ids(7))
        process.end()
        process.rows = 1  # of a batch that it still has
        await settle()
        bench.pool.give_back(process)
        bench.now += 1
        await bench.start(ids(8))
        assert (process.waiting, len(bench.service.queue)) == ([], 2)
        process.rows = 0
        bench.pool.idle.remove(process)
        bench.pool.give_back(process)
        await settle()
        assert (bench.batch_sizes(), process.alone) == ([1], [False, True])

    run(story())


def test_another_error_of_a_batch_loses_neither_its_rows_nor_its_process(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        bench = Bench()
        running = await bench.start(ids(5), ids(6))
        bench.process.end(RuntimeError("the transport is closed"))
        await settle()
        assert kinds(running) == ["failed", "failed"]
        assert bench.process.killed  # for the pool, which starts another one
        assert bench.pool.idle == []
        assert bench.service.rows == 0
        assert "the transport is closed" in caplog.text
        caplog.clear()

    run(story())


def test_what_is_over_its_time_is_refused_wherever_it_is() -> None:
    async def story() -> None:
        limits = replace(LIMITS, timeout_s=0.02)
        bench = Bench(limits=limits)
        flying, waiting = await bench.start(ids(5)), await bench.start(ids(6))
        bench.now += 0.019
        await asyncio.sleep(0.05)
        assert not flying.finished.done()
        bench.now += 0.001
        await asyncio.sleep(0.05)
        assert kinds(flying) == kinds(waiting) == ["timeout"]
        assert len(bench.service.queue) == 0
        bench.process.answer()  # too late
        await settle()
        assert kinds(flying) == ["timeout"]
        assert bench.counts.failed == ["timeout"] * 2
        assert bench.batch_sizes() == []

    run(story())


REFUSED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("validation", [ids(5)], {"operating_point": "fast"}, "no operating point 'fast'; there are: default, full"),
    ("validation", [ids(5)], {"max_depth": 0}, "max_depth must be at least 1, the first exit; got 0"),
    ("batch_size", [ids(5)] * 9, {}, "batch size 9 > maximum allowed batch size 8"),
]


@pytest.mark.parametrize(("kind", "items", "options", "message"), REFUSED, ids=[one[3][:22] for one in REFUSED])
def test_a_request_that_asks_for_what_there_is_not_is_refused(
    kind: str, items: list[Any], options: dict[str, Any], message: str
) -> None:
    async def story() -> None:
        bench = Bench()
        with pytest.raises(Refusal, match=message) as caught:
            await bench.start(*items, **options)
        assert caught.value.kind == kind
        assert (bench.service.rows, bench.batch_sizes()) == (0, [])

    run(story())


def test_beyond_the_limit_of_rows_one_and_many_are_refused_alike() -> None:
    async def story() -> None:
        bench = Bench()
        accepted = [await bench.start(*[ids(5)] * 8) for _ in range(3)]  # the third one comes at 16 rows of 20
        for count in (1, 8):
            with pytest.raises(Refusal) as caught:
                await bench.start(*[ids(5)] * count)
            assert (caught.value.kind, caught.value.retry_after_s) == ("overloaded", 1.0)
        with pytest.raises(Refusal, match="batch size 9"):  # which another try does not help
            await bench.start(*[ids(5)] * 9)
        bench.service.abandon(accepted[0])
        await bench.start(ids(5))

    run(story())


def test_a_fault_of_a_row_is_its_own() -> None:
    async def story() -> None:
        bench = Bench()
        running = await bench.start("", ids(5), "the \ud800", ids(99), ids(6), ids(7), ids())
        logits = np.array([[5, 1, 0], [6, np.nan, 0], [7, 1, 0]], np.float32)
        bench.process.answer(logits=ArrayFrame.of(logits), errors={2: "RuntimeError: it broke"})
        await settle()
        assert kinds(running) == ["empty", None, "validation", "validation", "failed", "failed", "empty"]
        messages = [str(row.error) for row in running.rows()]
        assert messages[3] == "there is no token 99: the model has 40, from 0"
        assert messages[4:6] == ["the model's logits are not finite", "RuntimeError: it broke"]
        assert bench.service.rows == 0

    run(story())


def test_details_are_the_exits_that_a_row_came_to() -> None:
    async def story() -> None:
        bench = Bench()
        with_, without = await bench.start(ids(4), ids(3), details=True), await bench.start(ids(5))
        bench.process.answer(exit_layers=[2, 4], logits_by_exit=ArrayFrame.of(BY_EXIT))
        await settle()
        bench.process.answer()
        await settle()
        assert [{layer: values.tolist() for layer, values in row.logits_by_exit.items()} for row in with_.rows()] == [
            {1: [0, 1, 2], 2: [3, 4, 5]},
            {layer: [3 * exit + 12, 3 * exit + 13, 3 * exit + 14] for exit, layer in enumerate(LAYERS)},
        ]
        assert without.rows()[0].logits_by_exit == {}

    run(story())


BY_EXIT = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
BY_EXIT[0, 2:] = np.nan


def test_a_request_that_is_cancelled_while_it_is_tokenized_leaves_nothing() -> None:
    async def story() -> None:
        bench = Bench()
        long = "the cat sat on the mat " * 400
        task = asyncio.ensure_future(bench.service.start(Request([long])))
        await asyncio.sleep(0)
        assert bench.service.rows == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert (bench.service.rows, len(bench.service.queue), bench.batch_sizes()) == (0, 0, [])
        running = await bench.service.start(Request([long]))
        await settle()
        bench.process.answer()
        await settle()
        assert running.rows()[0].tokens == 32  # cut

    run(story())


def test_a_drain_answers_what_it_can_and_refuses_what_is_late() -> None:
    async def story() -> None:
        bench = Bench()
        loop = asyncio.get_running_loop()
        bench.service._clock = loop.time
        answered, stuck = await bench.start(ids(5)), await bench.start(ids(6))
        long = asyncio.ensure_future(bench.service.start(Request(["the cat " * 2000])))
        await asyncio.sleep(0)
        drain = asyncio.ensure_future(bench.service.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(Refusal) as caught:
            await bench.service.start(Request([ids(5)]))
        assert caught.value.kind == "unavailable"
        bench.process.answer()
        await settle()
        assert kinds(answered) == [None]
        assert await drain == 2  # `stuck` is with the process, the long text waits for it
        assert kinds(stuck) == kinds(await long) == ["unavailable"]
        await bench.service.close()
        assert not bench.service._running
        assert not bench.service._batches

    run(story())


def test_closing_leaves_nobody_waiting() -> None:
    async def story() -> None:
        bench = Bench()
        running = [await bench.start(ids(5)), await bench.start(ids(6))]
        await bench.service.close()
        assert all(one.finished.cancelled() for one in running)
        assert bench.service.rows == 0

    run(story())


@pytest.fixture(autouse=True)
def no_task_is_left_with_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_requests_that_are_over_are_let_go_of() -> None:
    async def story() -> None:
        bench = Bench()
        done, gone, late = [await bench.start(ids(number)) for number in (5, 6, 7)]
        bench.service.abandon(gone)
        bench.process.answer()
        await settle()
        bench.process.answer()
        await settle()
        bench.process.done.clear()
        kept = [weakref.ref(running) for running in (done, gone, late)]
        del done, gone, late
        gc.collect()
        assert [ref() for ref in kept] == [None] * 3

    run(story())


def test_full_depth_has_a_name() -> None:
    served = Bench().served
    assert served.point_name(Options(operating_point="full", max_depth=1)) == FULL
    assert served.point_name(Options()) == "default"


class Silent:
    """Hears alarms, and does nothing."""

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        """Do nothing."""

    def audited(self, logits: Any, tokens: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def test_rows_go_at_the_rung_in_force_when_their_batch_goes_and_a_named_point_stays() -> None:
    async def story() -> None:
        bench = Bench()
        ladder = Ladder((Rung(FULL, 1.0, 0.0), Rung("default", 0.5, 0.1)), 0, 1)
        controller = LoadController(ladder, 0.05)
        audit = Audit(ladder, 0.0, 0.05, Random(0))
        bench.adapt(Adaptive(ladder, controller, audit, Silent(), "single_label_classification"))
        first = await bench.start(ids(5))
        waits = await bench.start(ids(6), ids(7))
        named = await bench.start(ids(8), operating_point="full")
        controller.rung = 1
        bench.process.answer()
        await settle()
        assert sorted(bench.process.waiting[0][0].plans) == [("default", None), ("default", None), ("full", None)]
        bench.process.answer()
        await settle()
        found = [[row.point for row in running.rows()] for running in (first, waits, named)]
        assert found == [["full"], ["default", "default"], ["full"]]
        assert bench.counts.left == [(4, "full"), (4, "default"), (4, "default"), (4, "full")]
        await bench.service.close()

    run(story())
