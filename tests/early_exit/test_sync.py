"""Seldom syncs change no answer and wait for nothing; the cheapest ones are held to all there could be."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, combinations, product
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.early_exit.loop import run
from offramp.early_exit.sync import SyncCosts, cheapest_sync_exits
from offramp.errors import InvalidInput
from offramp.policies.confidence import MaxProb
from offramp.policies.fixed import Fixed
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.carry import Carry
from offramp.types.trace import Trace
from support.models import FAMILIES, padded, rows_for, tiny_model
from support.traces import PLAIN_CASES, Recorded, assert_same, random_trace, threshold_between

ROWS = torch.arange(50)


class CountedRows(Recorded):
    """How many rows came to each block."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self.rows: list[int] = []

    def block(self, exit: int, carry: Carry) -> Carry:
        self.rows.append(len(carry.hidden))
        return carry


class Waits(TorchDispatchMode):
    """Counts what needs a value on the host before it can go on."""

    NEEDS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += by_mask or func.overloadpacket.__name__ in self.NEEDS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("data", "problem_type"), PLAIN_CASES)
def test_the_answers_are_those_of_looking_everywhere(data: Mapping[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type), load_policy(data)
    threshold = threshold_between(scores(policy, trace)[:-1], 0.7)
    expected = replay(trace, policy, threshold)
    for sync_exits in ((), (0,), (2, 3), (4,), (5,)):
        found = run(Recorded(trace), policy, threshold, {"rows": ROWS}, sync_exits=sync_exits)
        assert_same(found, expected, case=f"sync_exits {sync_exits}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_answers_the_same_whatever_the_looks(family: str) -> None:
    model = tiny_model(family, pooling="mean")
    batch = padded(model, rows_for(model, 20))
    with torch.no_grad():
        full = Trace(model(**batch).exit_logits)
        threshold = threshold_between(scores(MaxProb(), full)[:-1], 0.6)
        wanted = run(model, MaxProb(), threshold, batch)
        for sync_exits in ((), (1,), (0, 2)):
            found = run(model, MaxProb(), threshold, batch, sync_exits=sync_exits)
            assert torch.equal(found.exit_layers, wanted.exit_layers)
            torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)
    assert len(wanted.exit_layers.unique()) > 1


def test_with_one_look_all_may_be_gone() -> None:
    trace = random_trace("single_label_classification")
    counted = CountedRows(trace)
    answers = run(counted, Fixed(), 3.0, {"rows": ROWS}, sync_exits={2})
    assert counted.rows == [50, 50, 50]
    assert answers.exit_layers.eq(3).all()


def test_rows_are_cut_out_behind_a_look_and_nowhere_else() -> None:
    """Rows 0 and 1 leave at layer 1, row 2 at layer 2, row 3 at layer 4."""
    ready = torch.tensor([[9, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 0], [0, 0, 0, 9], [0, 0, 0, 0]]).float()  # (L, N)
    trace = Trace(torch.stack((ready, torch.zeros_like(ready)), dim=-1))
    rows_of: dict[tuple[int, ...] | None, list[int]] = {
        None: [4, 2, 1, 1],
        (): [4] * 5,
        (0,): [4, 2, 2, 2, 2],
        (1,): [4, 4, 1, 1, 1],
        (0, 3): [4, 2, 2, 2],
    }
    for sync_exits, rows in rows_of.items():
        counted = CountedRows(trace)
        answers = run(counted, MaxProb(), 0.9, {"rows": torch.arange(4)}, sync_exits=sync_exits)
        assert answers.exit_layers.tolist() == [1, 1, 2, 4]
        assert answers.logits[:, 0].tolist() == [9, 9, 9, 9]
        assert counted.rows == rows


def test_what_comes_after_a_row_has_left_does_not_touch_its_answer() -> None:
    """Row 0 leaves at layer 1 and turns to NaN at layer 2; row 1 is NaN at layer 2 and would be well again at 3."""
    logits = torch.tensor([[[9.0, 0], [0, 0]], [[math.nan, 0], [math.nan, 0]], [[0, 9], [0, 9]], [[0, 9], [0, 9]]])
    answers = run(Recorded(Trace(logits)), MaxProb(), 0.9, {"rows": torch.arange(2)}, sync_exits=())
    assert answers.exit_layers.tolist() == [1, 2]
    assert answers.failed.tolist() == [False, True]
    assert answers.logits[0].tolist() == [9, 0]


@pytest.mark.parametrize(("data", "problem_type"), PLAIN_CASES)
def test_where_nobody_looks_nothing_waits(data: Mapping[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type), load_policy(data)
    threshold = threshold_between(scores(policy, trace)[:-1], 0.7)
    counts = []
    for sync_exits in ((), (1,)):
        with Waits() as waits:
            run(Recorded(trace), policy, threshold, {"rows": ROWS}, sync_exits=sync_exits)
        counts.append(waits.count)
    assert counts[0] == 0
    assert counts[1] > 0 or replay(trace, policy, threshold).exit_layers.min() > 2


def mean_cost(
    costs: SyncCosts, exit_layers: Sequence[int], depth: int, size: int, sync_exits: Collection[int]
) -> float:
    """Seconds, averaged over all batches of `size` that can be drawn with replacement; run by the loop itself."""
    seconds = []
    for batch in product(exit_layers, repeat=size):
        counted = CountedRows(leaving_at(batch, depth))
        run(counted, MaxProb(), 0.9, {"rows": torch.arange(size)}, sync_exits=sync_exits)
        syncs = sum(exit < len(counted.rows) for exit in sync_exits)
        seconds.append(syncs * costs.sync_s + sum(costs.block_s[rows] for rows in counted.rows))
    return sum(seconds) / len(seconds)


def leaving_at(exit_layers: Sequence[int], depth: int) -> Trace:
    ready = torch.tensor([[9.0 * (layer == leaves) for leaves in exit_layers] for layer in range(1, depth + 1)])
    return Trace(torch.stack((ready, torch.zeros_like(ready)), dim=-1))


@pytest.mark.parametrize("sync_s", [0.0, 0.8, 40.0])
@pytest.mark.parametrize("exit_layers", [(1, 2, 5), (1, 1, 1, 4), (2, 3, 3), (5, 5)])
def test_no_other_choice_of_looks_is_cheaper(exit_layers: Sequence[int], sync_s: float) -> None:
    costs = SyncCosts(sync_s, {1: 1.0, 2: 1.25, 3: 2.0})
    cost = {
        sync_exits: mean_cost(costs, exit_layers, 5, 3, sync_exits)
        for sync_exits in chain.from_iterable(combinations(range(4), count) for count in range(5))
    }
    found = cheapest_sync_exits(costs, torch.tensor(exit_layers), [1, 2, 3, 4, 5], 3)
    assert cost[tuple(sorted(found))] == pytest.approx(min(cost.values()))


def test_a_look_is_worth_what_it_costs() -> None:
    """Half leave at layer 1; a block costs 1 s a row, so a look behind it saves 3 blocks of 4 rows: 12 s."""
    half, layers = torch.tensor([1, 4]), [1, 2, 3, 4]
    costs = {1: 1.0, 8: 8.0}  # 4 rows: 4 s
    assert cheapest_sync_exits(SyncCosts(11.9, costs), half, layers, 8) == {0}
    assert cheapest_sync_exits(SyncCosts(12.1, costs), half, layers, 8) == set()
    before = [layer - 1 for layer in layers]  # no block comes before the first exit: after it, 3 are saved as well
    assert cheapest_sync_exits(SyncCosts(11.9, costs), half - 1, before, 8) == {0}
    assert cheapest_sync_exits(SyncCosts(12.1, costs), half - 1, before, 8) == set()


def test_layers_without_an_exit_count_by_their_number() -> None:
    assert cheapest_sync_exits(SyncCosts(0.1, {1: 1.0, 8: 8.0}), torch.tensor([4, 12]), [4, 8, 12], 8) == {0}
    assert cheapest_sync_exits(SyncCosts(0.1, {1: 1.0, 8: 8.0}), torch.tensor([8, 12]), [4, 8, 12], 8) == {1}


def test_prices_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidInput, match="1 row or more"):
        SyncCosts(0.1, {})
    with pytest.raises(InvalidInput, match="at least 0"):
        SyncCosts(-0.1, {1: 1.0})
    with pytest.raises(InvalidInput, match="for 1 to 4 rows, got a batch of 5"):
        cheapest_sync_exits(SyncCosts(0.1, {1: 1.0, 4: 2.0}), torch.tensor([1]), [1, 2], 5)
