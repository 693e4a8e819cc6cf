"""The order of the training rows, which is one for all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from accelerate.utils import broadcast_object_list
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


def share_order(sampler: Sampler[int] | None, processes: int) -> Sampler[int] | None:
    """Return a Trainer's sampler; one by length gives several processes the steps of one, each with a part of the rows.

    Args:
        sampler: transformers' for one process, which groups the rows of its own steps by length.
        processes: that train.
    """
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler  # a random one draws from the seed and the epoch alone
    sampler.batch_size *= processes
    return SharedOrder(sampler)


@final
class SharedOrder(Sampler[int]):
    """Yield row numbers in the order that the first process draws, in every process.

    Each process draws an order as well, so that their random numbers stay as far on. transformers uses these orders as
    they are. They differ as soon as dropout has drawn for batches of different lengths, and then some rows of an epoch
    are trained on twice and others not at all.

    Args:
        sampler: draws an order from torch's random numbers, which without dropout are those of one process.
    """

    def __init__(self, sampler: LengthGroupedSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        order = [list(self.sampler)]
        broadcast_object_list(order)  # one process keeps its own
        return iter(order[0])
