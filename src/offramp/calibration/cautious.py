"""A threshold that keeps a score with a standard error to spare, for rows to come.

The loosest threshold that keeps a score on the rows that choose it profits from their noise: other rows lose more than
was asked in up to half of the draws, with few rows by far. Here the score less its standard error must be kept. Where
100 to 3,000 rows choose, the mean loss on others then is below what was asked, and at most a quarter of the draws lose
more (`benchmarks/lexical_rows.py`). It is no certificate, and binds the point to no engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.calibration.outputs import PolicyOutputs, loosest
from offramp.errors import CannotReach
from offramp.evaluation.metrics import METRICS, Metric, metric_for
from offramp.evaluation.sweep import score_curve
from offramp.policies.decision import continues
from offramp.types.operating_point import OperatingPoint, rows_text
from offramp.types.outputs import ExitOutput
from offramp.types.trace import labels_of

MOST_TESTED = 200
"""Thresholds whose standard error is computed, evenly spread over those that keep the score."""


def cautious_point(outputs: PolicyOutputs, max_drop: float, metric: str | None = None) -> OperatingPoint:
    """Choose the loosest threshold such that it and all stricter ones keep a score with a standard error to spare.

    Args:
        outputs: of a policy that has run over a trace with labels.
        max_drop: keep at least (1 - max_drop) of the full model's score, 0..1.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the problem's default.

    Raises:
        CannotReach: not even full depth keeps the score: the policy's answers there are not the full model's.
        InvalidInput: no labels.
        NotApplicable: the metric has no meaning for this kind of problem.
    """
    trace = outputs.answers
    rule, labels = METRICS[metric_for(trace, metric)[0]], labels_of(trace)
    # 1) the thresholds that keep the score, and some of them
    curve = score_curve(trace, outputs.scores, outputs.logits, metric)
    statistics = rule.statistics(ExitOutput(outputs.logits, problem_type=trace.problem_type), labels)  # (L, N, S)
    full = rule.statistics(trace.exit(trace.depth - 1), labels)  # (N, S)
    least = (1 - max_drop) * rule.value(full.sum(dim=0), len(trace))
    keeping = int((curve.scores >= least - 1e-12).long().cumprod(dim=0).sum())
    if not keeping:
        raise CannotReach("not even full depth holds the target")
    tested = torch.linspace(0, keeping - 1, min(keeping, MOST_TESTED)).round().long()
    # 2) the standard error at each
    reached, rows = outputs.scores[:-1].cummax(dim=0).values, torch.arange(len(trace))
    share_of_full = (1 - max_drop) * _contributions(rule, full)  # (N,)
    errors = []
    for threshold in curve.thresholds[tested]:
        exits = continues(reached, threshold).sum(dim=0)  # (N,)
        errors.append(_spread(_contributions(rule, statistics[exits, rows]) - share_of_full))
    holds = curve.scores[tested] - torch.stack(errors) >= least - 1e-12
    threshold = loosest(curve.thresholds[tested], holds)
    return outputs.point(curve.thresholds[0].item() if threshold is None else threshold, {"max_drop": max_drop}, metric)


def to_spare_text(max_drop: float, rows: int) -> str:
    """Say how a default point was chosen."""
    return (
        f"default: at most {100 * max_drop:.4g} % of the score is lost on {rows_text(rows)}, with a standard error to "
        f"spare for others; `offramp calibrate --max-drop {max_drop:g}` leaves nothing to spare"
    )


def _contributions(rule: Metric, statistics: Tensor) -> Tensor:
    """Return what each row adds to a score to first order (the delta method), (N,), from its statistics (N, S)."""
    sums = statistics.sum(dim=0).requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(rule.value(sums, len(statistics)), sums)
    return statistics @ slopes.nan_to_num(0.0, 0.0, 0.0)


def _spread(contributions: Tensor) -> Tensor:
    """Return the standard error of a sum of contributions (N,) of independent rows."""
    return (contributions - contributions.mean()).square().sum().sqrt()
