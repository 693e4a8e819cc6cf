"""The lexical exit at an operating point, in words: what leaves before layer 1, or why nothing does."""

from __future__ import annotations

import math
from dataclasses import replace

from offramp.evaluation.measure import measure_point, replay_point
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.report.html.exits import right_rows
from offramp.report.html.verdict import percent
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace


def lexical_fact(trace: Trace, point: OperatingPoint, metric: str | None = None) -> str:
    """Return how many rows a point answers before layer 1 and what closing that exit costs, or why there are none.

    Args:
        trace: with labels.
        point: measured on it.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.

    Returns:
        "" where the trace has no exit before the first layer.
    """
    if trace.layer_numbers[0] != 0:
        return ""
    answered, answers = replay_point(trace, point)
    leaving = answers.exit_layers == 0  # (N,)
    if not leaving.any():
        return f"No row. {_reason(trace, point)} {_alone(trace, metric)}"
    right = ""
    if trace.problem_type != REGRESSION:
        early, full = (
            right_rows(answered, logits)[leaving].double().mean().item()
            for logits in (answers.logits, answered.logits[-1])
        )
        right = f"; {percent(early)} of these answers are right, of the full model's {percent(full)}"
    share = percent(leaving.double().mean().item())
    closed = measure_point(trace, replace(point, thresholds=(math.inf, *point.thresholds[1:])), metric)
    return (
        f"{share} of the rows are answered before layer 1, by the lexical exit{right}. "
        f"With that exit closed, and the other thresholds as they are, {closed.metric} is {closed.score:.4f} and a row "
        f"leaves after layer {closed.mean_exit:.2f} of {closed.depth} on average."
    )


def _reason(trace: Trace, point: OperatingPoint) -> str:
    """Return why a point lets no row leave before layer 1."""
    if 0 not in point.layers_read(trace.layer_numbers):
        return "The point does not read the lexical exit: it was not there when the point was chosen, or did not pay."
    if point.thresholds[0] == math.inf:
        return "The threshold of the lexical exit is never: on the rows that chose it, no score was high enough."
    return "No score of the lexical exit reaches its threshold on these rows."


def _alone(trace: Trace, metric: str | None) -> str:
    """Return the score of the lexical exit beside those of the next exit and of the full model."""
    scores = [f"{score:.4f}" for score in layerwise(trace, metric)]
    name = metric_for(trace, metric)[0]
    return f"Alone the lexical exit has {name} {scores[0]}, the next exit {scores[1]}, the full model {scores[-1]}."
