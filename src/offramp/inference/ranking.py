"""Relevance of pairs (query, text), for models with one output or two classes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from offramp.data.padding import Array
from offramp.errors import NotApplicable
from offramp.inference.answers import FAILED, Answer, probabilities
from offramp.inference.flight import LeftRows
from offramp.types.problem_types import MULTI_LABEL, SINGLE_LABEL

if TYPE_CHECKING:
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig


def check_outputs(config: MultiExitConfig | GraphConfig) -> None:
    """Refuse to rank with a model that has neither one output nor two classes.

    Raises:
        NotApplicable: it has more outputs, or two labels that do not exclude each other.
    """
    if config.num_labels == 1 or (config.num_labels == 2 and config.problem_type == SINGLE_LABEL):
        return
    outputs = f"{config.num_labels} outputs ({config.problem_type})"
    raise NotApplicable(f"ranking takes a model with one output or two classes; this one has {outputs}")


def relevances(logits: Array, raw: bool = False) -> Array:
    """Return how relevant the second text of each pair is to the first, (B,) float32.

    Of two classes that is the second one's probability; of one output its sigmoid.

    Args:
        logits: (B, 1) or (B, 2), of a model that passes `check_outputs`.
        raw: return the output, or the difference of the two logits, as it is.
    """
    values: Array = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
    return values if raw else probabilities(values[:, None], MULTI_LABEL)[:, 0]


def to_relevances(left: LeftRows) -> list[Answer]:
    """Return a dict for each row: {"score", "raw", "exit_layer"}, or {"error", "exit_layer"}."""
    logits = left.logits.astype(np.float32, copy=False)
    scores, raw = relevances(logits).tolist(), relevances(logits, raw=True).tolist()
    answers: list[Answer] = []
    for score, value, layer, failed in zip(scores, raw, left.exit_layers.tolist(), left.failed.tolist(), strict=True):
        facts = {"error": FAILED} if failed else {"score": score, "raw": value}
        answers.append({**facts, "exit_layer": layer})
    return answers


def ranked(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers of `to_relevances` with their "index", the most relevant first, those with an error last.

    They are sorted by "raw", which does not run together near 0 and 1 as scores do; equal ones stay in their order.
    """
    order = sorted(range(len(answers)), key=lambda index: -answers[index].get("raw", -np.inf))
    return [
        {"index": index} | {name: value for name, value in answers[index].items() if name != "raw"} for index in order
    ]
