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
from offramp.policies.replay import finite_outputs
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.trace import Trace, labels_of

POINTS = 200
RESAMPLES = 200
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
    points: int = POINTS,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> BootstrapCurve:
    """Mean exit layer and score at thresholds spread evenly over the mean exits, with intervals.

    Percentile bootstrap over samples: a resample is how often each sample is there, and the score at a threshold is of
    weighted sums. From one threshold to the next only the samples that leave elsewhere change their part, so all
    thresholds together cost about as much as the samples have exits. The mean exit is taken as it is.

    Args:
        trace: with labels.
        policy: scores the exits.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one.
        points: at most so many thresholds; fewer where there are fewer.
        resamples: of N samples with replacement; the same ones for every policy.
        confidence: of the interval, above 0, below 1.
        seed: of the resamples.

    Raises:
        InvalidInput: no labels; a single exit; samples whose scores or logits are not finite.
        NotApplicable: policy or metric have no meaning for this kind of problem.
    """
    _, found = metric_for(trace, metric)
    labels = labels_of(trace)
    score, logits = finite_outputs(trace, policy)
    swept = sweep(score, per_exit_constant(trace, trace.layer_numbers))
    mean_exits = swept.statistics[:, 0] / len(trace)
    wanted = torch.linspace(mean_exits[0].item(), mean_exits[-1].item(), points, dtype=torch.float64)
    chosen = torch.unique(torch.searchsorted(-mean_exits, -wanted).clamp(max=len(mean_exits) - 1))
    thresholds = swept.thresholds[chosen]
    reached = score[:-1].cummax(dim=0).values  # (L-1, N)
    exits = torch.stack([(reached < threshold).sum(dim=0) for threshold in thresholds])  # (K, N)
    times = _times(len(trace), resamples, seed)
    if found.resampled is None:
        statistics = found.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels)
        sums = _summed(statistics, exits, times)
    else:
        rows, summed = torch.arange(len(trace)), found.resampled(labels, times)
        sums = (summed(ExitOutput(logits[now, rows], problem_type=trace.problem_type)) for now in exits)
    seen = torch.stack([found.value(each, len(trace)) for each in sums])  # (K, 1 + R)
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = seen[:, 1:].quantile(tails, dim=-1)
    return BootstrapCurve(thresholds, mean_exits[chosen], seen[:, 0], low, high)


def _times(samples: int, resamples: int, seed: int) -> Tensor:
    """(N, 1 + R) how often each sample is there: once, then as drawn."""
    drawn = torch.randint(samples, (samples, resamples), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(samples, resamples, dtype=torch.float64)
    times.scatter_add_(0, drawn, torch.ones_like(times))
    return torch.cat((torch.ones(samples, 1, dtype=torch.float64), times), dim=-1)


def _summed(statistics: Tensor, exits: Tensor, times: Tensor) -> Iterator[Tensor]:
    """Sums (1 + R, S) of statistics (L, N, S), with so many of each sample (N, 1 + R), for each row of exits (K, N)."""
    sums = times.T @ statistics[exits[0], torch.arange(exits.shape[1])]
    yield sums
    for before, now in pairwise(exits):
        moved = (before != now).nonzero().squeeze(-1)
        sums = sums + times[moved].T @ (statistics[now[moved], moved] - statistics[before[moved], moved])
        yield sums


LOSS_RESAMPLES = 500


def loss_interval(trace: Trace, answers: Answers, metric: str | None = None) -> tuple[float, float]:
    """95% interval of the full model's score minus the early one, by a paired bootstrap over the rows.

    Args:
        trace: with labels, N rows.
        answers: the early ones, of the same rows.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one.
    """
    _, found = metric_for(trace, metric)
    drawn = torch.randint(len(trace), (LOSS_RESAMPLES, len(trace)), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(drawn.shape, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))  # (R, N) how often each row was drawn
    ranked = None if found.resampled is None else found.resampled(labels_of(trace), times.T)

    def resampled(logits: Tensor) -> Tensor:
        out = ExitOutput(logits, problem_type=trace.problem_type)
        sums = times @ found.statistics(out, labels_of(trace)) if ranked is None else ranked(out)  # (R, S)
        return found.value(sums, len(trace))

    lost = resampled(trace.logits[-1]) - resampled(answers.logits)
    low, high = lost.quantile(torch.tensor([0.025, 0.975], dtype=lost.dtype)).tolist()
    return low, high
