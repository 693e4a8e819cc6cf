"""The order of rows is one for all processes, and their batches together are those of one process."""

from itertools import chain
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, RandomSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from offramp.training.sampler import SharedOrder, share_order
from support.processes import trainer_of


def test_two_processes_take_turns_with_the_batches_of_the_longest_first_order() -> None:
    """Four rows are one step, so the whole order is by length, whatever is drawn: rows 2 0 3 1."""
    order = share_order(LengthGroupedSampler(2, lengths=[3, 1, 4, 2]), processes=2)
    assert order is not None
    shards = [list(BatchSamplerShard(BatchSampler(order, 2, False), 2, rank)) for rank in (0, 1)]
    assert shards == [[[2, 0]], [[3, 1]]]
    assert len(order) == 4


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_batches_of_several_processes_are_together_those_of_one(processes: int) -> None:
    lengths = torch.randint(1, 40, (84,), generator=torch.Generator().manual_seed(0)).tolist()

    def steps(count: int) -> list[list[int]]:
        order = share_order(LengthGroupedSampler(12 // count, lengths=lengths), count)
        assert order is not None
        shards = []
        for rank in range(count):
            torch.manual_seed(5)
            shards.append(list(BatchSamplerShard(BatchSampler(order, 12 // count, False), count, rank)))
        return [list(chain(*batches)) for batches in zip(*shards, strict=True)]

    assert steps(processes) == steps(1)
    assert len({tuple(step) for step in steps(1)}) == 7
    torch.manual_seed(5)
    plain = LengthGroupedSampler(12 // processes, lengths=lengths)  # as transformers has it: other rows lie together
    assert list(plain) != list(chain(*steps(1)))


def test_an_order_is_the_one_that_the_first_process_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def from_the_first(values: list[list[int]]) -> list[list[int]]:
        drawn.append(values[0])
        values[0] = [2, 1, 0]
        return values

    monkeypatch.setattr("offramp.training.sampler.broadcast_object_list", from_the_first)
    assert list(SharedOrder(LengthGroupedSampler(3, lengths=[1, 2, 3]))) == [2, 1, 0]
    assert sorted(drawn[0]) == [0, 1, 2]


def test_other_samplers_stay_as_they_are() -> None:
    sampler = RandomSampler([0, 1, 2])
    assert share_order(sampler, 2) is sampler
    assert share_order(None, 2) is None


def test_the_trainer_groups_the_rows_of_a_step_of_all_processes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("joint", "accumulation", tmp_path, 1)  # 8 rows, accumulated twice
    monkeypatch.setattr(type(trainer.args), "world_size", 3)
    order = trainer._get_train_sampler()
    assert isinstance(order, SharedOrder)
    assert order.sampler.batch_size == 48
