"""Scores: of every exit, of an operating point.

Every metric here is a closed form over per-sample statistics that only need to be summed. That is what lets calibration
know the exact score at every threshold in one sweep, where a library would have to be called once for each. Spearman's
correlation is one too, but its statistics are ranks, which hang on the other samples: it can be told, not swept.
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
        statistics: (what exits say, logits (..., N, C); labels) -> (..., N, S) float64, to be summed over samples.
        value: sums (..., S) over N samples -> scores (...).
        problem_types: where it has a meaning; None = everywhere but in regression.
        resampled: for statistics that hang on the other samples: (labels; how often each sample is there, (N, R)) ->
            what makes sums (R, S) of what one exit says. None where these are weighted sums of `statistics`.
    """

    statistics: Callable[[ExitOutput, Tensor], Tensor]
    value: Callable[[Tensor, int], Tensor]
    problem_types: tuple[str, ...] | None = None
    resampled: Callable[[Tensor, Tensor], Callable[[ExitOutput], Tensor]] | None = None


def _right(out: ExitOutput, labels: Tensor) -> Tensor:
    given = predictions(out)  # (..., N, G)
    right = (given == labels.long().view(len(labels), -1)).all(dim=-1)
    return right.unsqueeze(-1).double()


def _confusion(out: ExitOutput, labels: Tensor) -> Tensor:
    """For each sample and class: predicted and true, predicted, true; (..., N, 3 C)."""
    classes = out.logits.shape[-1]
    predicted = F.one_hot(predictions(out).squeeze(-1), classes).double()
    true = F.one_hot(labels.long(), classes).double().expand_as(predicted)
    return torch.cat((predicted * true, predicted, true), dim=-1)


def _f1(sums: Tensor, samples: int) -> Tensor:
    hits, predicted, true = sums.chunk(3, dim=-1)
    return 2 * hits[..., 1] / (predicted[..., 1] + true[..., 1]).clamp(min=1)


def _macro_f1(sums: Tensor, samples: int) -> Tensor:
    hits, predicted, true = sums.chunk(3, dim=-1)
    seen = (predicted + true) > 0  # a class that is neither predicted nor there has no F1
    return (2 * hits / (predicted + true).clamp(min=1)).sum(dim=-1) / seen.sum(dim=-1)


def _matthews(sums: Tensor, samples: int) -> Tensor:
    """Gorodkin's R_K; for two classes Matthews' correlation. 0 where one side is constant."""
    hits, predicted, true = sums.chunk(3, dim=-1)
    covariance = hits.sum(dim=-1) * samples - (predicted * true).sum(dim=-1)
    spread = (samples**2 - predicted.square().sum(dim=-1)) * (samples**2 - true.square().sum(dim=-1))
    return torch.where(spread > 0, covariance / spread.clamp(min=1).sqrt(), 0.0)


def _moments(out: ExitOutput, labels: Tensor) -> Tensor:
    """For each sample and output: x, y, x x, y y, x y; (..., N, 5 C)."""
    wanted = labels.double().view(len(labels), -1)  # (N, C)
    middle = wanted.mean(dim=0)  # taken off both, so that the sums keep their digits
    given = out.logits.double() - middle
    wanted = (wanted - middle).expand_as(given)
    return torch.cat((given, wanted, given.square(), wanted.square(), given * wanted), dim=-1)


def _pearson(sums: Tensor, samples: int) -> Tensor:
    """Mean over the outputs; 0 for an output where one side is constant."""
    x, y, xx, yy, xy = (sums / samples).chunk(5, dim=-1)  # (..., C) each
    spread = (xx - x.square()) * (yy - y.square())
    varies = spread > 1e-12 * xx * yy  # what rounding leaves of a constant is not a spread
    return torch.where(varies, (xy - x * y) / spread.clamp(min=1e-300).sqrt(), 0.0).mean(dim=-1)


def _ranks(values: Tensor, times: Tensor) -> Tensor:
    """Ranks (N, R), from 1, of values (N,) of which each is there so often (N, R); equal ones share their middle."""
    distinct, place = torch.unique(values, return_inverse=True)
    there = torch.zeros(len(distinct), times.shape[-1], dtype=torch.float64).index_add_(0, place, times)
    return (there.cumsum(dim=0) - (there - 1) / 2)[place]


def _rank_moments(out: ExitOutput, labels: Tensor) -> Tensor:
    """`_moments` of the ranks among all samples."""
    once = torch.ones(len(labels), 1, dtype=torch.float64)
    given, wanted = (
        torch.stack([_ranks(column, once).squeeze(-1) for column in columns.flatten(0, -2)]).view(columns.shape)
        for columns in (out.logits.movedim(-1, -2), labels.view(len(labels), -1).movedim(-1, -2))  # (..., C, N)
    )
    return _moments(ExitOutput(given.movedim(-1, -2), problem_type=REGRESSION), wanted.movedim(-1, -2))


def _rank_sums(labels: Tensor, times: Tensor) -> Callable[[ExitOutput], Tensor]:
    """Sums (R, 5 C) of `_rank_moments`, over samples of which each is there so often (N, R)."""

    def ranked(side: Tensor) -> Tensor:
        """(C, N, R) around their mean, so that they add up to 0."""
        return torch.stack([_ranks(column, times) for column in side.unbind(dim=-1)]) - (len(labels) + 1) / 2

    y = ranked(labels.view(len(labels), -1))
    yy = (times * y * y).sum(dim=1)  # (C, R)

    def sums(out: ExitOutput) -> Tensor:
        x = ranked(out.logits)
        weighed = times * x
        none = torch.zeros_like(yy)
        return torch.cat((none, none, (weighed * x).sum(dim=1), yy, (weighed * y).sum(dim=1))).T

    return sums


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_right, lambda sums, samples: sums[..., 0] / samples),
    "f1": Metric(_confusion, _f1, (SINGLE_LABEL,)),
    "macro-f1": Metric(_confusion, _macro_f1, (SINGLE_LABEL,)),
    "matthews": Metric(_confusion, _matthews, (SINGLE_LABEL,)),
    "pearson": Metric(_moments, _pearson, (REGRESSION,)),
    "spearman": Metric(_rank_moments, _pearson, (REGRESSION,), _rank_sums),
}


def metric_for(trace: Trace, name: str | None = None) -> tuple[str, Metric]:
    """The metric of that name, or the usual one: Pearson's correlation for regression, else accuracy.

    Raises:
        UnknownName: no such metric.
        NotApplicable: it has no meaning for this kind of problem.
    """
    name = name or ("pearson" if trace.problem_type == REGRESSION else "accuracy")
    if name not in METRICS:
        raise UnknownName(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    metric = METRICS[name]
    fits = metric.problem_types or (SINGLE_LABEL, MULTI_LABEL)
    if trace.problem_type not in fits or (name == "f1" and trace.logits.shape[-1] != 2):
        where = f"{trace.problem_type} with {trace.logits.shape[-1]} outputs"
        raise NotApplicable(f"{name} has no meaning for {where}")
    return name, metric


def score(metric: Metric, out: ExitOutput, labels: Tensor) -> Tensor:
    """Scores (...) of logits (..., N, C)."""
    return metric.value(metric.statistics(out, labels).sum(dim=-2), len(labels))


def layerwise(trace: Trace, metric: str | None = None) -> list[float]:
    """The score of every exit, if everybody left there.

    Raises:
        InvalidInput: a trace without labels.
    """
    _, found = metric_for(trace, metric)
    return score(found, ExitOutput(trace.logits, problem_type=trace.problem_type), labels_of(trace)).tolist()


def calibration_error(trace: Trace, bins: int = 15) -> Tensor:
    """Expected calibration error of every exit, (L,) in 0..1: how far confidence is from being right, on average.

    Answers are sorted into bins of equal width by their probability; in each the mean probability is held against the
    share of right ones, and the distances are weighed by how many are there. Of several labels each is an answer.

    Args:
        trace: with labels.
        bins: how many.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: a regression has no probabilities.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 5.
    """
    sure, right = confidences(trace)
    place = (sure * bins).ceil().long().clamp(1, bins) - 1  # bins are open below
    gaps = torch.zeros(trace.depth, bins, dtype=torch.float64).scatter_add_(1, place, sure - right)
    return gaps.abs().sum(dim=-1) / sure.shape[-1]


def confidences(trace: Trace) -> tuple[Tensor, Tensor]:
    """How sure each exit is of each choice, in 0..1, and whether the choice is right; (L, N G) float64 each.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: a regression has no probabilities.
    """
    log_p = class_log_probs(ExitOutput(trace.logits, problem_type=trace.problem_type))  # (L, N, G, K)
    sure, given = (part.flatten(1) for part in log_p.max(dim=-1))
    return sure.exp().double(), (given == labels_of(trace).long().view(1, -1)).double()
