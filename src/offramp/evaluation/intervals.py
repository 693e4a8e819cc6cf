"""Bounds from few rows, where resampling reveals nothing: rows that are all right, all wrong, or never differ.

A bootstrap of two right answers gives the interval [1, 1], and two binomials tell [0.158, 1]. The bounds here are those
of Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika
1934. With no failure among n rows the upper bound is 1 - tail^(1/n), about 3/n for a tail of 5% (the "rule of three",
Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 1983).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.evaluation.metrics import Metric
from offramp.types.operating_point import Measured
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL
from offramp.types.trace import Trace, labels_of

FEW = 10
"""With fewer rows of a kind than this (right, wrong, changed), a bootstrap's interval is widened by an exact bound."""
RAREST = 8
"""Classes among which `unseen_rows` takes the confusions: with few rows they cost most."""
TAIL = 0.05
"""Of one-sided bounds, which hold with 95% confidence."""


def upper_share(count: int, rows: int, tail: float = TAIL) -> float:
    """Return the largest share p for which `count` or fewer of `rows` have a probability of `tail` or more.

    The upper end of Clopper and Pearson's interval, by bisection: P(Binomial(rows, p) <= count) = tail.
    """
    if count >= rows:
        return 1.0
    if count == 0:
        return -math.expm1(math.log(tail) / rows)
    number = torch.arange(count + 1, dtype=torch.float64)
    total = torch.tensor(rows, dtype=torch.float64)
    ways = (total + 1).lgamma() - (number + 1).lgamma() - (total - number + 1).lgamma()
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        chance = (ways + number * math.log(share) + (total - number) * math.log1p(-share)).exp().sum().item()
        low, high = (share, high) if chance > tail else (low, share)
    return high


def share_interval(count: int, rows: int) -> tuple[float, float]:
    """Return Clopper and Pearson's 95% interval of a share, of which `count` of `rows` were counted."""
    return 1 - upper_share(rows - count, rows, TAIL / 2), upper_share(count, rows, TAIL / 2)


def agreement_interval(measured: Measured) -> tuple[float, float] | None:
    """Return `share_interval` of the rows that get the full model's answer; None for a regression."""
    if measured.agreement is None:
        return None
    return share_interval(round(measured.agreement * measured.rows), measured.rows)


def rows_needed(level: float) -> int | None:
    """Return the fewest rows that show, by no failure among them, that the share of failures is below a level.

    The bound has 95% confidence; None where no number of rows shows it, for a level of 0.
    """
    if level >= 1:
        return 1
    return math.ceil(math.log(TAIL) / math.log1p(-level) - 1e-9) if level > 0 else None


@final
@dataclass(frozen=True)
class UnseenRows:
    """Rows that a sample does not contain but may only lack by chance, as statistics of a metric.

    Added to a sample's sums they give the scores that the sample cannot exclude, for any metric that sums statistics of
    classes; for accuracy exactly Clopper and Pearson's bounds.

    Attributes:
        rule: the metric.
        right: (P, S) rows of P kinds, answered right.
        wrong: (P, S) the same rows, answered wrong.
    """

    rule: Metric
    right: Tensor
    wrong: Tensor

    def scores(self, sums: Tensor, rows: int, added: Tensor, number: float) -> Tensor:
        """Return the scores (P,) of sums (S,) over `rows` rows and `number` rows of each kind in `added` (P, S)."""
        return self.rule.value(sums + number * added, rows + number)


def unseen_rows(trace: Trace, rule: Metric) -> UnseenRows:
    """Return the confusions of the RAREST classes of a trace, and the same rows without; of several labels one each."""
    labels, classes = labels_of(trace), trace.logits.shape[-1]
    if trace.problem_type == MULTI_LABEL:
        has = F.one_hot((labels > 0).sum(dim=0).argsort(stable=True)[:RAREST], classes)
        true, wrong = torch.cat((has, 0 * has)), torch.cat((0 * has, has))  # missed labels, false labels
        logits = (true - 0.5, wrong - 0.5)
    else:
        rarest = torch.bincount(labels.long(), minlength=classes).argsort(stable=True)[:RAREST]
        pairs = torch.cartesian_prod(rarest, rarest)
        true, wrong = pairs[pairs[:, 0] != pairs[:, 1]].unbind(dim=-1)
        logits = (F.one_hot(true, classes).float(), F.one_hot(wrong, classes).float())
    outputs = (ExitOutput(answer, problem_type=trace.problem_type) for answer in logits)
    return UnseenRows(rule, *(rule.statistics(out, true) for out in outputs))


def unseen_number(count: int, rows: int, tail: float) -> float:
    """Return the rows to add, all of one kind, until their share is the upper bound of `count` among `rows`."""
    share = upper_share(count, rows, tail)
    return (rows * share - count) / (1 - share)
