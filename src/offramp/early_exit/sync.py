"""The exits after which the host asks the device which rows have left.

Asking makes the host wait for the device; without it, rows that have left still run through the next blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InvalidInput


@final
@dataclass(frozen=True)
class SyncCosts:
    """Measured costs of a model on a device, at one length.

    Attributes:
        sync_s: seconds of one sync, with the cut of the batch after it.
        block_s: number of rows -> seconds of a block with its exit; a straight line in between.

    Raises:
        InvalidInput: no measurement, or a cost below 0.
    """

    sync_s: float
    block_s: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.block_s or min(self.block_s) < 1:
            raise InvalidInput(f"block_s must have the cost of 1 row or more, got {dict(self.block_s)}")
        if min(self.sync_s, *self.block_s.values()) < 0:
            raise InvalidInput(f"costs must be at least 0, got {self}")


def cheapest_sync_exits(
    costs: SyncCosts, exit_layers: Tensor, layers: Sequence[int], batch_size: int
) -> frozenset[int]:
    """Return the exits (0-based) whose syncs make a batch cheapest on average; `early_exit.loop.run` takes them.

    Args:
        costs: of blocks up to `batch_size` rows.
        exit_layers: (N,) layers at which held-out samples leave (`Answers.exit_layers` of a replay); a batch is drawn
            from them.
        layers: the layer number of each exit that is read; all blocks are taken to cost the same, and an exit before
            the first layer nothing.
        batch_size: rows of a batch.

    Raises:
        InvalidInput: a batch larger than the largest one measured, or smaller than 1.
    """
    if not 1 <= batch_size <= max(costs.block_s):
        raise InvalidInput(f"costs are for 1 to {max(costs.block_s)} rows, got a batch of {batch_size}")
    rows = torch.arange(batch_size + 1, dtype=torch.float64)
    measured = sorted(costs.block_s)
    block_s = torch.from_numpy(np.interp(rows, measured, [costs.block_s[count] for count in measured]))
    block_s[0] = 0  # an empty batch runs no block

    def row_counts(exit: int) -> Tensor:
        """Return the probabilities (batch_size + 1,) of each number of rows after a sync after exit `exit`."""
        share = (exit_layers > layers[exit]).double().mean() if exit >= 0 else torch.ones((), dtype=torch.float64)
        ways = math.lgamma(batch_size + 1) - (rows + 1).lgamma() - (rows.flip(0) + 1).lgamma()  # logarithm, binomial
        return (ways + rows.xlogy(share) + rows.flip(0).xlogy(1 - share)).exp()

    @cache
    def cheapest_from(exit: int) -> tuple[float, tuple[int, ...]]:
        """Return the seconds from a sync after exit `exit` to the end, and the syncs still to come."""
        counts = row_counts(exit)
        mean_block_s, any_left = (counts @ block_s).item(), 1 - counts[0].item()
        last = len(layers) - 1
        free = exit + int(exit < 0 and layers[0] == 0)  # the exit from which on there are blocks
        plans: list[tuple[float, tuple[int, ...]]] = [((last - free) * mean_block_s, ())]
        for sync in range(exit + 1, last):
            seconds, later = cheapest_from(sync)
            plans.append(((sync - free) * mean_block_s + any_left * costs.sync_s + seconds, (sync, *later)))
        return min(plans)

    return frozenset(cheapest_from(-1)[1])
