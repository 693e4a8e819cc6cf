"""The rung that a budget for depth calls for, with rows whose layers are known."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from offramp.serving.depth_budget import MOST_WINDOWS, WINDOW, DepthBudget
from support.simulated_server import ladder_of_costs

COSTS = (1.0, 0.5, 0.25)


def rungs(budget: DepthBudget, windows: int, depth_by_rung: Sequence[int]) -> list[int]:
    """Return the rung after each window of rows that run so many layers at the rung in force."""
    found = []
    for _ in range(windows):
        layer = depth_by_rung[budget.rung]
        for _ in range(WINDOW):
            budget.add(layer)
        found.append(budget.rung)
    return found


def test_a_whole_window_above_the_budget_leads_down_and_one_below_back_later_each_time() -> None:
    budget = DepthBudget(ladder_of_costs(COSTS), 4.5)
    assert rungs(budget, 2, (4, 2, 1)) == [0, 0]
    assert budget.mean == 4.0
    attack = rungs(
        budget, 20, (6, 2, 1)
    )  # at half the cost a depth of 2 makes 4 expected: it is tried again, and fails
    assert attack == [1, 1, 0, 1, 1, 1, 1, 0, *[1] * 8, 0, 1, 1, 1]
    assert rungs(budget, MOST_WINDOWS, (4, 2, 1))[-1] == 0


def test_where_no_rung_is_within_the_budget_the_floor_is_the_end() -> None:
    budget = DepthBudget(ladder_of_costs(COSTS, floor=1), 1.5)
    assert rungs(budget, 5, (6, 5, 4)) == [1] * 5
    assert budget.mean == 5.0


def test_no_way_back_is_taken_where_costs_say_that_it_would_be_above_the_budget() -> None:
    budget = DepthBudget(ladder_of_costs(COSTS), 4.5)
    assert rungs(budget, 50, (6, 3, 2)) == [1] * 50  # 6 layers are expected


@pytest.mark.parametrize(("seed", "layers"), [(0, 6), (1, 12), (2, 24)])
def test_chance_does_not_trip_a_budget_a_twentieth_of_the_layers_above_the_mean(seed: int, layers: int) -> None:
    """Rows leave at the first or the last layer, as unequal as they can be; 25 windows."""
    budget, draw = DepthBudget(ladder_of_costs(COSTS), layers / 2 + layers / 20), Random(seed)
    for _ in range(25 * WINDOW // 8):
        for bit in range(8):
            budget.add(layers * (draw.getrandbits(8) >> bit & 1))
    assert budget.rung == 0
