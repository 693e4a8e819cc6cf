"""Losses of every exit, from the outputs of all exits.

The task's loss L_i is cross-entropy, binary cross-entropy or a squared error. A model with a gate adds J_i, the squared
distance between certainty and correctness (Xin et al., "BERxiT", EACL 2021, section 4). Objectives weight these sums;
`depth_weighted` is the weighting of PABEE and PCEE-BERT, and the model's loss where no objective is set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION


def exit_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
    """Return the loss of every exit, (L,), mean over the batch: L_i, and with a gate L_i + J_i (BERxiT, section 4).

    Args:
        exits: logits (L, B, C), certainty (L, B) or None.
        labels: (B,) or (B, C).
    """
    return task_losses(exits, labels) + gate_losses(exits, labels)


def task_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
    """Return the task's loss L_i of every exit, (L,): `exits.task_loss`, or the loss of the kind of problem.

    Args:
        exits: logits (L, B, C).
        labels: (B,) or (B, C).
    """
    if exits.task_loss is not None:
        return exits.task_loss(exits.logits, labels)
    return problem_losses(exits, labels)


def problem_losses(exits: ExitOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the loss of the kind of problem at every exit, (L,), mean over the batch.

    Cross-entropy for a single label, binary cross-entropy for several, squared error for regression.

    Args:
        exits: logits (L, B, C).
        labels: (B,) or (B, C).
        class_weights: (C,); for a single label the mean over the batch is weighted by each label's class, for several
            labels the positives of each count so many times (`weight` and `pos_weight` of torch's losses).

    Raises:
        InvalidInput: labels of another shape; none are broadcast. On a CPU, a label that is no class.
    """
    logits = exits.logits.float()
    depth, batch, outputs = logits.shape
    _check_shape(labels, exits)
    if exits.problem_type == REGRESSION:
        targets = labels.float().view(batch, outputs)  # (B, C)
        return (logits - targets).square().mean(dim=(1, 2))
    if exits.problem_type == MULTI_LABEL:
        targets = labels.float().expand(depth, batch, outputs)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=class_weights)
        return losses.mean(dim=(1, 2))
    if labels.device.type == "cpu":  # elsewhere the check would wait for the device
        _check_classes(labels, outputs)
    if class_weights is not None:
        return torch.stack([F.cross_entropy(exit, labels.long(), class_weights) for exit in logits])
    losses = F.cross_entropy(logits.reshape(-1, outputs), labels.long().repeat(depth), reduction="none")
    return losses.view(depth, batch).mean(dim=1)


def _check_classes(labels: Tensor, outputs: int) -> None:
    wrong = labels[((labels < 0) | (labels >= outputs)) & (labels != -100)]  # torch's number for "no label"
    if len(wrong):
        raise InvalidInput(f"a label is {wrong[0].item()}, and the classes are 0 to {outputs - 1}")


def _check_shape(labels: Tensor, exits: ExitOutput) -> None:
    _, batch, outputs = exits.logits.shape
    flat = exits.problem_type not in (MULTI_LABEL, REGRESSION) or (exits.problem_type == REGRESSION and outputs == 1)
    expected = (batch,) if flat else (batch, outputs)
    column = exits.problem_type == REGRESSION and labels.shape == (batch, outputs)
    if labels.shape != expected and not column:
        raise InvalidInput(
            f"labels of {batch} rows and {outputs} outputs must be {expected}, got {tuple(labels.shape)}"
        )


def gate_losses(exits: ExitOutput, labels: Tensor) -> Tensor:
    """Return the gate's loss J_i of every exit, (L,), mean over the batch; zeros without a gate (BERxiT, eq. 9).

    For several labels an answer is right if the whole set is; of several values the worst counts.

    Args:
        exits: logits (L, B, C), certainty (L, B).
        labels: (B,) or (B, C).
    """
    if exits.certainty is None:
        return exits.logits.new_zeros(len(exits.logits))
    return (exits.certainty - correctness_target(exits, labels)).square().mean(dim=1)


@torch.no_grad()
def correctness_target(exits: ExitOutput, labels: Tensor) -> Tensor:
    """Return the gate's target v_i, (L, B) in 0..1: the correctness of each answer (BERxiT, eq. 10 and 11)."""
    logits = exits.logits.float()  # (L, B, C)
    _, batch, outputs = logits.shape
    if exits.problem_type == REGRESSION:
        return 1 - (logits - labels.float().view(batch, outputs)).abs().amax(dim=-1).tanh()
    return (predictions(exits) == labels.long().view(batch, -1)).all(dim=-1).float()


def depth_weighted(losses: Tensor) -> Tensor:
    """Return sum_i i L_i / sum_i i, with exits numbered from 1 (PABEE, section 3.3; PCEE-BERT, eq. 1)."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype, device=losses.device)  # (L,)
    return (weights * losses).sum() / weights.sum()
