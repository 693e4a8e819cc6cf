"""Gradient equilibrium: joint training with gradients scaled so that deep exits do not outweigh a layer's own.

Li et al., "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019, section 3.1; a baseline of BADGE.

Without it the gradient that reaches a layer is the sum over all exits above it, so that shallow layers get the most and
the variance grows with depth. Here the gradient that enters a layer's output from its own exit is scaled by
1 / (n - i + 1), and what comes down from deeper layers by (n - i) / (n - i + 1).
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from offramp.model.losses import exit_losses
from offramp.training.objectives.base import Objective, Stage
from offramp.types.outputs import ExitOutput


@final
@dataclass(frozen=True)
class GradientEquilibrium(Objective):
    """sum_i L_i, with scaled gradients."""

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the sum of all exits' losses."""
        return exit_losses(exits, labels).sum()

    def branch_scales(self, exits: int) -> tuple[float, ...]:
        """Return 1 / (n - i + 1) for exit i, counted from 1."""
        return tuple(1 / (exits - exit) for exit in range(exits))
