"""Training objectives: what learns when, and one loss over all exits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from offramp.types.outputs import ExitOutput

PARTS = frozenset({"backbone", "early_exits", "final_exit", "gate"})


@dataclass(frozen=True)
class Stage:
    """A part of a training run.

    Attributes:
        name: for logs.
        learns: which of PARTS are trained; the others are frozen and kept out of the optimiser.
    """

    name: str
    learns: frozenset[str] = PARTS


EVERYTHING = Stage("all")
FREEZING = (
    Stage("last", frozenset({"backbone", "final_exit", "gate"})),
    Stage("early", frozenset({"early_exits", "gate"})),
)
"""First backbone and last exit, then, with those frozen, the early exits. The gate goes along: it changes no answer."""


class Objective(ABC):
    """Turns what all exits say into one number to minimise. With a gate in the model, J_i goes wherever L_i goes."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The parts of a training run, in order; each runs for the whole number of epochs that is asked for."""
        return (EVERYTHING,)

    @abstractmethod
    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """A scalar.

        Args:
            stage: one of `stages`.
            step: optimiser steps since the stage began, from 0.
            exits: what all exits say, logits (L, B, C).
            labels: (B,) class numbers or values; (B, C) for several labels or values.
        """

    def modules(self) -> tuple[nn.Module, ...]:
        """What the objective trains along with the model and throws away; each takes logits (L, B, C)."""
        return ()

    def branch_scales(self, exits: int) -> tuple[float, ...] | None:
        """For each exit the share of the gradient at its layer that is its own; None = gradients as they are."""
        return None
