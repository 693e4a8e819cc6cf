"""Training objectives: the stages of a training run, and one loss over all exits."""

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
"""First backbone and last exit, then, with those frozen, the early exits. Both train the gate: it changes no answer."""


class Objective(ABC):
    """One loss over the outputs of all exits. With a gate in the model, J_i is added wherever L_i is."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the parts of a training run, in order; each runs for all epochs."""
        return (EVERYTHING,)

    @abstractmethod
    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            stage: one of `stages`.
            step: optimiser steps since the stage began, from 0.
            exits: the outputs of all exits, logits (L, B, C).
            labels: (B,) class numbers or values; (B, C) for several labels or values.
        """

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that are trained with the model and dropped afterwards; each takes logits (L, B, C)."""
        return ()

    def build(self, exits: int, outputs: int) -> None:
        """Give the objective's own modules the shapes of their weights, before training starts.

        Args:
            exits: L, the number of the model's exits.
            outputs: C of each exit.
        """
        return

    def branch_scales(self, exits: int) -> tuple[float, ...] | None:
        """Return for each exit the share of the gradient at its layer that is its own; None = unscaled gradients."""
        return None
