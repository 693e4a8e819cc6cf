"""Scores of all exits, and exits of all samples, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.evaluation.metrics import layerwise
from offramp.policies.base import Policy
from offramp.policies.replay import replay
from offramp.types.trace import Trace

# --- what exits say in numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExitScoreSummary:
    """A score over the exits, everybody leaving at one of them: S-avg, S-best and S-std of BADGE and PCEE-BERT.

    Attributes:
        average: mean over the L exits.
        best: of the L exits.
        deviation: standard deviation over the L exits, all there are (not a sample of them).
    """

    average: float
    best: float
    deviation: float


def exit_score_summary(trace: Trace, metric: str | None = None) -> ExitScoreSummary:
    """How a score is spread over the exits.

    Raises:
        InvalidInput: no labels.
    """
    each = torch.tensor(layerwise(trace, metric), dtype=torch.float64)
    return ExitScoreSummary(each.mean().item(), each.max().item(), each.std(correction=0).item())


def histogram(trace: Trace, policy: Policy, thresholds: float | Sequence[float] | Tensor) -> dict[int, int]:
    """How many samples leave at each layer that has an exit."""
    left = replay(trace, policy, thresholds).exit_layers
    return {layer: int((left == layer).sum()) for layer in trace.layer_numbers}


def relative(scores: Tensor, full: float) -> Tensor:
    """Scores in percent of the full model's, as BERxiT tells them.

    Raises:
        InvalidInput: the full model's score is not above 0.
    """
    if full <= 0:
        raise InvalidInput(f"the full model scores {full:.4g}: not above 0, so nothing can be told in percent of it")
    return 100 * scores / full
