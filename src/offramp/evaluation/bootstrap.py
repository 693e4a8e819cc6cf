"""Bootstrap intervals over samples, widened by exact bounds where too few samples differ to be resampled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from offramp.evaluation.intervals import FEW, TAIL, unseen_number, unseen_rows
from offramp.evaluation.measure import replay_point
from offramp.evaluation.metrics import METRICS, Metric, metric_for, score
from offramp.evaluation.sweep import per_exit_constant, sweep
from offramp.policies.base import Policy
from offramp.policies.decision import continues
from offramp.policies.replay import finite_outputs
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of

CURVE_POINTS = 200
CURVE_RESAMPLES = 200
LOSS_RESAMPLES = 500
MAX_DRAWS = 1 << 22
"""Rows of several resamples that are drawn at once, for the memory's sake."""
CONFIDENCE = 0.95
Interval = tuple[float, float]


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

    Where fewer than FEW samples are right, or wrong, the interval is widened by the scores that
    `offramp.evaluation.intervals.unseen_rows` do not exclude: for accuracy by Clopper and Pearson's bound. A score that
    the samples do not define (a correlation with a constant or of fewer than FEW samples, an F1 without its class) has
    the whole range.

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
    exit_scores, logits = finite_outputs(trace, policy)
    swept = sweep(exit_scores, per_exit_constant(trace, trace.layer_numbers))
    mean_exits = swept.statistics[:, 0] / len(trace)
    # 1) thresholds, and every sample's exit at each of them
    even = torch.linspace(mean_exits[0].item(), mean_exits[-1].item(), points, dtype=torch.float64)
    chosen = torch.unique(torch.searchsorted(-mean_exits, -even).clamp(max=len(mean_exits) - 1))
    thresholds = swept.thresholds[chosen]
    reached = exit_scores[:-1].cummax(dim=0).values  # (L-1, N)
    exits = torch.stack([continues(reached, threshold).sum(dim=0) for threshold in thresholds])  # (K, N)
    # 2) the score of every resample at each of them
    counts = _counts(len(trace), resamples, seed)
    if rule.resampled is None:
        statistics = rule.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels)
        sums = list(_summed(statistics, exits, counts))
    else:
        rows, summed = torch.arange(len(trace)), rule.resampled(labels, counts)
        sums = [summed(ExitOutput(logits[at, rows], problem_type=trace.problem_type)) for at in exits]
    scores = torch.stack([rule.value(total, len(trace)) for total in sums])  # (K, 1 + R)
    tail = (1 - confidence) / 2
    low, high = (end.clamp(rule.least, 1.0) for end in _percentiles(scores[:, 0], scores[:, 1:], tail))
    # 3) what resampling cannot reveal
    if trace.problem_type != REGRESSION:
        right = _right_rows(trace, logits).gather(0, exits).sum(dim=-1)  # (K,)
        _widen(trace, rule, torch.stack([total[0] for total in sums]), right.tolist(), low, high, tail)
    unknown = (low == high) & (scores[:, 0].abs() < 1 - 1e-9)
    if trace.problem_type == REGRESSION and len(trace) < FEW:
        unknown[:] = True
    low[unknown], high[unknown] = rule.least, 1.0
    return BootstrapCurve(thresholds, mean_exits[chosen], scores[:, 0], low, high)


def _percentiles(whole: Tensor, resampled: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """Return percentiles of resampled scores (..., R), moved out until their median may be the sample's score (...).

    A resample has fewer of the rare classes than the sample. So its macro-F1 is lower, and the percentiles alone may
    not even hold the sample's own score.
    """
    tails = torch.tensor([tail, 0.5, 1 - tail], dtype=torch.float64)
    low, middle, high = resampled.quantile(tails, dim=-1)
    return low + (whole - middle).clamp(max=0), high + (whole - middle).clamp(min=0)


def _right_rows(trace: Trace, logits: Tensor) -> Tensor:
    """Return the rows that logits (..., N, C) answer right, in all of their labels, (..., N) bool."""
    out = ExitOutput(logits, problem_type=trace.problem_type)
    return METRICS["accuracy"].statistics(out, labels_of(trace)).squeeze(-1) > 0


def _widen(trace: Trace, rule: Metric, sums: Tensor, right: list[int], low: Tensor, high: Tensor, tail: float) -> None:
    """Widen intervals (K,) in place by unseen rows, for sums (K, S) of the sample with so many right rows each."""
    unseen, rows = unseen_rows(trace, rule), len(trace)
    for index, count in enumerate(right):
        if count > 0 and rows - count < FEW:
            number = unseen_number(rows - count, rows, tail)
            low[index] = low[index].minimum(unseen.scores(sums[index], rows, unseen.wrong, number).min())
        if count < FEW and count < rows:
            number = unseen_number(count, rows, tail)
            high[index] = high[index].maximum(unseen.scores(sums[index], rows, unseen.right, number).max())


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


def loss_interval(trace: Trace, answers: Answers, metric: str | None = None) -> Interval | None:
    """Return the 95% interval of the full model's score minus the early one, by a paired bootstrap over the rows.

    Where early exit makes fewer than FEW rows right or wrong, the interval is widened by the unseen rows that it may
    make so: without any such row among n, their share is at most 1 - 0.05^(1/n) with 95% confidence, and so is the
    loss or the gain of accuracy (see `offramp.evaluation.intervals`).

    Args:
        trace: with labels, N rows.
        answers: early answers to the same rows.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.

    Returns:
        None where these rows show no interval: a correlation of fewer than FEW rows or with a constant, a score that
        is not defined where all rows have one class.
    """
    _, rule = metric_for(trace, metric)
    if trace.problem_type == REGRESSION and len(trace) < FEW:
        return None
    low, high = _resampled_loss(trace, answers.logits, rule)
    if trace.problem_type != REGRESSION:
        low, high = _widened_loss(trace, answers.logits, rule, (low, high))
    return None if low == high else (low, high)


def point_loss_interval(trace: Trace, point: OperatingPoint, metric: str | None = None) -> Interval | None:
    """Return `loss_interval` of an operating point; (0, 0) where its thresholds let no row leave early."""
    answered, answers = replay_point(trace, point)
    return (0.0, 0.0) if is_full_model(point, answered, answers) else loss_interval(answered, answers, metric)


def is_full_model(point: OperatingPoint, trace: Trace, answers: Answers) -> bool:
    """Return whether a point, with its answers on a trace, is the full model: no row can leave early, here or not."""
    return min(point.thresholds, default=math.inf) == math.inf and torch.equal(answers.logits, trace.logits[-1])


def _resampled_loss(trace: Trace, early: Tensor, rule: Metric) -> Interval:
    """Return the percentiles of LOSS_RESAMPLES paired resamples; early: logits (N, C)."""
    generator, rows, labels = torch.Generator().manual_seed(0), len(trace), labels_of(trace)
    both = [ExitOutput(logits, problem_type=trace.problem_type) for logits in (trace.logits[-1], early)]
    statistics = [rule.statistics(out, labels) for out in both] if rule.resampled is None else []
    losses = []
    at_once = max(1, MAX_DRAWS // rows)
    for start in range(0, LOSS_RESAMPLES, at_once):
        resamples = min(at_once, LOSS_RESAMPLES - start)
        drawn = torch.randint(rows, (resamples, rows), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))  # (R, N)
        if rule.resampled is None:
            full_sums, early_sums = (counts @ values for values in statistics)
        else:
            full_sums, early_sums = map(rule.resampled(labels, counts.T), both)
        losses.append(rule.value(full_sums, rows) - rule.value(early_sums, rows))
    full, other = (score(rule, out, labels) for out in both)
    most = 1 - rule.least
    low, high = _percentiles(full - other, torch.cat(losses), TAIL / 2)
    return low.clamp(-most, most).item(), high.clamp(-most, most).item()


def _widened_loss(trace: Trace, early: Tensor, rule: Metric, interval: Interval) -> Interval:
    """Widen an interval by unseen rows that early exit makes wrong, or right; early: logits (N, C)."""
    rows, labels, (low, high) = len(trace), labels_of(trace), interval
    changed = int((_right_rows(trace, trace.logits[-1]) != _right_rows(trace, early)).sum())
    full_sums, early_sums = (
        rule.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels).sum(dim=0)
        for logits in (trace.logits[-1], early)
    )
    for count in (changed, rows - changed):
        if count < min(FEW, rows):
            unseen = unseen_rows(trace, rule)
            number = unseen_number(count, rows, TAIL / 2 if count else TAIL)
            lost, gained = (
                unseen.scores(full_sums, rows, full, number) - unseen.scores(early_sums, rows, other, number)
                for full, other in ((unseen.right, unseen.wrong), (unseen.wrong, unseen.right))
            )
            low, high = min(low, gained.min().item()), max(high, lost.max().item())
    return low, high
