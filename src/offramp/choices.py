"""What an exit's answer consists of: one choice among classes, or a yes or no for each label."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.errors import NotApplicable
from offramp.values import MULTI_LABEL, REGRESSION, ExitOutput


def choices(out: ExitOutput) -> Tensor:
    """Log-probabilities (..., G, K) in float32 of the G choices that an answer consists of.

    One choice among C classes for single-label problems, C choices between no and yes for several labels. A policy
    that reads these handles both.

    Raises:
        NotApplicable: a regression has no choices.
    """
    logits = out.logits.float()
    if out.problem_type == REGRESSION:
        raise NotApplicable(
            "this policy compares classes and a regression has none; it has: stability, certainty, fixed"
        )
    if out.problem_type == MULTI_LABEL:
        return torch.stack((torch.zeros_like(logits), logits), dim=-1).log_softmax(dim=-1)  # (..., C, 2)
    return logits.log_softmax(dim=-1).unsqueeze(-2)  # (..., 1, C)


def answer(out: ExitOutput) -> Tensor:
    """The answer as class numbers: (..., 1) for a single label, (..., C) of 0 or 1 for several (yes above 0.5)."""
    return choices(out).argmax(dim=-1)
