"""Scores, leaving rows, confidence and calibration of every exit."""

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
        score: where all rows leave here.
        leaving: number of rows that leave here at the point.
        right: share of the leaving rows with the right answer; None where no row leaves, or for regression.
        confidence: largest probability over all rows: 10th percentile, mean, 90th; None for regression.
        accuracy: share of all predictions that are right here; None for regression.
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
    """Return a row for each exit of a trace."""
    scores = layerwise(trace, metric)
    leaving = [answers.exit_layers == layer for layer in trace.layer_numbers]
    if trace.problem_type == REGRESSION:
        return tuple(
            ExitRow(layer, scores[number], int(leaving[number].sum()), None, None, None, None)
            for number, layer in enumerate(trace.layer_numbers)
        )
    probabilities, correct = confidences(trace)  # (L, N G), (L, N G)
    errors = calibration_error(trace).tolist()
    outer = torch.tensor([0.1, 0.9], dtype=probabilities.dtype)
    bounds = probabilities.quantile(outer, dim=1).T.tolist()  # (L, 2)
    right = right_rows(trace, answers.logits)  # (N,)
    return tuple(
        ExitRow(
            layer,
            scores[number],
            int(rows.sum()),
            right[rows].double().mean().item() if rows.any() else None,
            (bounds[number][0], probabilities[number].mean().item(), bounds[number][1]),
            correct[number].mean().item(),
            errors[number],
        )
        for number, (layer, rows) in enumerate(zip(trace.layer_numbers, leaving, strict=True))
    )


def right_rows(trace: Trace, logits: Tensor) -> Tensor:
    """Return (N,) bool, True where logits (N, C) give the right answer; all labels of a row must be right."""
    predicted = predictions(ExitOutput(logits, problem_type=trace.problem_type))  # (N, G)
    return (predicted == labels_of(trace).long().view(len(trace), -1)).all(dim=-1)
