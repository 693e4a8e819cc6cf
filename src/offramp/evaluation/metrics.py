"""Metrics: scores of every exit and of an operating point.

Every metric here is a closed form over per-sample statistics that only need to be summed. So one sweep gives the exact
score at every threshold, where a library would be called once for each. Spearman's correlation is one too, but its
statistics are ranks, which depend on the other samples: it can be computed, but not swept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import NotApplicable, UnknownName
from offramp.types.outputs import ExitOutput, class_log_probs, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, labels_of


@dataclass(frozen=True)
class Metric:
    """A score, larger = better.

    Attributes:
        statistics: (outputs of exits, logits (..., N, C); labels) -> (..., N, S) float64, to be summed over samples.
        value: sums (..., S) over N samples -> scores (...).
        problem_types: the ones it has a meaning for; None = all but regression.
        least: the lowest score that there is.
        resampled: for statistics that depend on the other samples: (labels; counts of each sample, (N, R)) -> a
            function from one exit's output to sums (R, S). None where these are weighted sums of `statistics`.
    """

    statistics: Callable[[ExitOutput, Tensor], Tensor]
    value: Callable[[Tensor, float], Tensor]
    problem_types: tuple[str, ...] | None = None
    least: float = 0.0
    resampled: Callable[[Tensor, Tensor], Callable[[ExitOutput], Tensor]] | None = None


def _right(out: ExitOutput, labels: Tensor) -> Tensor:
    right = (predictions(out) == labels.long().view(len(labels), -1)).all(dim=-1)  # (..., N)
    return right.unsqueeze(-1).double()


def _confusion(out: ExitOutput, labels: Tensor) -> Tensor:
    """Return for each sample and class, or label: predicted and true, predicted, true; (..., N, 3 C)."""
    classes, several = out.logits.shape[-1], out.problem_type == MULTI_LABEL
    predicted = predictions(out) if several else F.one_hot(predictions(out).squeeze(-1), classes)
    true = labels.long() if several else F.one_hot(labels.long(), classes)
    predicted, true = predicted.double(), true.double().expand(predicted.shape)
    return torch.cat((predicted * true, predicted, true), dim=-1)


def _positives(out: ExitOutput, labels: Tensor) -> Tensor:
    """Return `_confusion` of class 1 of two, or of all labels together; (..., N, 3)."""
    counts = torch.stack(_confusion(out, labels).chunk(3, dim=-1), dim=-1)  # (..., N, C, 3)
    return counts.sum(dim=-2) if out.problem_type == MULTI_LABEL else counts[..., 1, :]


def _f1(sums: Tensor, samples: float) -> Tensor:
    hits, predicted, true = sums.unbind(dim=-1)
    return 2 * hits / (predicted + true).clamp(min=1)


def _macro_f1(sums: Tensor, samples: float) -> Tensor:
    hits, predicted, true = sums.chunk(3, dim=-1)
    defined = (predicted + true) > 0  # a class that is neither predicted nor true has no F1
    return (2 * hits / (predicted + true).clamp(min=1)).sum(dim=-1) / defined.sum(dim=-1).clamp(min=1)


def _matthews(sums: Tensor, samples: float) -> Tensor:
    """Return Gorodkin's R_K; for two classes Matthews' correlation. 0 where one side is constant."""
    hits, predicted, true = sums.chunk(3, dim=-1)
    covariance = hits.sum(dim=-1) * samples - (predicted * true).sum(dim=-1)
    spread = (samples**2 - predicted.square().sum(dim=-1)) * (samples**2 - true.square().sum(dim=-1))
    return torch.where(spread > 0, covariance / spread.clamp(min=1).sqrt(), 0.0)


def _moments(out: ExitOutput, labels: Tensor) -> Tensor:
    """Return for each sample and output: x, y, x x, y y, x y; (..., N, 5 C)."""
    y = labels.double().view(len(labels), -1)  # (N, C)
    mean = y.mean(dim=0)  # subtracted from both, so that the sums keep their digits
    x = out.logits.double() - mean
    y = (y - mean).expand_as(x)
    return torch.cat((x, y, x.square(), y.square(), x * y), dim=-1)


def _pearson(sums: Tensor, samples: float) -> Tensor:
    """Return the mean correlation over the outputs; 0 for an output where one side is constant."""
    x, y, xx, yy, xy = (sums / samples).chunk(5, dim=-1)  # (..., C) each
    spread = (xx - x.square()) * (yy - y.square())
    varies = spread > 1e-12 * xx * yy  # the rounding error of a constant is not a spread
    return torch.where(varies, (xy - x * y) / spread.clamp(min=1e-300).sqrt(), 0.0).mean(dim=-1)


def _ranks(values: Tensor, counts: Tensor) -> Tensor:
    """Return ranks (N, R), from 1, of values (N,) with counts (N, R); equal values share their mean rank."""
    distinct, index = torch.unique(values, return_inverse=True)
    totals = torch.zeros(len(distinct), counts.shape[-1], dtype=torch.float64).index_add_(0, index, counts)
    return (totals.cumsum(dim=0) - (totals - 1) / 2)[index]


def _rank_moments(out: ExitOutput, labels: Tensor) -> Tensor:
    """Return `_moments` of the ranks among all samples."""
    once = torch.ones(len(labels), 1, dtype=torch.float64)
    x, y = (
        torch.stack([_ranks(column, once).squeeze(-1) for column in columns.flatten(0, -2)]).view(columns.shape)
        for columns in (out.logits.movedim(-1, -2), labels.view(len(labels), -1).movedim(-1, -2))  # (..., C, N)
    )
    return _moments(ExitOutput(x.movedim(-1, -2), problem_type=REGRESSION), y.movedim(-1, -2))


def _rank_sums(labels: Tensor, counts: Tensor) -> Callable[[ExitOutput], Tensor]:
    """Return a function to the sums (R, 5 C) of `_rank_moments`, over samples with counts (N, R)."""

    def ranked(side: Tensor) -> Tensor:
        """Return ranks (C, N, R) around their mean, so that they add up to 0."""
        return torch.stack([_ranks(column, counts) for column in side.unbind(dim=-1)]) - (len(labels) + 1) / 2

    y = ranked(labels.view(len(labels), -1))
    yy = (counts * y * y).sum(dim=1)  # (C, R)

    def sums(out: ExitOutput) -> Tensor:
        x = ranked(out.logits)
        weighted = counts * x
        zeros = torch.zeros_like(yy)
        return torch.cat((zeros, zeros, (weighted * x).sum(dim=1), yy, (weighted * y).sum(dim=1))).T

    return sums


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_right, lambda sums, samples: sums[..., 0] / samples),
    "f1": Metric(_positives, _f1),
    "macro-f1": Metric(_confusion, _macro_f1),
    "matthews": Metric(_confusion, _matthews, (SINGLE_LABEL,), least=-1.0),
    "pearson": Metric(_moments, _pearson, (REGRESSION,), least=-1.0),
    "spearman": Metric(_rank_moments, _pearson, (REGRESSION,), least=-1.0, resampled=_rank_sums),
}


def metric_for(trace: Trace, name: str | None = None) -> tuple[str, Metric]:
    """Return the metric of a name, or the default one: Pearson's correlation for regression, else accuracy.

    With several labels "accuracy" is the share of rows whose labels are all right, "f1" the F1 of all decisions
    together (micro), "macro-f1" the mean of the labels' F1.

    Raises:
        UnknownName: no such metric.
        NotApplicable: it has no meaning for this kind of problem.
    """
    name = check_metric(name, str(trace.problem_type), trace.logits.shape[-1])
    return name, METRICS[name]


def check_metric(name: str | None, problem_type: str, outputs: int, *, for_thresholds: bool = False) -> str:
    """Return the name of a metric that has a meaning for this kind of problem; None = the default one.

    Args:
        name: of the metric.
        problem_type: one of `offramp.types.problem_types.PROBLEM_TYPES`.
        outputs: C, of the model.
        for_thresholds: the metric is to choose thresholds, so it must be known at each of them.

    Raises:
        UnknownName: no such metric.
        NotApplicable: it has no meaning for this kind of problem, or cannot choose thresholds.
    """
    name = name or ("pearson" if problem_type == REGRESSION else "accuracy")
    if name not in METRICS:
        raise UnknownName(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    fitting = [other for other in METRICS if _fits(other, problem_type, outputs)]
    if name not in fitting:
        raise NotApplicable(
            f"{name} has no meaning for {problem_type} with {outputs} outputs; these have: {', '.join(fitting)}"
        )
    if for_thresholds and METRICS[name].resampled is not None:
        raise NotApplicable(f"{name} ranks all samples together, so it is not known at every threshold; pearson is")
    return name


def _fits(name: str, problem_type: str, outputs: int) -> bool:
    fits = METRICS[name].problem_types or (SINGLE_LABEL, MULTI_LABEL)
    return problem_type in fits and (name != "f1" or problem_type == MULTI_LABEL or outputs == 2)


def score(metric: Metric, out: ExitOutput, labels: Tensor) -> Tensor:
    """Return the scores (...) of logits (..., N, C)."""
    return metric.value(metric.statistics(out, labels).sum(dim=-2), len(labels))


def layerwise(trace: Trace, metric: str | None = None) -> list[float]:
    """Return the score of every exit, if all rows leave there.

    Raises:
        InvalidInput: a trace without labels.
    """
    _, rule = metric_for(trace, metric)
    return score(rule, ExitOutput(trace.logits, problem_type=trace.problem_type), labels_of(trace)).tolist()


BINS = 15
"""Bins of a calibration error, as in its source."""


def calibration_error(trace: Trace, bins: int = BINS) -> Tensor:
    """Return the expected calibration error of every exit, (L,) in 0..1.

    Answers are sorted into bins of equal width by their probability. The error is the distance of a bin's mean
    probability from its share of right answers, averaged over the answers. Of several labels each is an answer.

    Args:
        trace: with labels.
        bins: number of bins.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: a regression has no probabilities.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 5.
    """
    confidence, right = confidences(trace)
    gaps = torch.zeros(trace.depth, bins, dtype=torch.float64)
    gaps.scatter_add_(1, bin_numbers(confidence, bins), confidence - right)
    return gaps.abs().sum(dim=-1) / confidence.shape[-1]


def bin_numbers(confidence: Tensor, bins: int) -> Tensor:
    """Return the number of each answer's bin, 0-based, of `bins` of equal width that are open below."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def confidences(trace: Trace) -> tuple[Tensor, Tensor]:
    """Return each exit's probability of its answer, in 0..1, and 1 where it is right, else 0; (L, N G) float64 each.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: a regression has no probabilities.
    """
    log_p = class_log_probs(ExitOutput(trace.logits, problem_type=trace.problem_type))  # (L, N, G, K)
    log_confidence, answers = (part.flatten(1) for part in log_p.max(dim=-1))
    return log_confidence.exp().double(), (answers == labels_of(trace).long().view(1, -1)).double()
