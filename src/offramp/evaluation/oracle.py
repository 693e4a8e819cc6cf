"""The oracle: the bound on every policy."""

from __future__ import annotations

import torch

from offramp.errors import NotApplicable
from offramp.evaluation.metrics import metric_for
from offramp.evaluation.sweep import Curve, per_exit_constant
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of


def oracle(trace: Trace, metric: str | None = None) -> Curve:
    """Return the curve of exits chosen with knowledge of the labels.

    With the first k exits to choose from, a sample leaves at the first of them that is right; a sample that none of
    them answers right leaves at the first exit, since to continue would not help. No policy has a better accuracy at
    the same mean exit. Samples that are right nowhere cost one exit here; Kaya et al. ("Shallow-Deep Networks", ICML
    2019) run them to the last.

    Args:
        trace: with labels.
        metric: the score of these choices; they are the best for accuracy.

    Returns:
        (L + 1,) points; `thresholds` are the last layers to choose from. The first point, inf, has the score of the
        second: more layers gain nothing.

    Raises:
        InvalidInput: no labels.
        NotApplicable: a regression has neither right nor wrong.
    """
    _, rule = metric_for(trace, metric)
    if trace.problem_type == REGRESSION:
        raise NotApplicable("an oracle needs right and wrong answers, and a regression has none")
    out, labels = ExitOutput(trace.logits, problem_type=trace.problem_type), labels_of(trace)
    right = (predictions(out) == labels.long().view(len(trace), -1)).all(dim=-1)  # (L, N)
    first, ever = right.to(torch.uint8).argmax(dim=0), right.any(dim=0)  # (N,)
    statistics = torch.cat(
        (per_exit_constant(trace, trace.layer_numbers), rule.statistics(out, labels)), dim=-1
    )  # (L, N, 1 + S)
    number, rows = torch.arange(trace.depth).flip(0).unsqueeze(-1), torch.arange(len(trace))
    leave = torch.where(ever & (first <= number), first, 0)  # (L, N)
    sums = statistics[leave, rows].sum(dim=1)  # (L, 1 + S)
    mean_exits, scores = sums[:, 0] / len(trace), rule.value(sums[:, 1:], len(trace))
    ends = torch.tensor([[float("inf"), trace.layer_numbers[-1]]], dtype=torch.float64).unbind(dim=-1)
    return Curve(
        torch.cat((ends[0], torch.tensor(trace.layer_numbers[::-1], dtype=torch.float64))),
        torch.cat((ends[1], mean_exits)),
        torch.cat((scores[:1], scores)),
    )
