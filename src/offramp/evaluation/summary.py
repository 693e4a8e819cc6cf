"""Scores of all exits, and exits of all samples, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.evaluation.metrics import layerwise
from offramp.policies.base import Policy
from offramp.policies.replay import replay
from offramp.types.trace import Trace


@dataclass(frozen=True)
class ExitScoreSummary:
    """A score over the exits, all rows leaving at one of them: S-avg, S-best and S-std of BADGE and PCEE-BERT.

    Attributes:
        average: mean over the L exits.
        best: of the L exits.
        deviation: standard deviation over the L exits (of a population, not of a sample).
    """

    average: float
    best: float
    deviation: float


def exit_score_summary(trace: Trace, metric: str | None = None) -> ExitScoreSummary:
    """Return mean, best and deviation of a score over the exits.

    Raises:
        InvalidInput: no labels.
    """
    scores = torch.tensor(layerwise(trace, metric), dtype=torch.float64)
    return ExitScoreSummary(scores.mean().item(), scores.max().item(), scores.std(correction=0).item())


def histogram(trace: Trace, policy: Policy, thresholds: float | Sequence[float] | Tensor) -> dict[int, int]:
    """Count the samples that leave at each layer with an exit."""
    exit_layers = replay(trace, policy, thresholds).exit_layers
    return {layer: int((exit_layers == layer).sum()) for layer in trace.layer_numbers}
