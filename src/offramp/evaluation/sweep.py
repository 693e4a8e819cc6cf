"""Statistics at every threshold that splits a trace, in one exact sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.evaluation.metrics import METRICS, check_metric
from offramp.policies.base import Policy
from offramp.policies.replay import run_policy
from offramp.types.outputs import ExitOutput
from offramp.types.trace import Trace, labels_of


@dataclass(frozen=True)
class Sweep:
    """Sums of statistics for every split of a trace by one threshold for all exits, from strictest to loosest.

    Attributes:
        thresholds: (K,) float32; the first is inf.
        statistics: (K, S) float64, summed over the samples as they leave at that threshold.
    """

    thresholds: Tensor
    statistics: Tensor


def sweep(score: Tensor, statistics: Tensor) -> Sweep:
    """Sum per-sample statistics at every threshold that lies between two scores.

    Args:
        score: (L, N) a policy's scores; the last exit's do not matter.
        statistics: (L, N, S) a sample's contribution if it leaves at that exit.
    """
    swept, between = all_splits(score, statistics)
    return Sweep(swept.thresholds[between], swept.statistics[between])


def all_splits(score: Tensor, statistics: Tensor) -> tuple[Sweep, Tensor]:
    """Sum per-sample statistics at every split, also where no float lies between two scores.

    As the threshold falls, a sample's exit moves up to the first exit whose running maximum reaches it. Each of these
    (L-1) N steps replaces the statistics of exit m+1 by those of exit m; sorted by score and summed they give all K.

    Args:
        score: (L, N) a policy's scores; the last exit's do not matter.
        statistics: (L, N, S) a sample's contribution if it leaves at that exit.

    Returns:
        All K splits, and (K,) bool: the threshold lies between two scores. Else it lies on the upper one.
    """
    reached = score[:-1].cummax(dim=0).values.flatten()  # ((L-1) N,)
    change = (statistics[:-1] - statistics[1:]).flatten(0, 1)  # ((L-1) N, S)
    finite = reached.isfinite()
    ordered, order = reached[finite].sort(descending=True)
    totals = statistics[-1].sum(dim=0) + change[finite][order].cumsum(dim=0)
    values, counts = torch.unique_consecutive(ordered, return_counts=True)
    next_lower = torch.cat((values[1:], values[-1:] - values[-1:].abs().clamp(min=1)))
    middle = ((values.double() + next_lower.double()) / 2).float()
    between = (middle < values) & (middle > next_lower)
    thresholds = torch.cat((torch.tensor([math.inf]), torch.where(between, middle, values)))
    sums = torch.cat((statistics[-1].sum(dim=0)[None], totals[counts.cumsum(dim=0) - 1]))
    return Sweep(thresholds, sums), torch.cat((torch.tensor([True]), between))


@dataclass(frozen=True)
class Curve:
    """Speed against quality, (K,) each, from full depth to the first exit."""

    thresholds: Tensor
    mean_exits: Tensor
    scores: Tensor


def curve(trace: Trace, policy: Policy, metric: str | None = None) -> Curve:
    """Return mean exit layer and score at every threshold.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: policy or metric have no meaning for this kind of problem; a metric that no sweep can sum.
    """
    return score_curve(trace, *run_policy(policy, trace), metric)


def score_curve(trace: Trace, score: Tensor, logits: Tensor, metric: str | None = None) -> Curve:
    """Return `curve` of a policy that has run: its scores (L, N) and logits (L, N, C)."""
    name = check_metric(metric, str(trace.problem_type), trace.logits.shape[-1], for_thresholds=True)
    rule = METRICS[name]
    statistics = rule.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels_of(trace))
    swept = sweep(score, torch.cat((per_exit_constant(trace, trace.layer_numbers), statistics), dim=-1))
    return Curve(
        swept.thresholds,
        swept.statistics[:, 0] / len(trace),
        rule.value(swept.statistics[:, 1:], len(trace)),
    )


def per_exit_constant(trace: Trace, values: Sequence[float]) -> Tensor:
    """Return one value an exit, (L,), as a statistic of every sample, (L, N, 1)."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1).expand(-1, len(trace), 1)
