"""Losses of every exit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION


def gate_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
    """J_i of every exit, (L,), mean over the batch; zeros where the model has no gate.

    For several labels an exit is right where it has the whole set; of several values the worst counts.

    Args:
        exits: logits (L, B, C), certainty (L, B).
        labels: (B,) or (B, C).
    """
    if exits.certainty is None:
        return exits.logits.new_zeros(len(exits.logits))
    return (exits.certainty - correctness_target(exits, labels)).square().mean(dim=1)


@torch.no_grad()
def correctness_target(exits: ExitOutput, labels: Tensor) -> Tensor:
    """v_i (L, B) in 0..1: how right each exit is (eq. 10 and 11)."""
    logits = exits.logits.float()  # (L, B, C)
    _, batch, outputs = logits.shape
    if exits.problem_type == REGRESSION:
        return 1 - (logits - labels.float().view(batch, outputs)).abs().amax(dim=-1).tanh()
    return (predictions(exits) == labels.long().view(batch, -1)).all(dim=-1).float()


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
