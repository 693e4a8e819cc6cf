"""The simulated deployment of benchmarks/serve_day.py: closed forms, the rule of Ray, and what the page says."""

import json
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from offramp.serving.ladder import Ladder, Rung
from offramp.types.cost_table import CostTable

ROOT = Path(__file__).parent.parent
FULL = Ladder((Rung("full", 1.0, 0.0),), 0, 0)


@pytest.fixture(scope="module")
def model() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield import_module("serve_day_model")
    sys.path.pop(0)


@pytest.fixture(scope="module")
def parts(model: ModuleType) -> ModuleType:
    return import_module("serve_day_parts")


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / "serve_day.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ray_policy() -> Any:
    return pytest.importorskip("ray.serve.autoscaling_policy", reason="Ray is not installed")


def table(batch_size: int, *ms: float) -> CostTable:
    return CostTable(tuple(range(1, len(ms) + 1)), ms, 0.0, "onnx-int8", batch_size, 10.0, "a machine")


def poisson(rate: float, count: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))


@pytest.mark.parametrize("busy", [0.3, 0.7])
def test_one_replica_without_batches_waits_as_long_as_the_formula_for_constant_times(
    model: ModuleType, parts: ModuleType, busy: float
) -> None:
    times = parts.Times([table(1, 10.0), table(8, 10.0)], row_s=0.0)
    plan = model.Plan(FULL, 0.1, None, 1, batch_rows=1, noise=0.0)
    outcome = model.Deployment(plan, parts.Rows([10], [[0]]), times, 0).run(poisson(busy / 0.010, 12_000))
    queued = outcome.waits.mean() - 0.010
    assert queued == pytest.approx(0.010 * busy / (2 * (1 - busy)), rel=0.12)  # M/D/1


def test_rows_that_leave_at_two_exits_wait_as_long_as_pollaczek_and_khinchin_say(
    model: ModuleType, parts: ModuleType
) -> None:
    times = parts.Times([table(1, 2.0, 18.0), table(8, 2.0, 18.0)], row_s=0.0)
    plan = model.Plan(FULL, 0.1, None, 1, batch_rows=1, noise=0.0)
    outcome = model.Deployment(plan, parts.Rows([10, 10], [[0, 1]]), times, 0).run(poisson(60.0, 12_000))
    mean_s, square = (0.002 + 0.018) / 2, (0.002**2 + 0.018**2) / 2
    assert outcome.waits.mean() - mean_s == pytest.approx(60 * square / (2 * (1 - 60 * mean_s)), rel=0.12)


def test_a_batch_takes_each_segment_with_the_rows_that_are_still_there(parts: ModuleType) -> None:
    times = parts.Times([table(1, 1.0, 3.0), table(8, 0.5, 1.5)], row_s=0.001)  # 10 and 80 tokens: 1 and 4, 2 and 8 ms
    at_40 = (1.0 + 3.0 * 30 / 70) / 1000
    at_10 = 2.0 / 1000
    assert times.seconds([0, 1, 0, 0], 10) == pytest.approx(4 * 0.001 + at_40 + at_10)
    assert times.seconds([1], 10) == pytest.approx(0.001 + 0.003)


def test_the_autoscaler_decides_what_ray_serve_does(
    parts: ModuleType, ray_policy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_config = import_module("ray.serve.config")

    class Context:
        """What the policy reads of `AutoscalingContext`."""

        config = ray_config.AutoscalingConfig(min_replicas=2, max_replicas=9, target_ongoing_requests=2.0)

        def __init__(self, rows: float, running: int, wanted: int, state: dict[str, Any]) -> None:
            self.total_num_requests, self.policy_state = rows, state
            self.current_num_replicas, self.target_num_replicas = running, wanted

    policy = ray_policy._apply_autoscaling_config(ray_policy.replica_queue_length_autoscaling_policy)
    ours = parts.Autoscaler(parts.Scaling(target=2.0, least=2, most=9))
    random, now, state, wanted, decisions = Random(0), 1000.0, {}, 2, []
    for step in range(2500):
        now += 1.0
        level = (3.0, 11.0, 30.0, 6.0)[step // 400 % 4]
        rows, running = level * random.uniform(0.7, 1.1), max(wanted - random.choice((0, 0, 1)), 1)
        monkeypatch.setattr(ray_policy.time, "time", lambda now=now: now)
        count, state = policy(Context(rows, running, wanted, state))
        expected = max(2, min(9, math.ceil(count)))
        assert ours.decide(now, rows, running, wanted) == expected, step
        wanted = expected
        decisions.append(wanted)
    assert len(set(decisions)) >= 4


def test_replicas_come_no_sooner_than_the_delay_and_the_start_and_are_paid_from_the_decision(
    model: ModuleType, parts: ModuleType
) -> None:
    times = parts.Times([table(1, 50.0), table(8, 50.0)], row_s=0.0)
    plan = model.Plan(FULL, 0.1, parts.Scaling(least=1, most=2, start_s=40.0), 1, batch_rows=1, noise=0.0)
    deployment = model.Deployment(plan, parts.Rows([10], [[0]]), times, 0)
    outcome = deployment.run(np.arange(0, 150, 0.04))  # 25 a second for a replica of 20
    (start, _), (decided, count), *_ = outcome.replicas
    assert (start, count) == (0.0, 2)
    assert decided >= 30.0
    assert outcome.hours(decided + 36.0) == pytest.approx((decided + 2 * 36.0) / 3600)
    longest = int(outcome.waits.argmax()) * 0.04
    assert longest == pytest.approx(decided + 40.0, abs=10.0)


def test_a_ladder_answers_a_burst_in_time_that_full_depth_does_not(model: ModuleType, parts: ModuleType) -> None:
    times = parts.Times([table(1, 4.0, 20.0), table(8, 4.0, 20.0)], row_s=0.0)
    rungs = (Rung("full", 1.0, 0.0), Rung("fast", 0.2, None))
    rows = parts.Rows([10], [[1], [0]])
    arrivals = np.concatenate([np.arange(0, 20, 0.05), np.arange(20, 40, 0.01)])  # 20 a second, then 100
    late = {}
    for floor in (0, 1):
        plan = model.Plan(Ladder(rungs, 0, floor), 0.1, None, 1)
        outcome = model.Deployment(plan, rows, times, 0).run(arrivals)
        late[floor] = (outcome.waits > 0.1).mean()
        assert set(outcome.rungs[arrivals < 20]) == {0}
    assert late[0] > 0.5
    assert late[1] < 0.02


def test_a_day_has_the_rows_and_the_swing_that_it_is_asked_for(parts: ModuleType) -> None:
    calm = parts.Day(mean=40.0, ratio=4.0, bursts=0).rates(0)
    assert calm.mean() == pytest.approx(40.0)
    assert calm.max() / calm.min() == pytest.approx(4.0, rel=1e-3)
    day = parts.Day(mean=40.0, bursts=12, factor=3.0)
    assert len(day.draw_bursts(1)) == 12
    assert (day.rates(1) / calm).max() == pytest.approx(3.0, rel=1e-3)
    arrivals = parts.Day(mean=40.0, bursts=0, seconds=3600.0).arrivals(0)
    assert len(arrivals) == pytest.approx(40.0 * 3600, rel=0.02)
    assert (np.diff(arrivals) >= 0).all()


def test_the_guide_has_the_tables_of_the_results(model: ModuleType, results: Any) -> None:
    guide_page, page = import_module("scaling_page"), import_module("serve_day_page")
    guide = guide_page.GUIDE.read_text(encoding="utf-8")
    written = guide_page.with_tables(guide, page.BEGIN, page.END, page.tables(results))
    assert written == guide, "run python benchmarks/serve_day.py --pages"


def test_the_days_are_what_the_guide_says_of_them(results: Any) -> None:
    systems, first = results["cells"]["sst2"], "late_100_in_first_minute_of_bursts"
    for seed, ladder in systems["ladder, autoscaler"].items():
        full, point = systems["full depth, autoscaler"][seed], systems["default point, autoscaler"][seed]
        assert full[first] > 0.3 > 0.01 > ladder[first]
        assert ladder["hours"] < full["hours"] < systems["full depth, fixed for the bursts"][seed]["hours"]
        assert ladder["most_replicas"] == 2
        assert ladder["lost"] < point["lost"]
        assert ladder["below_full"] > 0.5 > systems["ladder, fixed for the bursts"][seed]["below_full"]
        careful = systems["full depth, autoscaler aims at 1 row"][seed]["burst"]
        before = [late for now, late in zip(careful["seconds"], careful["late_100"], strict=True) if now < -20]
        assert max(before) < 0.01
