"""Logits of rows that have left -> the answers that users get. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from offramp.data.padding import Array
from offramp.inference.flight import LeftRows
from offramp.types.log_odds import log_odds
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig

Answer = dict[str, Any]

FAILED = "the model's logits are not finite"
"""The error of a row whose answer would mean nothing."""


def to_answers(
    left: LeftRows, config: MultiExitConfig | GraphConfig, point: OperatingPoint | None, top_k: int | None
) -> list[Answer]:
    """Return each row's answer as `offramp.Predictor` does.

    Args:
        left: the rows.
        config: of the model.
        point: at which they left; None = full depth.
        top_k: labels of "scores"; None = all, 0 = no "scores".
    """
    kind, names = config.problem_type, config.id2label
    logits = left.logits.astype(np.float32, copy=False)
    if kind == REGRESSION:
        answers = [{"value": values[0] if len(values) == 1 else values} for values in logits.tolist()]
    elif kind == MULTI_LABEL:
        chosen = chosen_labels(logits, point)
        answers = [{"labels": [names[index] for index, on in enumerate(row) if on]} for row in chosen.tolist()]
    else:
        answers = _best(logits, names)
    for answer, layer in zip(answers, left.exit_layers.tolist(), strict=True):
        answer["exit_layer"] = layer
    if top_k != 0:
        for answer, scores in zip(answers, _top_scores(logits, kind, names, top_k), strict=True):
            answer["scores"] = scores
    for number in left.failed.nonzero()[0].tolist():
        layer = answers[number]["exit_layer"]
        answers[number] = {"error": FAILED, "exit_layer": layer}
    return answers


def chosen_labels(logits: Array, point: OperatingPoint | None) -> Array:
    """Return which labels are part of the answers, (B, C) bool."""
    thresholds = None if point is None else point.label_thresholds
    odds = [0.0] if thresholds is None else log_odds(thresholds, logits.shape[1])
    above: Array = logits > np.array(odds, np.float32)
    return above


def probabilities(logits: Array, problem_type: str) -> Array:
    """Return each label's probability, (B, C) float32; of rows that are not finite they mean nothing.

    Args:
        logits: (B, C).
        problem_type: for several labels each has a probability of its own; a regression has none.
    """
    if problem_type == MULTI_LABEL:
        return _softmax(np.stack((logits, np.zeros_like(logits)), axis=-1))[..., 0]
    return _softmax(logits)


def _best(logits: Array, names: Mapping[int, str]) -> list[Answer]:
    values = _softmax(logits)
    labels = values.argmax(axis=-1)
    scores = np.take_along_axis(values, labels[:, None], axis=-1)[:, 0].tolist()
    return [{"label": names[label], "score": score} for label, score in zip(labels.tolist(), scores, strict=True)]


def _top_scores(
    logits: Array, problem_type: str, names: Mapping[int, str], count: int | None
) -> Iterator[dict[str, float]]:
    """Yield each row's most probable labels with their probabilities, the largest first; logits are (B, C)."""
    values = probabilities(logits, problem_type)
    order = np.argsort(-values, axis=-1, kind="stable")[:, :count]
    ranked = np.take_along_axis(values, order, axis=-1)
    for labels, scores in zip(order.tolist(), ranked.tolist(), strict=True):
        yield {names[label]: score for label, score in zip(labels, scores, strict=True)}


def _softmax(logits: Array) -> Array:
    """Return probabilities over the last axis; of rows that are not finite they mean nothing."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares
