"""A request's latency budget: what is one, the order of rows that wait, and the points at which they go."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.error
import urllib.request
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit
from offramp.serving.ladder import Ladder, Rung
from offramp.serving.load_controller import LoadController
from offramp.serving.queue import Queue, WaitingRow
from offramp.serving.request import Options, Refusal, TokenIds
from offramp.serving.running import Running
from offramp.serving.served import FULL
from support.service import Bench, First, settle
from support.simulated_server import Silent

LADDER = Ladder((Rung(FULL, 1.0, 0.0), Rung("default", 0.5, 0.1)), 0, 1)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


def ids(*numbers: int) -> TokenIds:
    return TokenIds(numbers)


def adaptive_bench(first: Any = None) -> Bench:
    """Return a service on a ladder of two rungs, whose batches have taken 20 ms a token at full depth."""
    bench = Bench(first=first)
    audit = Audit(LADDER, 0.0, 0.05, Random(0))
    adaptive = Adaptive(LADDER, LoadController(LADDER, 0.05), audit, Silent(), "single_label_classification")
    for _ in range(10):
        adaptive.times.add([0], 1, 0.02)
    bench.adapt(adaptive)
    return bench


def points(running: Running) -> list[str]:
    return [row.point for row in running.rows()]


@pytest.mark.parametrize("budget", [0, -1.0, math.inf, math.nan])
def test_a_budget_is_a_finite_number_above_0(budget: float) -> None:
    with pytest.raises(Refusal, match="latency_budget_ms must be a number above 0, in milliseconds; got") as caught:
        Bench().served.budget_s(Options(latency_budget_ms=budget))
    assert caught.value.kind == "validation"


def test_rows_are_due_after_their_budget_else_the_servers_and_never_after_its_time_limit() -> None:
    served = Bench().served  # a time limit of 5 s
    found = [served.budget_s(Options(latency_budget_ms=budget)) for budget in (None, 2, 1e300)]
    assert found == [0.05, 0.002, 5.0]


def test_rows_go_as_they_are_due_without_a_ladder_too_and_late_ones_are_answered() -> None:
    async def story() -> None:
        bench = Bench(rows=1)
        busy = await bench.start(ids(5))
        patient, plain = await bench.start(ids(6), latency_budget_ms=900), await bench.start(ids(7))
        hurried = await bench.start(ids(8), latency_budget_ms=10)
        bench.now += 2.0  # all are late, none is refused
        for running in (busy, hurried, plain, patient):
            assert not running.finished.done()
            bench.process.answer()
            await settle()
            assert [row.error for row in running.rows()] == [None]

    run(story())


def test_a_row_with_too_little_time_left_goes_at_a_looser_point_and_one_with_much_at_that_in_force() -> None:
    async def story() -> None:
        bench = adaptive_bench()
        busy = await bench.start(ids(5), latency_budget_ms=10_000)
        waits = await bench.start(ids(6), latency_budget_ms=5000)
        hurried = await bench.start(ids(7), latency_budget_ms=100)
        named = await bench.start(ids(8), operating_point="full", latency_budget_ms=1)
        bench.now += 0.05  # 0.6 x 100 - 50 ms are left to one; the batch of three takes 60 ms, or 30
        for _ in range(2):
            bench.process.answer()
            await settle()
        found = [points(running) for running in (busy, waits, hurried, named)]
        assert found == [["full"], ["full"], ["default"], ["full"]]
        await bench.service.close()

    run(story())


@pytest.mark.parametrize(("budget_s", "rung"), [(0.05, 1), (0.2, 1), (0.049, 0)])
def test_late_rows_lead_the_server_down_unless_they_ask_for_more_than_its_target(budget_s: float, rung: int) -> None:
    adaptive = adaptive_bench().service.adaptive
    assert adaptive is not None
    for number in range(50):
        since = 86_400.1 + 0.37 * number
        row = WaitingRow(number, 8, since, since + budget_s, since + 5.0, None)
        assert adaptive.point_of(row, 8, row.due) == "default"
    adaptive.look(Queue(8, 1000), 1, 86_500.0)
    assert adaptive.rung == rung


def test_drift_that_has_closed_a_point_bounds_budgets_too() -> None:
    async def story() -> None:
        bench = adaptive_bench()
        assert bench.service.adaptive is not None
        assert bench.service.adaptive.audit is not None
        bench.service.adaptive.audit.closed = 1
        hurried = await bench.start(ids(5), latency_budget_ms=1)
        bench.process.answer()
        await settle()
        assert points(hurried) == ["full"]
        await bench.service.close()

    run(story())


def test_a_hurried_row_leaves_before_the_first_layer_where_its_point_lets_it() -> None:
    """The looser point lets rows with a first token of 20 leave; full depth lets none."""

    async def story() -> None:
        bench = adaptive_bench(First())
        plain, hurried = await bench.start(ids(20)), await bench.start(ids(20), latency_budget_ms=30)
        assert [running.finished.done() for running in (plain, hurried)] == [False, True]
        assert (points(hurried), hurried.rows()[0].exit_layer) == (["default"], 0)
        await bench.service.close()

    run(story())


CHOICE = {"type": "choice", "criteria": {"bad": None, "fine": None, "good": None}}
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}
FORMATS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "text-embeddings-inference": ("/predict", {"inputs": "good"}, "early_exit", 422),
    "Hugging Face": ("/", {"inputs": "good"}, "parameters", 422),
    "vLLM": ("/classify", {"input": "good"}, "early_exit", 400),
    "KServe": ("/v1/models/tiny:predict", {"instances": ["good"]}, "early_exit", 400),
    "Open Inference Protocol": ("/v2/models/tiny/infer", {"inputs": [TENSOR]}, "parameters", 400),
    "OpenAI": (
        "/v1/decisions",
        {
            "input": "good",
            "questions": [
                {
                    "type": "choice",
                    "instructions": "which?",
                    "choices": [{"value": name} for name in ("bad", "fine", "good")],
                }
            ],
        },
        "early_exit",
        400,
    ),
    "System One": ("/v1/systemone", {"state": "good", "questions": {"q": CHOICE}}, "early_exit", 422),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_a_budget_and_refuses_a_wrong_one_in_its_own_form(url: str, name: str) -> None:
    path, body, key, refused = FORMATS[name]
    for budget, status, message in (
        (25, 200, ""),
        (0, refused, "latency_budget_ms must be a number above 0"),
        (-1.5, refused, "latency_budget_ms must be a number above 0"),
        ("soon", None, "latency_budget_ms"),
    ):
        found, answer = ask(url + path, body | {key: {"latency_budget_ms": budget}})
        assert found == (status or found)
        assert 200 <= found < 500
        assert message in answer


def ask(url: str, body: dict[str, Any]) -> tuple[int, str]:
    """Return the status and the body of an answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_rows_are_due_somewhat_before_the_answer_is_wanted() -> None:
    async def story() -> None:
        bench = Bench()
        some = [await bench.start(ids(5)), await bench.start(ids(5), latency_budget_ms=200)]
        assert [running.due - running.begin for running in some] == pytest.approx([0.6 * 0.05, 0.6 * 0.2])
        await bench.service.close()

    run(story())
