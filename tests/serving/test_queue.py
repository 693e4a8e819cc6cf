"""Rows that wait: by hand, and for all orders in which rows come, are cancelled, expire and go; the clock is a fake."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.inference.scheduler import nearest_rows
from offramp.serving.queue import LEAST_SHARE, LOOKAHEAD, SHORT, Queue, WaitingRow

IDLE = st.integers(0, 4)
LENGTHS = st.sampled_from([1, 3, 7, 8, 20, 33, 40, 64, 70, 150, 300])


def row(
    name: object,
    tokens: int = 8,
    due: float = 10.0,
    request: object = None,
    alone: bool = False,
    deadline: float | None = None,
) -> WaitingRow:
    return WaitingRow(request or name, tokens, 0.0, due, due if deadline is None else deadline, name, alone)


def names(batches: list[list[WaitingRow]]) -> list[list[object]]:
    return [sorted(row.content for row in batch) for batch in batches]


def test_rows_of_one_length_go_as_they_are_due_and_then_by_arrival() -> None:
    queue = Queue(2, 1000)
    queue.add([row("late", due=20.0), row("b"), row("c")])
    queue.add([row("a", due=5.0), row("d")])
    assert [names(queue.next_batches(1)) for _ in range(4)] == [[["a", "b"]], [["c", "d"]], [["late"]], []]
    assert len(queue) == 0


def test_the_first_row_goes_with_those_nearest_to_it_in_length() -> None:
    queue = Queue(3, 1000)
    queue.add([row(name, tokens) for name, tokens in zip("abcdef", (50, 45, 90, 48, 100, 54), strict=True)])
    assert names(queue.next_batches(1)) == [["a", "b", "d"]]  # 50 + 45 + 48 leave 7 of padding, 54 + 50 + 48 ten
    assert names(queue.next_batches(1)) == [["c", "e", "f"]]


def test_a_short_row_does_not_wait_for_a_long_one_to_be_padded_for() -> None:
    queue = Queue(8, 10_000)
    queue.add([row("long", 400), *(row(f"short {number}", 8) for number in range(3))])
    assert names(queue.next_batches(1)) == [["long"]]
    assert names(queue.next_batches(1)) == [["short 0", "short 1", "short 2"]]


def test_padding_counts_and_a_row_longer_than_the_budget_is_alone() -> None:
    queue = Queue(8, 100)
    queue.add([row("a", 40), row("b", 50), row("c", 45), row("huge", 300)])
    assert names(queue.next_batches(3)) == [["a", "c"], ["b"], ["huge"]]  # 2 x 50 + 40 would not do


def test_few_rows_are_divided_among_the_free_processes_and_a_pair_is_not() -> None:
    queue = Queue(32, 10_000)
    queue.add([row(number) for number in range(8)])
    assert [len(batch) for batch in queue.next_batches(3)] == [3, 3, 2]
    queue.add([row(number) for number in range(3)])
    assert [len(batch) for batch in queue.next_batches(2)] == [3]
    queue.add([row("long", 500, due=5.0), *(row(number) for number in range(4))])
    assert names(queue.next_batches(3)) == [["long"], [0, 1, 2, 3]]  # the long one may have two processes
    queue.add([*(row(number, due=5.0) for number in range(4)), row("long", 500)])
    assert names(queue.next_batches(3)) == [[0, 1], [2, 3], ["long"]]


def test_a_row_that_has_ended_a_process_is_alone() -> None:
    queue = Queue(8, 1000)
    queue.add([row("a"), row("b", alone=True), row("c"), row("d", alone=True, due=1.0)])
    assert names(queue.next_batches(1)) == [["d"]]
    assert names(queue.next_batches(1)) == [["a", "c"]]
    assert names(queue.next_batches(1)) == [["b"]]


def test_cancelled_rows_do_not_go_and_late_ones_are_taken_out() -> None:
    queue = Queue(8, 1000)
    queue.add([row("a", request="gone"), row("b", due=1.0), row("c", request="gone"), row("d")])
    queue.cancel("gone")
    queue.cancel("gone")
    queue.cancel("never came")
    assert len(queue) == 2
    assert [late.content for late in queue.expired(1.0)] == ["b"]  # the deadline itself is too late
    assert queue.expired(1.0) == []
    assert names(queue.next_batches(1)) == [["d"]]


def test_a_late_row_goes_until_its_deadline_and_before_those_that_are_due_later() -> None:
    queue = Queue(1, 1000)
    queue.add([row("a", due=1.0, deadline=9.0), row("b", due=2.0, deadline=3.0), row("c", due=5.0)])
    queue.add([row("patient", due=8.0, deadline=9.0), row("now", due=0.5, deadline=9.0)])
    assert [late.content for late in queue.expired(3.0)] == ["b"]
    assert ([queue.first, queue.last], len(queue)) == ([queue._rows[0], queue._rows[-1]], 4)
    assert [names(queue.next_batches(1)) for _ in range(4)] == [[["now"]], [["a"]], [["c"]], [["patient"]]]
    assert (queue.first, queue.last) == (None, None)


@given(st.lists(LENGTHS, min_size=1, max_size=30), st.integers(1, 9), st.sampled_from([math.inf, 64, 200, 600]))
def test_the_nearest_rows_are_as_many_as_may_with_the_least_padding(lengths: list[int], size: int, most: float) -> None:
    """Against all runs of the sorted rows that hold the first one."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    allowed = []
    for start in range(len(order)):
        for end in range(start + 1, len(order) + 1):
            some = [lengths[index] for index in order[start:end]]
            similar = some[0] <= SHORT or some[-1] >= LEAST_SHARE * some[0]
            fits = len(some) <= size and (some[0] * len(some) <= most or len(some) == 1)
            if 0 in order[start:end] and similar and fits:
                allowed.append((-len(some), some[0] * len(some) - sum(some)))
    chosen = nearest_rows(np.array(lengths), size, most, LEAST_SHARE, SHORT).tolist()
    some = [lengths[index] for index in chosen]
    assert 0 in chosen
    assert some == sorted(some, reverse=True)
    assert (-len(some), some[0] * len(some) - sum(some)) == min(allowed)


class History:
    """A queue, and in a plain list what waits in it."""

    def __init__(self, size: int, most: int) -> None:
        self.queue, self.size, self.most = Queue(size, most), size, most
        self.waiting: list[tuple[float, int, WaitingRow]] = []  # when it is due, arrival
        self.came = 0

    def add(self, request: int, lengths: list[int], due: float, deadline: float, alone: bool) -> None:
        numbered = enumerate(lengths, self.came)
        rows = [row(number, tokens, due, request, alone, deadline) for number, tokens in numbered]
        self.waiting += [(due, number, one) for number, one in enumerate(rows, self.came)]
        self.waiting.sort(key=lambda one: one[:2])
        self.came += len(rows)
        self.queue.add(rows)

    def cancel(self, request: int) -> None:
        self.queue.cancel(request)
        self.waiting = [one for one in self.waiting if one[2].request != request]

    def expire(self, now: float) -> None:
        late = [one[2] for one in self.waiting if one[2].deadline <= now]
        assert self.queue.expired(now) == late
        self.waiting = [one for one in self.waiting if one[2].deadline > now]

    def take(self, idle: int) -> None:
        may = [one[2] for one in self.waiting]
        batches = self.queue.next_batches(idle)
        taken = [one for batch in batches for one in batch]
        assert len(batches) <= idle
        assert bool(batches) == bool(may and idle)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(may[: LOOKAHEAD * idle * self.size])  # nothing twice or cancelled; near the front
        assert not taken or may[0] in taken  # so none waits for ever
        for batch in batches:
            lengths = [one.tokens for one in batch]
            assert len(batch) == 1 or not any(one.alone for one in batch)
            assert 1 <= len(batch) <= self.size
            assert len(batch) == 1 or max(lengths) * len(batch) <= self.most
            assert max(lengths) <= max(SHORT, min(lengths) / LEAST_SHARE)
        self.waiting = [one for one in self.waiting if one[2] not in taken]


@settings(max_examples=80)
@given(st.data())
def test_every_row_goes_once_in_bounded_batches_or_is_cancelled_or_late(data: st.DataObject) -> None:
    history = History(data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 100, 500, 10_000])))
    now = 0.0
    for _ in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.sampled_from([0.0, 0.0, 0.5, 3.0]))
        what = data.draw(st.sampled_from(["add", "add", "take", "cancel", "expire"]))
        if what == "add":
            budget = data.draw(st.sampled_from([0.1, 0.5, 2.0, 8.0]))
            lengths = data.draw(st.lists(LENGTHS, min_size=1, max_size=8))
            history.add(
                data.draw(st.integers(0, 5)),
                lengths,
                now + budget,
                now + max(budget, 2.0),
                data.draw(st.integers(0, 5)) == 0,
            )
        elif what == "cancel":
            history.cancel(data.draw(st.integers(0, 5)))
        elif what == "expire":
            history.expire(now)
        else:
            history.take(data.draw(IDLE))
        assert len(history.queue) == len(history.waiting)
    history.expire(now)
    for _ in range(len(history.waiting)):  # the first row goes each time
        history.take(1)
    assert len(history.queue) == 0


@pytest.mark.parametrize("what", ["cancel", "take", "add"])
def test_ten_thousand_waiting_rows_cost_no_more_than_a_few(what: str) -> None:
    """A look at all rows for each of the 2,000 calls would take seconds."""
    queue = Queue(4, 10_000)
    queue.add([row(number, 8 + number % 9, number / 2) for number in range(10_000)])
    began = time.process_time()
    for number in range(2000):
        if what == "cancel":
            queue.cancel(4 * number + 1)
        elif what == "take":
            queue.next_batches(1)
        else:
            queue.add([row(-number - 1, 8, 3.0 * number % 5000)])
    assert time.process_time() - began < 0.6
    assert len(queue) == {"cancel": 8000, "take": 2000, "add": 12_000}[what]


def test_cancelled_rows_are_let_go_of() -> None:
    queue = Queue(4, 1000)
    for number in range(1000):
        queue.add([row(number)])
        queue.cancel(number - 10)
    assert len(queue) == 10
    assert len(queue._rows) <= 2 * 10 + SHORT
