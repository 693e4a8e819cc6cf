"""Which rows go on together: by hand, and what holds for all prices."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.inference.stage_prices import Group, StagePrices, merging_pays, next_group

PRICES = StagePrices((1.0, 2.0, 2.0, 2.0), (0.0, 0.1, 0.1, 0.1))
"""Of four stages; the first one takes no time for a token."""


def test_prices_are_the_line_through_two_batches() -> None:
    prices = StagePrices.of((10, 50), ([1.0, 3.0, 2.0], [1.0, 11.0, 1.0]))  # 0, 0.2 and no negative time a token
    assert prices.token_s == (0.0, 0.2, 0.0)
    assert prices.batch_s == (1.0, 1.0, 2.0)
    assert StagePrices.of((10, 50), ([1.0], [9.0])).batch_s == (0.0,)  # no negative time a batch
    assert prices.of_stages(1, None, 10) == 1.0 + 2.0 + 10 * 0.2


@pytest.mark.parametrize(
    ("one", "other", "pays"),
    [
        (Group(2, 1, 20), Group(2, 3, 20), True),  # no padding
        (Group(2, 1, 20), Group(2, 1, 39), True),  # 4 s saved, 19 tokens of padding twice are 3.8 s
        (Group(2, 1, 20), Group(2, 1, 41), False),  # 4.2 s
        (Group(2, 1, 41), Group(2, 1, 20), False),
        (Group(2, 3, 20), Group(2, 1, 30), False),  # three rows are padded: 6 s
        (Group(0, 1, 20), Group(0, 1, 42), True),  # 7 s saved, 6.6 s of padding
        (Group(1, 1, 20), Group(2, 1, 20), False),
        (Group(2, 1, 20, "one"), Group(2, 1, 20, "other"), False),
    ],
)
def test_rows_merge_where_their_padding_takes_less_than_is_saved(one: Group, other: Group, pays: bool) -> None:
    assert merging_pays(one, other, PRICES) is pays


@pytest.mark.parametrize(
    ("groups", "chosen"),
    [
        ([Group(3, 1, 10)], 0),
        ([Group(1, 1, 10), Group(3, 1, 10)], 1),  # 2 s are won; 2 * 3 s + 1 s are lost
        # before the first stage: 1 s until it stands beside the others, 3 s for its tokens; 6 s are saved
        ([Group(0, 1, 10), Group(1, 1, 10)], 0),
        ([Group(0, 1, 10), Group(1, 2, 10)], 1),  # two rows lose 4 s each
        ([Group(0, 2, 10), Group(1, 2, 10)], 1),  # two rows win 6 s; two lose 7 s
        ([Group(0, 2, 5), Group(1, 2, 5)], 0),  # they lose 4 s
        ([Group(0, 1, 10), Group(1, 1, 10, "other")], 1),
        ([Group(0, 1, 10), Group(1, 1, 10), Group(3, 1, 10)], 2),
        ([Group(0, 9, 1), Group(1, 1, 10), Group(2, 1, 10)], 1),  # 4 s for one and nine behind it; 3 s + 3 s, overtaken
        ([Group(0, 1, 10), Group(1, 1, 10, delayed_s=8.0)], 0),  # 9 s are its own way
        ([Group(0, 1, 10), Group(1, 1, 10, delayed_s=8.1)], 1),
        ([Group(2, 1, 10), Group(2, 1, 90)], 0),  # the first of two that do not merge
        ([Group(2, 1, 90), Group(2, 1, 10)], 0),
    ],
)
def test_the_deepest_go_first_unless_others_that_catch_up_save_more_than_they_cost(
    groups: list[Group], chosen: int
) -> None:
    assert next_group(groups, PRICES) == chosen


GROUPS = st.builds(
    Group, st.integers(0, 3), st.integers(1, 40), st.integers(1, 512), st.sampled_from("ab"), st.floats(0, 100)
)
COSTS = st.tuples(*[st.floats(0, 10)] * 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(GROUPS, min_size=1, max_size=6), COSTS, COSTS)
def test_the_deepest_are_overtaken_only_where_something_is_saved_and_not_for_longer_than_their_own_way(
    groups: list[Group], batch_s: Any, token_s: Any
) -> None:
    deepest = min(range(len(groups)), key=lambda number: (-groups[number].stage, number))
    assert next_group(groups, StagePrices((0.0,) * 4, token_s)) == deepest
    prices = StagePrices(batch_s, token_s)
    if next_group(groups, prices) != deepest:
        late, early = groups[next_group(groups, prices)], groups[deepest]
        assert late.stage < early.stage
        assert early.delayed_s <= prices.of_stages(early.stage, None, early.tokens)
        assert any(group.rule == early.rule for group in groups if group.stage < early.stage)
