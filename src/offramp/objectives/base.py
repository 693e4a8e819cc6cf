"""Training objectives: what learns when, and one loss over all exits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.gate import gate_losses
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

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


def exit_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
    """What every exit has to answer for, (L,), mean over the batch: L_i, and with a gate L_i + J_i (BERxiT, section 4).

    Args:
        exits: logits (L, B, C), certainty (L, B) or None.
        labels: (B,) or (B, C).
    """
    return task_losses(exits, labels) + gate_losses(exits, labels)


def task_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
    """The task's loss L_i of every exit, (L,), mean over the batch.

    Cross-entropy for a single label, binary cross-entropy for several, squared error for regression.

    Args:
        exits: logits (L, B, C).
        labels: (B,) or (B, C).
    """
    logits = exits.logits.float()
    depth, batch, outputs = logits.shape
    if exits.problem_type == REGRESSION:
        wanted = labels.float().view(batch, outputs)  # (B, C)
        return (logits - wanted).square().mean(dim=(1, 2))
    if exits.problem_type == MULTI_LABEL:
        wanted = labels.float().expand(depth, batch, outputs)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(1, 2))
    each = F.cross_entropy(logits.reshape(-1, outputs), labels.long().repeat(depth), reduction="none")
    return each.view(depth, batch).mean(dim=1)


def depth_weighted(losses: Tensor) -> Tensor:
    """sum_i i L_i / sum_i i, with exits numbered from 1 (PABEE, section 3.3; PCEE-BERT, eq. 1)."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype, device=losses.device)  # (L,)
    return (weights * losses).sum() / weights.sum()
