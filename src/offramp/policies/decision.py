"""The decision at an exit: a row continues while its score is below the exit's threshold.

All other rows leave: those whose score reaches the threshold, the invalid ones (a score that is NaN, or logits that are
not finite; a score of -inf is valid and means "not yet"), and at the last exit all of them, because its threshold is
-inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.errors import InvalidInput


def nan_where_invalid(score: Tensor, logits: Tensor) -> Tensor:
    """Return the score (...), with NaN where it is NaN or where the logits (..., C) are not finite."""
    # Finite logits times 0 add 0 to the score; NaN and inf times 0 are NaN and make the sum NaN.
    return score + (logits * 0).sum(dim=-1)


def is_invalid(score: Tensor, logits: Tensor) -> Tensor:
    """Return (...) bool: the score (...) is NaN, or the logits (..., C) are not finite."""
    return nan_where_invalid(score, logits).isnan()


def refuse_broken(broken: Tensor, reason: str) -> None:
    """Raise InvalidInput if any sample, (N,) bool, is broken; the reason is what such samples have."""
    count, samples = int(broken.sum()), len(broken)
    if count == samples:
        raise InvalidInput(f"all {samples} samples have {reason}; a model or a trace that is broken answers nothing")
    if count:
        raise InvalidInput(f"{count} of {samples} samples have {reason}; leave them out first")


def continues(checked_score: Tensor, threshold: float | Tensor) -> Tensor:
    """Return (...) bool: the row continues. A NaN is below no threshold, so an invalid row leaves at once.

    Args:
        checked_score: (...) from `nan_where_invalid`.
        threshold: of all rows, or of each.
    """
    return checked_score < threshold


def thresholds_per_exit(thresholds: float | Sequence[float] | Tensor, exits: int) -> list[float]:
    """Return a threshold for each exit; the last one is -inf, since all rows leave at the last exit.

    Args:
        thresholds: one number for all exits, or one for each but the last; inf = never.
        exits: number of exits.

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
