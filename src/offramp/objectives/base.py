"""Training objectives: what learns when, and one loss over all exits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.values import MULTI_LABEL, REGRESSION, ExitOutput

PARTS = frozenset({"backbone", "early_exits", "final_exit"})


@dataclass(frozen=True)
class Stage:
    """A part of a training run.

    Attributes:
        name: for logs.
        learns: which of PARTS are trained; the others are frozen and kept out of the optimiser.
    """

    name: str
    learns: frozenset[str] = PARTS


class Objective(ABC):
    """Turns what all exits say into one number to minimise."""

    stages: ClassVar[tuple[Stage, ...]] = (Stage("all"),)

    @abstractmethod
    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """A scalar.

        Args:
            stage: one of `stages`.
            step: optimiser steps since training began, from 0.
            exits: what all exits say, logits (L, B, C).
            labels: (B,) class numbers or values; (B, C) for several labels or values.
        """


def exit_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
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
