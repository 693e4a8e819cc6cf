"""Exit by exit: scores, who leaves there, how sure it is and whether it may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.evaluation.metrics import calibration_error, confidences, layerwise
from offramp.types.outputs import Answers, ExitOutput, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of


@dataclass(frozen=True)
class ExitRow:
    """One exit.

    Attributes:
        layer: its layer number.
        score: if everybody left here.
        leaving: how many rows leave here at the point.
        right: share of those that are answered right; None where nobody leaves, or for regression.
        confidence: largest probability over all rows: 10th percentile, mean, 90th; None for regression.
        accuracy: share of all choices that are right here; None for regression.
        calibration_error: in 0..1; None for regression.
    """

    layer: int
    score: float
    leaving: int
    right: float | None
    confidence: tuple[float, float, float] | None
    accuracy: float | None
    calibration_error: float | None


def exit_rows(trace: Trace, answers: Answers, metric: str | None = None) -> tuple[ExitRow, ...]:
    """Every exit of a trace, and who leaves there."""
    scores = layerwise(trace, metric)
    leaving = [answers.exit_layers == layer for layer in trace.layer_numbers]
    if trace.problem_type == REGRESSION:
        return tuple(
            ExitRow(layer, scores[number], int(leaving[number].sum()), None, None, None, None)
            for number, layer in enumerate(trace.layer_numbers)
        )
    sure, right = confidences(trace)  # (L, N G) each
    errors = calibration_error(trace).tolist()
    spread = sure.quantile(torch.tensor([0.1, 0.9], dtype=sure.dtype), dim=1).T.tolist()  # (L, 2)
    ours = right_rows(trace, answers.logits)
    return tuple(
        ExitRow(
            layer,
            scores[number],
            int(here.sum()),
            ours[here].double().mean().item() if here.any() else None,
            (spread[number][0], sure[number].mean().item(), spread[number][1]),
            right[number].mean().item(),
            errors[number],
        )
        for number, (layer, here) in enumerate(zip(trace.layer_numbers, leaving, strict=True))
    )


def right_rows(trace: Trace, logits: Tensor) -> Tensor:
    """(N,) bool: which rows are answered right by logits (N, C); all labels of a row must be."""
    given = predictions(ExitOutput(logits, problem_type=trace.problem_type))  # (N, G)
    return (given == labels_of(trace).long().view(len(trace), -1)).all(dim=-1)
