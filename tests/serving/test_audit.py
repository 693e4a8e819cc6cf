"""The audit: what is drawn, on which rungs it runs, and what of the processes' time it takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from offramp.data.padding import Array
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import MOST_CREDIT_S, MOST_WAITING, TIME_SHARE, Audit, AuditRow
from offramp.serving.batches import audit_frames
from offramp.serving.frames import ArrayFrame
from offramp.serving.ladder import Ladder, Rung
from offramp.serving.load_controller import LoadController
from offramp.serving.request import TokenIds
from offramp.serving.served import FULL, Limits
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import SINGLE_LABEL
from support.service import Bench, First, settle

RUNGS = (Rung(FULL, 1.0, 0.0), Rung("keep-99", 0.8, 0.02), Rung("2x", 0.5, 0.1), Rung("4x", 0.25, None))
LADDER = Ladder(RUNGS, 0, 3)
ROW = {"input_ids": [1, 2]}
AGREES, DIFFERS = [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]


class Heard:
    """Notes what a report of drift would hear."""

    def __init__(self) -> None:
        self.rungs: list[int] = []
        self.rows: list[tuple[Array, int]] = []

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        self.rungs.append(rung)

    def audited(self, logits: Array, tokens: int) -> None:
        self.rows.append((logits, tokens))

    def close(self) -> None:
        """Do nothing."""


def audit(share: float = 1.0, ladder: Ladder = LADDER) -> Audit:
    return Audit(ladder, share, 0.05, Random(0))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


# --- rows and rungs -----------------------------------------------------------------------------------------


def test_each_row_is_drawn_by_its_own_random_number_whatever_waits() -> None:
    numbers = Random(0)
    drawn = [numbers.random() < 0.3 for _ in range(2000)]
    idle, full = audit(0.3), audit(0.3)
    for number in range(0, 2000, 4):
        before = idle.audited
        idle.draw([ROW] * 4)
        full.draw([ROW] * 4)  # no process is ever free
        while (row := idle.take(float(number), 1)) is not None:
            idle.done(row, {1: False, 2: False}, 0.0)
        assert idle.audited - before == sum(drawn[number : number + 4])
    assert full.audited == 0
    assert full.dropped > 0
    assert full.dropped + len(full._waiting) == idle.audited == sum(drawn)
    assert MOST_WAITING <= len(full._waiting) < MOST_WAITING + 4


@pytest.mark.parametrize(("share", "audited"), [(0.0, 0), (1.0, 50)])
def test_none_and_all(share: float, audited: int) -> None:
    every = audit(share)
    assert every.draw([ROW] * 50) == bool(audited)
    assert len(every._waiting) == audited


def test_a_row_runs_on_every_watched_rung_down_to_the_floor() -> None:
    watch = audit()
    assert {number: (monitor.level, monitor.delta) for number, monitor in watch.monitors.items()} == {
        1: (0.02, 0.025),  # delta is shared; full depth has nothing to watch, 4x no certificate
        2: (0.1, 0.025),
    }
    assert list(audit(ladder=Ladder(RUNGS, 0, 1)).monitors) == [1]  # load leads to no other
    assert watch.draw([ROW])
    row = watch.take(0.0, 1)
    assert row is not None
    assert row.rungs == (1, 2)


def test_an_alarm_closes_its_rung_and_the_looser_ones_and_the_audit_goes_on_above() -> None:
    watch, closed = audit(), []
    for number in range(60):
        watch.draw([ROW])
        row = watch.take(float(number), 1)
        assert row is not None
        assert row.rungs == ((1, 2) if watch.closed is None else (1,) if watch.closed == 2 else ())
        closed.append(watch.done(row, {1: number > 20, 2: True}, 0.0))
    assert [rung for rung in closed if rung is not None] == watch.alarms == [2, 1]
    assert watch.closed == 1
    assert watch.audited == 60


# --- budget -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 4])
def test_the_audit_takes_its_share_of_the_processes_time_and_no_more(processes: int) -> None:
    """A row takes 30 ms, a process is free each 2 ms, and there are always rows: 100 s of that."""
    watch, taken, now = audit(), 0.0, 0.0
    for _ in range(50_000):
        now += 0.002
        if len(watch._waiting) < 10:
            watch.draw([ROW])
        if (row := watch.take(now, processes)) is not None:
            assert watch.take(now, processes) is None  # one at a time
            assert watch.pause_s(processes) is None
            watch.done(row, dict.fromkeys(row.rungs, False), 0.03)
            taken += 0.03
    most = TIME_SHARE * processes * now + MOST_CREDIT_S
    assert most - 0.1 < taken <= most + 0.03


def test_a_full_server_audits_too() -> None:
    """There are more rows than one process can do, and each batch takes 10 ms: the audit has 5 % of 2 s, and 0.5 s."""

    async def story() -> None:
        server = served(share=1.0)
        audits = batches = 0
        while server.now < 102.0:
            while len(server.service.queue) < 8:
                await server.start(TokenIds([5]))
            is_audit = len(server.process.waiting[0][0].plans) == 3 and server.process.waiting[0][0].plans[0][0] == FULL
            audits, batches = audits + is_audit, batches + (not is_audit)
            server.now += 0.005 if is_audit else 0.01
            server.process.answer(seconds=0.005 if is_audit else 0.01)
            await settle()
        assert audits * 0.005 == pytest.approx(0.05 * 2 + 0.5, abs=0.02)
        assert batches * 0.01 == pytest.approx(2 - audits * 0.005, abs=0.02)
        found = server.service.adaptive
        assert found is not None
        assert found.audit is not None
        assert found.audit.audited == audits
        assert found.audit.dropped > 0
        await server.service.close()

    run(story())


# --- a server whose processes are fakes ---------------------------------------------------------------------


def served(share: float = 1.0, size: int = 1, first: Any = None, limits: Limits | None = None) -> Bench:
    """Return a server of two watched rungs, "keep-99" and "default", whose audit draws that share."""
    server = Bench(size, first=first)
    point = server.served.points["default"]
    points = {"keep-99": point, "default": point}
    server.served = replace(server.served, points=points, limits=limits or server.served.limits)
    ladder = Ladder((RUNGS[0], RUNGS[1], Rung("default", 0.5, 0.1)), 1, 2)
    server.adapt(Adaptive(ladder, LoadController(ladder, 9.0), audit(share, ladder), Heard(), SINGLE_LABEL))
    return server


def audit_of(server: Bench) -> Audit:
    assert server.service.adaptive is not None
    assert server.service.adaptive.audit is not None
    return server.service.adaptive.audit


def test_rows_that_leave_before_the_first_layer_are_audited_too() -> None:
    async def story() -> None:
        server = served(first=First())
        done = await server.start(TokenIds([33, 4]))
        assert done.finished.done()
        ((frame, _),) = server.process.waiting
        assert frame.plans == [(FULL, None), ("keep-99", None), ("default", None)]
        assert frame.inputs["input_ids"].array().tolist() == [[33, 4]] * 3
        server.process.answer(logits=ArrayFrame.of(np.array([AGREES, AGREES, DIFFERS], np.float32)))
        await settle()
        found = {rung: (monitor.rows, monitor.losses) for rung, monitor in audit_of(server).monitors.items()}
        assert found == {1: (1, 0), 2: (1, 1)}
        assert len(server.pool.idle) == 1
        assert server.counts.left == [(0, "keep-99")]
        await server.service.close()

    run(story())


def test_requests_that_name_a_point_are_not_drawn() -> None:
    async def story() -> None:
        server = served()
        await server.start(TokenIds([5]), operating_point="default")
        assert server.batch_sizes() == [1]
        assert (len(audit_of(server)._waiting), audit_of(server).dropped) == (0, 0)
        await server.service.close()

    run(story())


def test_rows_that_wait_go_once_the_budget_is_there_though_no_request_comes() -> None:
    async def story() -> None:
        server = served(first=First())
        watch = audit_of(server)
        assert watch.take(server.now, 1) is None
        watch._credit_s = -0.0005
        await server.start(TokenIds([33]))
        assert server.batch_sizes() == []
        server.now += 1.0
        await asyncio.sleep(0.05)  # 0.5 ms at a share of 5 % are 10 ms
        assert server.batch_sizes() == [3]
        await server.service.close()

    run(story())


@pytest.mark.parametrize("error", [None, ValueError("not known")])
def test_a_process_that_ends_during_an_audit_takes_no_more_than_that_row(error: Exception | None) -> None:
    async def story() -> None:
        server = served(first=First(), size=2)
        await server.start(TokenIds([33]))
        ((busy),) = [process for process in server.pool.all if process.waiting]
        busy.end(error)
        await settle()
        assert busy.killed == (error is not None)
        assert (audit_of(server).audited, audit_of(server).dropped) == (0, 1)
        await server.start(TokenIds([34]))
        assert server.batch_sizes() == [3]  # on the other one
        await server.service.close()

    run(story())


def test_a_drain_neither_waits_for_an_audit_nor_begins_one() -> None:
    async def story() -> None:
        server = served(first=First(), size=2)
        await server.start(TokenIds([33]), TokenIds([34]))
        assert server.batch_sizes() == [3]
        assert await asyncio.wait_for(server.service.drain(), 0.1) == 0
        next(process for process in server.pool.all if process.waiting).answer()
        await settle()
        assert server.batch_sizes() == []
        assert len(audit_of(server)._waiting) == 1
        await server.service.close()

    run(story())


def test_after_an_alarm_the_exits_of_full_depth_are_kept() -> None:
    async def story() -> None:
        server = served()
        assert server.service.adaptive is not None
        heard, audits = server.service.adaptive._alarms, server.service._audits
        assert isinstance(heard, Heard)
        assert audits is not None
        for _ in range(20):
            await server.start(TokenIds([5, 6, 7]), operating_point="default")  # keeps the only process busy
            audits.draw([{"input_ids": [5, 6, 7]}])
            server.now += 1.0
            server.process.answer()
            await settle()
            plans = server.process.waiting[0][0].plans
            server.process.answer(logits=ArrayFrame.of(np.array([AGREES, AGREES, DIFFERS][: len(plans)], np.float32)))
            await settle()
        assert heard.rungs == [2]
        assert server.service.adaptive.point == "keep-99"
        assert 10 < len(heard.rows) < 20
        assert {(logits.shape, tokens) for logits, tokens in heard.rows} == {((4, 3), 3)}
        await server.service.close()

    run(story())


def test_a_long_row_goes_in_parts_of_at_most_a_batch() -> None:
    server = served(limits=Limits(max_batch_tokens=5))
    row = AuditRow({"input_ids": [1, 2], "attention_mask": [1, 1]}, (1, 2))
    frames = audit_frames(row, [FULL, "keep-99", "default"], server.served, True)
    assert [[name for name, _ in frame.plans] for frame in frames] == [[FULL, "keep-99"], ["default"]]
    assert [frame.by_exit for frame in frames] == [True, False]
    assert [frame.inputs["input_ids"].shape for frame in frames] == [(2, 2), (1, 2)]
    alone = audit_frames(AuditRow({"input_ids": [1] * 9}, ()), [FULL], server.served, False)
    assert [frame.inputs["input_ids"].shape for frame in alone] == [(1, 9)]


@pytest.mark.parametrize(
    ("logits", "found"),
    [
        ([AGREES, AGREES, AGREES], (1, 0, [0, 0])),
        ([AGREES, [math.nan] * 3, DIFFERS], (1, 0, [1, 1])),  # an error to the client, where full depth has an answer
        ([[math.inf] * 3, AGREES, AGREES], (0, 1, [0, 0])),  # nothing to compare with
    ],
)
def test_answers_that_are_not_finite(logits: list[list[float]], found: tuple[int, int, list[int]]) -> None:
    ladder = Ladder(RUNGS[:3], 0, 2)
    watch = audit(ladder=ladder)
    points = dict.fromkeys(("keep-99", "2x"), OperatingPoint({"name": "margin"}, (0.5,)))
    both = Adaptive(ladder, LoadController(ladder, 0.05), watch, Heard(), SINGLE_LABEL)
    watch.draw([ROW])
    row = watch.take(0.0, 1)
    assert row is not None
    both.audited(row, np.array(logits, np.float32), points, 0.01)
    assert (watch.audited, watch.dropped, [monitor.losses for monitor in watch.monitors.values()]) == found
    assert watch.draw([ROW])
    assert watch.take(1.0, 1) is not None  # the next one
