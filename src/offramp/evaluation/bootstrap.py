"""Bootstrap intervals over samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from offramp.evaluation.metrics import metric_for
from offramp.evaluation.sweep import per_exit_constant, sweep
from offramp.policies.base import Policy
from offramp.policies.decision import continues
from offramp.policies.replay import finite_outputs
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.trace import Trace, labels_of

CURVE_POINTS = 200
CURVE_RESAMPLES = 200
LOSS_RESAMPLES = 500
CONFIDENCE = 0.95


@dataclass(frozen=True)
class BootstrapCurve:
    """Speed against quality with intervals, (K,) each, from full depth to the first exit.

    Attributes:
        thresholds: falling; the first is inf.
        mean_exits: mean exit layer, falling.
        scores: in the metric's unit.
        low: lower end of each score's interval, at this threshold, over draws of samples.
        high: upper end.
    """

    thresholds: Tensor
    mean_exits: Tensor
    scores: Tensor
    low: Tensor
    high: Tensor


def bootstrap_curve(
    trace: Trace,
    policy: Policy,
    metric: str | None = None,
    *,
    points: int = CURVE_POINTS,
    resamples: int = CURVE_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> BootstrapCurve:
    """Return mean exit layer and score at thresholds spread evenly over the mean exits, with intervals.

    Percentile bootstrap over samples: a resample is a count of each sample, and the score at a threshold is one of
    weighted sums. From one threshold to the next only the samples that change their exit change the sums, so all
    thresholds together cost about as much as the samples have exits. The mean exit is not resampled.

    Args:
        trace: with labels.
        policy: scores the exits.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.
        points: the largest number of thresholds.
        resamples: number of draws of N samples with replacement; the same ones for every policy.
        confidence: of the interval, above 0, below 1.
        seed: of the resamples.

    Raises:
        InvalidInput: no labels; a single exit; samples whose score is NaN or whose logits are not finite.
        NotApplicable: policy or metric have no meaning for this kind of problem.
    """
    _, rule = metric_for(trace, metric)
    labels = labels_of(trace)
    score, logits = finite_outputs(trace, policy)
    swept = sweep(score, per_exit_constant(trace, trace.layer_numbers))
    mean_exits = swept.statistics[:, 0] / len(trace)
    # 1) thresholds, and every sample's exit at each of them
    even = torch.linspace(mean_exits[0].item(), mean_exits[-1].item(), points, dtype=torch.float64)
    chosen = torch.unique(torch.searchsorted(-mean_exits, -even).clamp(max=len(mean_exits) - 1))
    thresholds = swept.thresholds[chosen]
    reached = score[:-1].cummax(dim=0).values  # (L-1, N)
    exits = torch.stack([continues(reached, threshold).sum(dim=0) for threshold in thresholds])  # (K, N)
    # 2) the score of every resample at each of them
    counts = _counts(len(trace), resamples, seed)
    if rule.resampled is None:
        statistics = rule.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels)
        sums = _summed(statistics, exits, counts)
    else:
        rows, summed = torch.arange(len(trace)), rule.resampled(labels, counts)
        sums = (summed(ExitOutput(logits[at, rows], problem_type=trace.problem_type)) for at in exits)
    scores = torch.stack([rule.value(total, len(trace)) for total in sums])  # (K, 1 + R)
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = scores[:, 1:].quantile(tails, dim=-1)
    return BootstrapCurve(thresholds, mean_exits[chosen], scores[:, 0], low, high)


def _counts(samples: int, resamples: int, seed: int) -> Tensor:
    """Return the counts of each sample, (N, 1 + R): one, then as drawn."""
    drawn = torch.randint(samples, (samples, resamples), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(samples, resamples, dtype=torch.float64)
    counts.scatter_add_(0, drawn, torch.ones_like(counts))
    return torch.cat((torch.ones(samples, 1, dtype=torch.float64), counts), dim=-1)


def _summed(statistics: Tensor, exits: Tensor, counts: Tensor) -> Iterator[Tensor]:
    """Yield sums (1 + R, S) of statistics (L, N, S) over samples (N, 1 + R counts), for each row of exits (K, N)."""
    sums = counts.T @ statistics[exits[0], torch.arange(exits.shape[1])]
    yield sums
    for before, now in pairwise(exits):
        moved = (before != now).nonzero().squeeze(-1)
        sums = sums + counts[moved].T @ (statistics[now[moved], moved] - statistics[before[moved], moved])
        yield sums


def loss_interval(trace: Trace, answers: Answers, metric: str | None = None) -> tuple[float, float]:
    """Return the 95% interval of the full model's score minus the early one, by a paired bootstrap over the rows.

    Args:
        trace: with labels, N rows.
        answers: early answers to the same rows.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.
    """
    _, rule = metric_for(trace, metric)
    drawn = torch.randint(len(trace), (LOSS_RESAMPLES, len(trace)), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(drawn.shape, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))  # (R, N)
    ranked = None if rule.resampled is None else rule.resampled(labels_of(trace), counts.T)

    def resampled(logits: Tensor) -> Tensor:
        out = ExitOutput(logits, problem_type=trace.problem_type)
        sums = counts @ rule.statistics(out, labels_of(trace)) if ranked is None else ranked(out)  # (R, S)
        return rule.value(sums, len(trace))

    loss = resampled(trace.logits[-1]) - resampled(answers.logits)
    low, high = loss.quantile(torch.tensor([0.025, 0.975], dtype=loss.dtype)).tolist()
    return low, high
