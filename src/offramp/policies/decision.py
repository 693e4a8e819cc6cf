"""The decision rule: who leaves, who continues, and whose output is invalid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.errors import InvalidInput


def nan_where_invalid(score: Tensor, logits: Tensor) -> Tensor:
    """The score (...), but NaN where there is no answer: where it is NaN, or logits (..., C) are not finite."""
    return score + (logits * 0).sum(dim=-1)


def is_invalid(score: Tensor, logits: Tensor) -> Tensor:
    """Who has no answer, (...) bool: a score (...) that is NaN, or logits (..., C) that are not finite."""
    return nan_where_invalid(score, logits).isnan()


def continues(sound_score: Tensor, limit: float | Tensor) -> Tensor:
    """Who goes on, (B,) bool: whoever is below the limit. Who has failed is below nothing, and leaves at once.

    Args:
        sound_score: (B,) as `sound` gives it.
        limit: of all, or (B,).
    """
    return sound_score < limit


def thresholds_per_exit(thresholds: float | Sequence[float] | Tensor, exits: int) -> list[float]:
    """One limit for each of `exits` exits; the last one is -inf: the last exit always answers.

    Args:
        thresholds: one number for all exits, or one for each but the last; inf = never.
        exits: how many exits there are.

    Raises:
        InvalidInput: the wrong count, or a NaN.
    """
    values = torch.as_tensor(thresholds, dtype=torch.float64).tolist()
    values = [values] * (exits - 1) if isinstance(values, float) else values
    if len(values) != exits - 1:
        raise InvalidInput(
            f"{exits} exits take 1 or {exits - 1} thresholds (all exits but the last), got {len(values)}"
        )
    if any(math.isnan(value) for value in values):
        raise InvalidInput(f"a threshold must be a number, got {values}")
    return [*values, -math.inf]
