"""Label thresholds: for each of several labels the probability above which it is part of an answer.

Yang, "A Study of Thresholding Strategies for Text Categorization", SIGIR 2001 (SCut): each label's threshold is the one
with the best F1 on rows that were not trained on. Lewis et al., "RCV1: A New Benchmark Collection for Text
Categorization Research", JMLR 2004, and Lipton, Elkan and Naryanaswamy, "Optimal Thresholding of Classifiers to
Maximize F1 Measure", ECML 2014, arXiv:1402.1892: a label with few positive rows overfits.

They are chosen on the full model's answers, before the exit threshold and without it, and serve every exit. So a target
compares two answers with the same label thresholds. On the rows that choose them the full model's score is its best,
and the early exits' is not, so that the measured drop is rather too large than too small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from offramp.errors import NotApplicable
from offramp.policies.decision import refuse_broken
from offramp.types.operating_point import checked_label_thresholds
from offramp.types.problem_types import MULTI_LABEL
from offramp.types.trace import Trace, labels_of, row_hashes

FEWEST_POSITIVES = 20
"""Positive rows below which a label keeps 0.5 (`benchmarks/label_thresholds.py`)."""
GAP = 1e-5
"""Of log-odds, between a threshold and a row's: nearer, float noise decides."""


@final
@dataclass(frozen=True)
class LabelThresholds:
    """A threshold for each label.

    Attributes:
        values: probabilities above 0, below 1.
        fitted_on: hashes of the rows that chose them (`offramp.types.trace.row_hashes`); () = set by hand.
        few: number of labels that keep 0.5 because fewer than FEWEST_POSITIVES rows have them.

    Raises:
        InvalidInput: a value out of range.
    """

    values: tuple[float, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)
    few: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", checked_label_thresholds(self.values))


def choose_label_thresholds(trace: Trace) -> LabelThresholds:
    """Return for each label the threshold with the best F1 of the full model's answers.

    It lies midway between two neighbouring probabilities. 0.5 is kept where nothing is better, and where fewer than
    FEWEST_POSITIVES rows have the label; of equally good thresholds the nearest to 0.5 is taken.

    Args:
        trace: with labels, of rows that are neither trained on nor reported on.

    Raises:
        NotApplicable: a problem that has not several labels.
        InvalidInput: no labels; rows whose logits are not finite.
    """
    if trace.problem_type != MULTI_LABEL:
        raise NotApplicable("label thresholds are for several labels, of which an answer may have none or more")
    labels, logits = labels_of(trace).bool(), trace.logits[-1].double()  # (N, C) each
    refuse_broken((~logits.isfinite()).any(dim=-1), "logits that are not finite")
    columns = [(odds, positive) for odds, positive in zip(logits.T, labels.T, strict=True)]
    few = [int(positive.sum()) < FEWEST_POSITIVES for _, positive in columns]
    values = tuple(0.5 if rare else best_threshold(*column) for rare, column in zip(few, columns, strict=True))
    return LabelThresholds(values, tuple(sorted(set(row_hashes(trace)))), sum(few))


def best_threshold(log_odds: Tensor, positive: Tensor) -> float:
    """Return the threshold with the best F1 of one label: its log-odds (N,), the rows that have it (N,) bool."""
    ordered, order = log_odds.sort(descending=True)
    hits = torch.cat((torch.zeros(1), positive[order].cumsum(dim=0)))  # of 0..N rows taken
    f1 = 2 * hits.double() / (torch.arange(len(hits)) + positive.sum())
    probabilities = ordered.sigmoid()
    middle = (probabilities[:-1] + probabilities[1:]) / 2  # (N-1,) between row k and row k + 1
    distance = torch.minimum(ordered[:-1] - middle.logit(), middle.logit() - ordered[1:])
    candidates = torch.cat((torch.tensor([0.5], dtype=torch.float64), middle[distance > GAP]))
    scores = torch.cat((f1[(log_odds > 0).sum()].view(1), f1[1:-1][distance > GAP]))
    best = candidates[scores >= scores.max() - 1e-12]
    return float(best[(best - 0.5).abs().argmin()])
