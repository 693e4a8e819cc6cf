"""What batches take, learned from batches whose times are known by a formula."""

from __future__ import annotations

from random import Random

import pytest

from offramp.serving.batch_times import BatchTimes

COSTS = (1.0, 0.5, 0.25)


def learned(batches: int, true: tuple[float, ...] = COSTS, rungs: tuple[int, ...] = (0, 1, 2)) -> BatchTimes:
    """Return what batches of 1 to 32 rows of ten tokens teach that take 2 ms and, at full depth, 1 ms a row."""
    times, draw = BatchTimes(COSTS), Random(0)
    for _ in range(batches):
        rung, rows = draw.choice(rungs), draw.randint(1, 32)
        times.add([rung] * rows, 10 * rows, 0.002 + 0.001 * rows * true[rung])
    return times


def test_nothing_is_expected_before_the_first_batch() -> None:
    times = BatchTimes(COSTS)
    assert (times.seconds(0, 100), times.row_seconds(0), times.full_depth([0, 1], 20)) == (0.0, 0.0, 0.0)


def test_a_batch_takes_a_time_of_its_own_and_one_for_its_tokens_by_rung() -> None:
    times = learned(400)
    for rung, cost in enumerate(COSTS):
        assert times.seconds(rung, 80) == pytest.approx(0.002 + 0.008 * cost, rel=0.15)
        assert times.full_depth([rung] * 8, 80) == pytest.approx(0.008, rel=0.25)
    assert times.row_seconds(1) == pytest.approx(0.0005, rel=0.25)


def test_a_cost_that_is_off_is_corrected_by_what_its_batches_take_and_by_no_more_than_twice() -> None:
    times = learned(2000, true=(1.0, 0.75, 0.25))
    assert times.seconds(1, 160) / times.seconds(0, 160) == pytest.approx(14 / 18, rel=0.1)
    wild = learned(3000, true=(1.0, 5.0, 0.25))
    assert wild._factors[1] == 1.0


def test_what_slows_all_batches_down_is_forgotten_on_another_rung() -> None:
    """A rung that is too slow is left; were it remembered as slow, it would never be taken again."""
    times = BatchTimes(COSTS)
    for _ in range(100):
        times.add([0] * 10, 100, 0.05)
    for _ in range(300):
        times.add([2] * 10, 100, 0.0025)
    assert times.seconds(0, 100) < 0.025


def test_a_batch_in_which_the_machine_stood_still_counts_little() -> None:
    times = learned(200)
    before = times.seconds(0, 100)
    times.add([0] * 10, 100, 5.0)
    assert times.seconds(0, 100) < 1.2 * before
