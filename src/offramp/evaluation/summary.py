"""Scores of all exits, and exits of all samples, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offramp.evaluation.measure import replay_point
from offramp.evaluation.metrics import layerwise
from offramp.types.operating_point import OperatingPoint
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
    """Return mean, best and deviation of a score over the exits behind a layer, as papers have them.

    Raises:
        InvalidInput: no labels.
    """
    values = zip(trace.layer_numbers, layerwise(trace, metric), strict=True)
    scores = torch.tensor([value for layer, value in values if layer], dtype=torch.float64)
    return ExitScoreSummary(scores.mean().item(), scores.max().item(), scores.std(correction=0).item())


def histogram(trace: Trace, point: OperatingPoint) -> dict[int, int]:
    """Count the samples that leave at each layer with an exit; at those that the point does not read none do."""
    _, answers = replay_point(trace, point)
    return {layer: int((answers.exit_layers == layer).sum()) for layer in trace.layer_numbers}
