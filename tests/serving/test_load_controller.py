"""The rung that load calls for: by hand, and with a simulated server of two processes (125 rows a second, full depth).

The clock is a fake. A property of all loads is drawn over rates and seeds; a second of the simulation takes 10 ms.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.serving.load_controller import Load, LoadController
from support.simulated_server import SimulatedServer, ladder_of_costs

COSTS = (1.0, 0.75, 0.6, 0.45, 0.35, 0.2)
TARGET_S = 0.1
Costs = tuple[float, ...]
SEEDS = st.integers(0, 1000)


def controller(nominal: int = 0, floor: int = 5) -> LoadController:
    return LoadController(ladder_of_costs(COSTS, nominal, floor), TARGET_S)


def simulated(
    rate: float, seconds: float, seed: int, claimed: Costs = COSTS, target_s: float = TARGET_S
) -> SimulatedServer:
    return SimulatedServer(ladder_of_costs(claimed), target_s, COSTS, seed).run(lambda now: rate, seconds)


def looks(one: LoadController, count: int, begin: float, **load: float) -> list[int]:
    fields = {"wait_s": 0.0, "queue_s": 0.0, "demand": 0.0, "late": 0.0} | load
    return [one.look(Load(begin + 0.02 * number, **fields)) for number in range(count)]


def test_rows_that_wait_longer_than_the_target_lead_several_rungs_down_within_a_few_tenths_of_a_second() -> None:
    assert looks(controller(), 15, 0.0, wait_s=0.11) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert looks(controller(), 15, 0.0, wait_s=0.09) == [0] * 15


def test_a_long_queue_leads_at_once_to_the_rung_at_which_it_takes_half_the_target() -> None:
    assert looks(controller(), 1, 0.0, queue_s=0.12) == [4]  # 120 ms x 0.45 are 54, x 0.35 are 42
    assert looks(controller(), 1, 0.0, queue_s=10.0) == [5]
    assert looks(controller(floor=2), 1, 0.0, queue_s=0.12) == [2]
    one = controller()
    assert looks(one, 1, 0.0, wait_s=0.11) + looks(one, 1, 0.02, queue_s=10.0) == [1, 5]
    assert looks(controller(1), 1, 0.0, queue_s=0.12) == [5]  # 0.05 / 0.12 of the cost 0.75 are 0.31


def test_rows_for_which_the_rung_is_too_slow_lead_down_where_they_are_more_than_a_tenth() -> None:
    assert set(looks(controller(), 100, 0.0, late=0.09)) == {0}
    one = controller()
    looks(one, 1, 0.0)
    assert looks(one, 5, 0.02, late=0.5) == [0] * 5  # 0.5 (1 - exp(-0.1 / 0.5)) = 0.0906
    assert looks(one, 1, 0.12, late=0.5) == [1]  # 0.107


def test_the_way_back_is_one_rung_a_second_and_only_where_there_is_room() -> None:
    one = controller()
    assert looks(one, 1, 0.0, queue_s=0.12, demand=1.0) == [4]
    back = looks(one, 400, 0.02, demand=0.25)
    assert [back.index(rung) for rung in (3, 2, 1, 0)] == [199, 249, 299, 349]
    full = controller()
    looks(full, 1, 0.0, wait_s=0.11)
    assert set(looks(full, 3150, 0.02, demand=0.9)) == {1}  # 90 % busy
    assert looks(full, 60, 63.02, demand=0.9)[-1] == 0  # costs may be wrong


@pytest.mark.parametrize(
    ("demands", "pauses"),
    [
        ([(0.75, 0.75)] * 3, [4, 64, 1024]),
        ([(0.75, 0.75), (0.75, 0.75), (1.0, 0.4)], [4, 64, 4]),
        ([(0.25, 0.25), (0.25, 0.25), (0.25, 0.1)], [4, 64, 4]),  # late rows need no processes that are busy
        ([(0.05, 0.05), (0.05, 0.05), (0.05, 0.02)], [4, 64, 1024]),  # chance halves so small a load
        ([(0.25, 0.25), (0.25, 0.25), (0.25, 0.0)], [4, 64, 4]),  # without load the point is the strictest
    ],
)
def test_a_rung_that_had_to_be_left_is_let_alone_for_4_then_64_seconds_unless_load_falls(
    demands: list[tuple[float, float]], pauses: list[float]
) -> None:
    one, now, found = controller(), 0.0, []
    for before, demand in demands:
        looks(one, 150, now, demand=before)
        left = now = now + 3.0
        looks(one, 1, now, wait_s=0.11, demand=before)
        while one.rung:
            now += 0.02
            looks(one, 1, now, demand=demand)
        found.append(now - left)
        now += 0.1
    assert found == pytest.approx(pauses, abs=0.05)


def settled(server: SimulatedServer) -> int:
    """Return the rung that was in force for the longest in the second half."""
    return Counter(rung for _, rung in server.rungs[len(server.rungs) // 2 :]).most_common(1)[0][0]


@given(st.data())
@settings(max_examples=60)
def test_neither_the_floor_nor_the_point_without_load_is_passed(data: st.DataObject) -> None:
    nominal = data.draw(st.integers(0, 5))
    floor = data.draw(st.integers(nominal, 5))
    one, now, seconds = controller(nominal, floor), 0.0, st.floats(0, 10)
    for _ in range(30):
        now += data.draw(seconds)
        load = Load(now, data.draw(seconds), data.draw(seconds), data.draw(st.floats(0, 3)), data.draw(st.floats(0, 1)))
        assert nominal <= one.look(load) <= floor


WRONG = ((1.0, 0.87, 0.77, 0.67, 0.59, 0.4), (1.0, 0.56, 0.36, 0.225, 0.175, 0.1), (1.0, 0.8, 0.7, 0.4, 0.3, 0.25))
"""Costs that a ladder claims and that are up to a factor 2 off: too flat, too steep, both."""


@given(st.floats(math.log(10), math.log(800)), SEEDS, st.sampled_from([COSTS, *WRONG]))
@settings(max_examples=4)
def test_a_constant_load_settles_even_where_costs_are_wrong(log_rate: float, seed: int, claimed: Costs) -> None:
    """Near the limit of a rung a late row is a matter of chance: the rung may be left, tried and left again, once."""
    server = simulated(math.exp(log_rate), 40, seed, claimed)
    assert server.changes(0, 40) <= 10  # in a hundred runs 6 at most
    assert server.changes(20, 40) <= 4  # 0 in nine of ten runs, 2 at most


@pytest.mark.parametrize("rate", [40, 400])
def test_a_load_that_is_far_from_the_limit_of_a_rung_changes_nothing_after_the_first_seconds(rate: float) -> None:
    server = simulated(rate, 30, 1)
    assert server.changes(10, 30) == 0
    assert settled(server) == {40: 0, 400: 5}[rate]


@pytest.mark.parametrize(("rate", "target_s"), [(10, 0.02), (20, 0.03), (20, 0.04), (40, 0.05)])
def test_a_target_that_a_row_alone_can_hardly_keep_makes_nothing_oscillate(rate: float, target_s: float) -> None:
    """A row alone takes 16 to 24 ms at full depth, whatever the load."""
    server = simulated(rate, 60, 2, target_s=target_s)
    assert server.changes(0, 60) <= 12
    assert server.changes(30, 60) <= 3


@given(st.floats(20, 400), st.floats(1.3, 3), SEEDS, st.sampled_from([COSTS, *WRONG]))
@settings(max_examples=3)
def test_more_load_does_not_settle_on_a_stricter_rung(rate: float, more: float, seed: int, claimed: Costs) -> None:
    settled_on = [settled(simulated(some, 25, seed, claimed)) for some in (rate, more * rate)]
    assert settled_on == sorted(settled_on)


@given(st.floats(20, 65), SEEDS)
@settings(max_examples=4)
def test_a_burst_of_three_times_the_load_is_answered_in_time_and_leaves_nothing_after_ten_seconds(
    rate: float, seed: int
) -> None:
    """The floor takes 625 rows a second. In the burst 99 % are in time, or nearly; the way back takes 10 s at most."""
    server = SimulatedServer(ladder_of_costs(COSTS), TARGET_S, COSTS, seed)
    server.run(lambda now: 3 * rate if 5 <= now < 15 else rate, 30)
    in_burst = sorted(waited for since, waited in server.waits if 5 <= since < 15)
    assert in_burst[int(0.99 * len(in_burst))] < 1.1 * TARGET_S
    after = [rung for now, rung in server.rungs if now >= 25]
    assert after.count(0) > 0.75 * len(after)
    assert 0 in [rung for now, rung in server.rungs if 15 <= now < 25]
