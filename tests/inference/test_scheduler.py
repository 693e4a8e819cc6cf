"""Which rows go on together: by hand, and for all orders in which rows may come and batches be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.data.padding import Array
from offramp.inference.flight import LeftRows
from offramp.inference.scheduler import Batch, Scheduler, rows_worth

STAGES = 3


@dataclass(frozen=True)
class Numbered:
    """Rows that leave at a stage of their own: the row's number modulo STAGES."""

    rows: Array
    tokens: Array
    stage: int = 0

    def advance(self) -> tuple[LeftRows | None, Numbered | None]:
        stays = self.rows % STAGES > self.stage
        left, onward = self.rows[~stays], self.take(np.flatnonzero(stays))
        layers, failed = np.full(len(left), self.stage), np.zeros(len(left), bool)
        leaving = LeftRows(left, left[:, None] * 1.0, layers, failed) if len(left) else None
        return leaving, Numbered(onward.rows, onward.tokens, self.stage + 1) if stays.any() else None

    def take(self, positions: Array) -> Numbered:
        return Numbered(self.rows[positions], self.tokens[positions], self.stage)

    def merge(self, others: Sequence[Numbered]) -> Numbered:
        assert {one.stage for one in (self, *others)} == {self.stage}
        parts = (self, *others)
        return Numbered(np.concatenate([x.rows for x in parts]), np.concatenate([x.tokens for x in parts]), self.stage)


def rows(*numbers: int, tokens: Sequence[int] | None = None, stage: int = 0) -> Numbered:
    return Numbered(np.array(numbers), np.array(tokens or [5] * len(numbers)), stage)


def taken(batch: Batch | None) -> tuple[int, list[int]] | None:
    return None if batch is None else (batch.stage, sorted(batch.flight().rows.tolist()))


def test_a_batch_waits_until_it_is_worth_it_and_the_deepest_goes_first() -> None:
    scheduler = Scheduler((3, 2), 1000, 10.0)
    scheduler.add(rows(0, 1), 0.0)
    assert scheduler.next_batch(1.0) is None
    scheduler.add(rows(2, 4, 5), 1.0)
    first = scheduler.next_batch(1.0)
    assert taken(first) == (0, [0, 1, 2])
    scheduler.add(rows(7), 1.0)
    assert first is not None
    scheduler.done(first, [rows(1, 2, stage=1)], 2.0)
    assert taken(scheduler.next_batch(2.0)) == (1, [1, 2])  # both stages have enough
    assert taken(scheduler.next_batch(2.0)) == (0, [4, 5, 7])
    assert scheduler.next_batch(2.0) is None
    assert scheduler.tokens == 5 * 5


def test_rows_that_have_waited_long_enough_go_with_those_that_are_there() -> None:
    scheduler = Scheduler((3, 2), 1000, 0.5)
    scheduler.add(rows(0), 7.0)
    scheduler.add(rows(1), 7.4)
    assert scheduler.due == 7.5
    assert scheduler.next_batch(7.49) is None
    assert taken(scheduler.next_batch(7.5)) == (0, [0, 1])
    assert scheduler.due == math.inf
    scheduler.add(rows(2, 3), 8.0)
    scheduler.add(rows(4, 5, stage=1), 9.0)
    assert taken(scheduler.next_batch(9.0)) == (1, [4, 5])  # the deepest first, whatever has waited before it
    assert taken(scheduler.next_batch(9.0)) == (0, [2, 3])


def test_rows_go_at_once_where_none_can_come_or_may_come() -> None:
    paused = Scheduler((3, 2), 1000, math.inf)
    paused.add(rows(1, stage=1), 0.0)
    assert taken(paused.next_batch(0.0)) == (1, [1])  # nothing is in the stage before
    full = Scheduler((3, 2), 10, math.inf)
    full.add(rows(0, 1), 0.0)
    assert not full.room
    assert taken(full.next_batch(0.0)) == (0, [0, 1])
    ended = Scheduler((3, 2), 1000, math.inf)
    ended.add(rows(0), 0.0)
    assert ended.next_batch(0.0) is None
    ended.end()
    assert taken(ended.next_batch(0.0)) == (0, [0])


def test_a_batch_is_the_oldest_row_and_those_nearest_to_it_in_length() -> None:
    scheduler = Scheduler((3,), 1000, math.inf)
    scheduler.add(rows(0, 1, tokens=[10, 90]), 0.0)
    scheduler.add(rows(2, 3, 4, 5, tokens=[11, 50, 9, 60]), 0.0)
    assert taken(scheduler.next_batch(0.0)) == (0, [0, 2, 4])
    assert taken(scheduler.next_batch(0.0)) == (0, [1, 3, 5])


def test_the_last_rows_are_divided_among_the_workers_longest_first() -> None:
    scheduler = Scheduler((4,), 1000, math.inf, workers=2)
    scheduler.add(rows(*range(10), tokens=[3, 1, 9, 4, 4, 2, 8, 7, 5, 6]), 0.0)
    scheduler.end()
    batches = [taken(scheduler.next_batch(0.0)) for _ in range(4)]
    assert batches == [(0, [2, 6, 7, 9]), (0, [0, 3, 4, 8]), (0, [1, 5]), None]


@given(st.data())
def test_every_row_is_answered_once_in_bounded_batches(data: st.DataObject) -> None:
    """Rows come, batches are taken and done in any order, the clock moves as it likes."""
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=STAGES, max_size=STAGES)))
    lengths = data.draw(st.lists(st.integers(1, 30), max_size=30))
    most_tokens, linger = data.draw(st.integers(1, 200)), data.draw(st.sampled_from([0.0, 1.0, math.inf]))
    scheduler = Scheduler(sizes, most_tokens, linger, workers=data.draw(st.integers(1, 3)))
    now, came, running, left = 0.0, 0, list[Batch](), dict[int, int]()

    def finish(number: int) -> None:
        batch = running.pop(number)
        leaving, onward = batch.flight().advance()
        if leaving is not None:
            for row, stage in zip(leaving.rows.tolist(), leaving.exit_layers.tolist(), strict=True):
                assert row not in left
                left[row] = stage
        scheduler.done(batch, [onward], now)

    while not (scheduler.empty and came == len(lengths)):
        now += data.draw(st.sampled_from([0.0, 0.4, 2.0]))
        if came < len(lengths) and scheduler.room and data.draw(st.booleans()):
            count = data.draw(st.integers(1, min(4, len(lengths) - came)))
            scheduler.add(rows(*range(came, came + count), tokens=lengths[came : came + count]), now)
            came += count
            assert scheduler.tokens < most_tokens + 4 * 30
            if came == len(lengths):
                scheduler.end()
        elif running and data.draw(st.booleans()):
            finish(data.draw(st.integers(0, len(running) - 1)))
        else:
            batch = scheduler.next_batch(now)
            if batch is not None:
                assert 1 <= len(batch.flight().rows) <= sizes[batch.stage]
                running.append(batch)
            elif running:
                finish(0)
            else:
                stuck = scheduler.tokens and not (came < len(lengths) and scheduler.room) and linger == math.inf
                assert not stuck  # nobody waits for what cannot come
    assert left == {row: row % STAGES for row in range(len(lengths))}
    assert scheduler.tokens == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6))
def test_no_row_waits_for_ever(lengths: list[int], size: int) -> None:
    """However lengths lie, a row is in one of the batches that take as many rows as came before it, and itself."""
    scheduler = Scheduler((size,), math.inf, math.inf)
    for number, length in enumerate(lengths):
        scheduler.add(rows(number, tokens=[length]), 0.0)
    gone: set[int] = set()
    for count in range(len(lengths) // size):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        oldest = min(set(range(len(lengths))) - gone)
        gone |= set(batch.flight().rows.tolist())
        assert oldest in gone
        assert len(gone) == (count + 1) * size


@pytest.mark.parametrize(
    ("ms", "worth"),
    [
        ({32: 1.0}, 32),
        ({1: 1.3, 8: 1.04, 32: 1.0}, 8),
        ({1: 1.3, 8: 1.06, 32: 1.0, 64: 1.2}, 32),
        ({8: 2.0, 1: 1.0}, 1),
    ],
)
def test_the_smallest_batch_within_five_percent_of_the_best_is_worth_it(ms: dict[int, float], worth: int) -> None:
    assert rows_worth(ms) == worth
