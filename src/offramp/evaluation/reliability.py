"""Reliability of exits: how often answers of one confidence are right, in bins, and the error of an exit by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offramp.evaluation.intervals import share_interval
from offramp.evaluation.metrics import BINS, bin_numbers, confidences
from offramp.types.operating_point import OperatingPoint
from offramp.types.trace import Trace


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence.

    Attributes:
        answers: their number, at least 1.
        confidence: their mean probability, in 0..1.
        right: the share of them that is right, in 0..1.
        interval: 95% interval of that share (Clopper and Pearson), as of independent answers.
    """

    answers: int
    confidence: float
    right: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram of one exit.

    Attributes:
        layer: its layer number.
        bins: of equal width, by rising confidence, without empty ones.
    """

    layer: int
    bins: tuple[Bin, ...]

    @property
    def error(self) -> float:
        """Return the expected calibration error, as `offramp.evaluation.metrics.calibration_error` does."""
        return self._mean([abs(one.confidence - one.right) for one in self.bins])

    @property
    def error_by_chance(self) -> float:
        """Return the error to expect of an exit whose confidence is exact, with as many answers in the same bins."""
        return self._mean([mean_deviation(one.answers, one.confidence) for one in self.bins])

    def _mean(self, values: list[float]) -> float:
        """Return the mean over the answers of a value of each bin."""
        answers = [one.answers for one in self.bins]
        return math.fsum(value * count for value, count in zip(values, answers, strict=True)) / sum(answers)


def reliability(trace: Trace, bins: int = BINS) -> tuple[Reliability, ...]:
    """Return the reliability diagram of every exit.

    An answer's confidence is its probability. Of several labels each is an answer, yes or no; those of one row depend
    on each other, so that the intervals are too narrow.

    Args:
        trace: with labels.
        bins: number of bins, of equal width.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: a regression has no probabilities.

    Source: DeGroot and Fienberg, "The Comparison and Evaluation of Forecasters", 1983; Guo et al., ICML 2017.
    """
    confidence, right = confidences(trace)  # (L, N G) each
    index = bin_numbers(confidence, bins)
    totals = [
        torch.zeros(trace.depth, bins, dtype=torch.float64).scatter_add_(1, index, values)
        for values in (torch.ones_like(confidence), confidence, right)
    ]
    return tuple(
        Reliability(layer, _bins(*(total[exit] for total in totals))) for exit, layer in enumerate(trace.layer_numbers)
    )


def _bins(answers: Tensor, confidence: Tensor, right: Tensor) -> tuple[Bin, ...]:
    """Return the bins of an exit from sums over their answers, (bins,) each."""
    sums = torch.stack((answers, confidence, right), dim=-1)[answers > 0].tolist()
    return tuple(
        Bin(int(count), probability / count, hits / count, share_interval(round(hits), int(count)))
        for count, probability, hits in sums
    )


def mean_deviation(count: int, share: float) -> float:
    """Return the mean distance of a binomial share from its expectation: E|X / count - share|, X ~ B(count, share).

    Source: De Moivre's formula; Diaconis and Zabell, "Closed Form Summation for Classical Distributions", 1991.
    """
    if not 0 < share < 1:
        return 0.0
    hits = math.floor(count * share) + 1
    if hits > count:  # by rounding of a share near 1
        return 0.0
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    log_chance = ways + hits * math.log(share) + (count - hits + 1) * math.log1p(-share)
    return 2 * hits * math.exp(log_chance) / count


def at_temperatures(trace: Trace, point: OperatingPoint) -> Trace | None:
    """Return the exits that a point reads, their logits divided by its policy's temperatures; None where it has none.

    Lines, which scale the scores of exits for a threshold at each, change no probability.
    """
    temperatures = point.policy.get("temperatures")
    if not temperatures:
        return None
    read = trace.select(point.layers_read(trace.layer_numbers))
    return replace(read, logits=read.logits / read.logits.new_tensor(temperatures).view(-1, 1, 1))
