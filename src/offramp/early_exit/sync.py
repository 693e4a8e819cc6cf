"""Behind which exits to look who has left: a look waits for the device, and without it left rows go on for nothing."""

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
    """What was measured of a model on a device, at one length.

    Attributes:
        sync_s: seconds that a look takes, with cutting the batch behind it.
        block_s: number of rows -> seconds that a block with its exit takes on so many; a straight line in between.

    Raises:
        InvalidInput: nothing was measured, or a price is below 0.
    """

    sync_s: float
    block_s: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.block_s or min(self.block_s) < 1:
            raise InvalidInput(f"block_s must have the price of 1 row or more, got {dict(self.block_s)}")
        if min(self.sync_s, *self.block_s.values()) < 0:
            raise InvalidInput(f"prices must be at least 0, got {self}")


def cheapest_sync_exits(
    prices: SyncCosts, exit_layers: Tensor, layers: Sequence[int], batch_size: int
) -> frozenset[int]:
    """The exits (0-based) to look behind that make a batch cheapest on average; `engine.loop.run` takes them.

    Args:
        prices: of blocks up to `batch_size` rows.
        exit_layers: (N,) where held-out samples leave (`Answers.exit_layers` of a replay); a batch is drawn from them.
        layers: the layer number of each exit (`Trace.layer_numbers`); all blocks are taken to cost the same.
        batch_size: rows of a batch.

    Raises:
        InvalidInput: a batch larger than what was measured, or smaller than 1.
    """
    if not 1 <= batch_size <= max(prices.block_s):
        raise InvalidInput(f"prices are for 1 to {max(prices.block_s)} rows, got a batch of {batch_size}")
    rows = torch.arange(batch_size + 1, dtype=torch.float64)
    measured = sorted(prices.block_s)
    block = torch.from_numpy(np.interp(rows, measured, [prices.block_s[count] for count in measured]))
    block[0] = 0  # nobody is left

    def rows_behind(exit: int) -> Tensor:
        """Probabilities (batch_size + 1,) of how many rows there are once exit `exit` was looked behind."""
        share = (exit_layers > layers[exit]).double().mean() if exit >= 0 else torch.ones((), dtype=torch.float64)
        ways = math.lgamma(batch_size + 1) - (rows + 1).lgamma() - (rows.flip(0) + 1).lgamma()  # logarithm, binomial
        return (ways + rows.xlogy(share) + rows.flip(0).xlogy(1 - share)).exp()

    @cache
    def cheapest_from(exit: int) -> tuple[float, tuple[int, ...]]:
        """Seconds from behind a look at exit `exit` to the end, and the sync_exits that are still to come."""
        chance = rows_behind(exit)
        each, anybody = (chance @ block).item(), 1 - chance[0].item()
        last = len(layers) - 1
        plans: list[tuple[float, tuple[int, ...]]] = [((last - exit) * each, ())]
        for next_ in range(exit + 1, last):
            seconds, later = cheapest_from(next_)
            plans.append(((next_ - exit) * each + anybody * prices.sync_s + seconds, (next_, *later)))
        return min(plans)

    return frozenset(cheapest_from(-1)[1])
