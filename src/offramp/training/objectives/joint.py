"""Losses of all exits, summed or weighted by depth, and of the last exit alone.

Joint: Xin et al., "BERxiT", EACL 2021, eq. 3. Weighted: Zhou et al., "BERT Loses Patience", NeurIPS 2020, eq. 6,
and Zhang et al., "PCEE-BERT", Findings of NAACL 2022, eq. 1.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from offramp.model.losses import depth_weighted, exit_losses
from offramp.training.objectives.base import FREEZING, Objective, Stage
from offramp.types.outputs import ExitOutput


@final
@dataclass(frozen=True)
class Joint(Objective):
    """sum_i L_i."""

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the sum of all exits' losses."""
        return exit_losses(exits, labels).sum()


@final
@dataclass(frozen=True)
class Weighted(Objective):
    """sum_i i L_i / sum_i i: deeper exits count more."""

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the mean of all exits' losses, weighted by depth."""
        return depth_weighted(exit_losses(exits, labels))


@final
@dataclass(frozen=True)
class Last(Objective):
    """L_n alone: the plain fine-tuned model; the early exits keep their start values."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the first stage of `FREEZING`."""
        return FREEZING[:1]

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the last exit's loss."""
        return exit_losses(exits, labels)[-1]
