"""Class weights: rare classes count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import has_length

from offramp.errors import InvalidInput
from offramp.model.config import MultiExitConfig
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

BALANCED = "balanced"
SHOWN = 10  # classes named in a log line


def resolve_class_weights(weights: str | Sequence[float], rows: Any, config: MultiExitConfig) -> Tensor:
    """Return the weights of the classes, (C,) float32.

    Args:
        weights: C numbers above 0, or "balanced", which counts the labels of the rows.
        rows: the training rows, mappings with `labels`, as a Trainer takes them.
        config: names the C classes and the kind of problem.

    Raises:
        InvalidInput: a regression, numbers that do not fit the classes, rows that cannot be counted, or a class that
            has no row.
    """
    names, problem_type = config.id2label, config.problem_type
    if problem_type == REGRESSION:
        raise InvalidInput("class weights are for classes, and a regression has none")
    if isinstance(weights, str):
        if weights != BALANCED:
            raise InvalidInput(f"class_weights must be {BALANCED!r} or a number for each class, got {weights!r}")
        return balanced(_labels_of(rows), names, problem_type)
    try:
        values = torch.tensor([float(weight) for weight in ([] if isinstance(weights, Mapping) else weights)])
    except (TypeError, ValueError):
        raise InvalidInput(f"class_weights must be {BALANCED!r} or a number for each class, got {weights!r}") from None
    if len(values) != len(names) or not (values.isfinite() & (values > 0)).all():
        raise InvalidInput(f"class_weights must be {len(names)} numbers above 0, one a class, got {weights}")
    return values


def balanced(labels: Sequence[Any], names: Mapping[int, str], problem_type: str) -> Tensor:
    """Return N / (C count_k) for each class k; for several labels negatives / positives of each label.

    Args:
        labels: N class numbers, or N lists of C zeros and ones.
        names: the C classes.
        problem_type: single or several labels.

    Raises:
        InvalidInput: a class that no row has, or a label that all rows have.
    """
    if problem_type == MULTI_LABEL:
        hot = torch.as_tensor(labels, dtype=torch.float32)  # (N, C)
        positives = hot.sum(dim=0)
        _check_counts(positives, names, "no row has the label")
        _check_counts(len(hot) - positives, names, "every row has the label")
        return (len(hot) - positives) / positives
    numbers = torch.as_tensor(labels, dtype=torch.long).flatten()
    numbers = numbers[numbers != -100]  # torch's number for "no label"
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(names):
        raise InvalidInput(f"a label is not one of the {len(names)} classes, 0 to {len(names) - 1}")
    counts = numbers.bincount(minlength=len(names)).float()
    _check_counts(counts, names, "no row is of the class")
    return len(numbers) / (len(names) * counts)


def batch_weight(labels: Tensor, weights: Tensor | None, problem_type: str | None) -> Tensor:
    """Return what the mean loss of a batch is divided by: its rows, or for a single label their classes' weights.

    Args:
        labels: (B,) or (B, C).
        weights: (C,) or None.
        problem_type: single or several labels, or a regression.
    """
    if weights is None or problem_type == MULTI_LABEL:
        return torch.tensor(float(len(labels)), device=labels.device)
    numbers = labels[labels != -100].long().clamp(0, len(weights) - 1)  # others are refused by the loss
    return weights.to(labels.device)[numbers].sum()


def weights_text(weights: Tensor, names: Mapping[int, str]) -> str:
    """Return the weights by class in one line; of many classes the smallest and the largest."""
    order = range(len(weights)) if len(weights) <= SHOWN else [int(weights.argmin()), int(weights.argmax())]
    text = ", ".join(f"{names[number]} {weights[number]:.4g}" for number in order)
    return text if len(weights) <= SHOWN else f"{len(weights)} classes, from {text.replace(', ', ' to ')}"


def _check_counts(counts: Tensor, names: Mapping[int, str], problem: str) -> None:
    empty = [repr(names[number]) for number in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        raise InvalidInput(f"balanced class weights: {problem} {', '.join(empty[:SHOWN])}{more}")


def _labels_of(rows: Any) -> list[Any]:
    """Return the label of every row, under "labels" or "label"."""
    if rows is None or not has_length(rows):
        raise InvalidInput("balanced class weights count the labels of a train_dataset of known length; give numbers")
    labels = [row.get("labels", row.get("label")) for row in rows]
    if any(label is None for label in labels):
        raise InvalidInput("balanced class weights need a label in every training row, under 'labels'")
    return [label.tolist() if isinstance(label, Tensor) else label for label in labels]
