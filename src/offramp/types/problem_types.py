"""The three kinds of problem, in transformers' words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def infer_problem_type(logits: Tensor, labels: Tensor | None = None) -> str:
    """Return the kind of problem by transformers' rule: one output is regression, labels (N, C) are several labels."""
    if logits.shape[-1] == 1:
        return REGRESSION
    return MULTI_LABEL if labels is not None and labels.dim() == 2 else SINGLE_LABEL
