"""The output of an exit, the answers of an adaptive run, and the step from logits to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from offramp.errors import NotApplicable
from offramp.types.log_odds import log_odds
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, infer_problem_type


@dataclass(frozen=True)
class ExitOutput:
    """The output of one exit for a batch; in training and in a trace, of all exits, with L in front.

    Attributes:
        logits: (B, C), or (L, B, C).
        certainty: (B,), or (L, B), in 0..1: a learned gate's output; None where the model has no gate.
        layer: number of layers that ran before this exit, 0 = before the first one; None = one layer an exit.
        problem_type: one of PROBLEM_TYPES; None = regression where C is 1, else single label.
        last: no exit comes after this one, so all rows leave here at any score.
        task_loss: in training, maps logits (L, B, C) and labels to the loss L_i of every exit, (L,); None = the loss
            of the kind of problem.

    Example:
        >>> offramp.ExitOutput(torch.tensor([[2.0, -1.0, 0.0]]), layer=3).problem_type
        'single_label_classification'
    """

    logits: Tensor
    certainty: Tensor | None = None
    _: KW_ONLY
    layer: int | None = None
    problem_type: str | None = None
    last: bool = False
    task_loss: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.problem_type is None:
            object.__setattr__(self, "problem_type", infer_problem_type(self.logits))


@dataclass(frozen=True)
class Answers:
    """The answers of a run with early exit, in the order of the input.

    Attributes:
        logits: (N, C) float32, of the exit at which each sample left.
        exit_layers: (N,) int64 layer numbers, 1 = after the first layer, 0 = before it.
        failed: (N,) bool, True where the score was NaN or the logits were not finite: no answer, an error.

    Example:
        >>> answers = offramp.replay(trace, "entropy", 0.5)
        >>> answers.logits.shape, answers.exit_layers[:3]
        (torch.Size([100, 3]), tensor([...]))
    """

    logits: Tensor
    exit_layers: Tensor
    failed: Tensor


def class_log_probs(out: ExitOutput) -> Tensor:
    """Return the log-probabilities (..., G, K) in float32 of the G choices that an answer consists of.

    One choice among C classes for single-label problems, C choices between no and yes for several labels. A policy
    that reads these handles both.

    Raises:
        NotApplicable: a regression has no choices.
    """
    logits = out.logits.float()
    if out.problem_type == REGRESSION:
        raise NotApplicable(
            "this policy compares classes and a regression has none; for a regression use consistency, stability, "
            "certainty or fixed"
        )
    if out.problem_type == MULTI_LABEL:
        return torch.stack((torch.zeros_like(logits), logits), dim=-1).log_softmax(dim=-1)  # (..., C, 2)
    return logits.log_softmax(dim=-1).unsqueeze(-2)  # (..., 1, C)


def predictions(out: ExitOutput) -> Tensor:
    """Return the answer's class numbers: (..., 1) for a single label, (..., C) of 0 or 1 for several (1 above 0.5)."""
    return class_log_probs(out).argmax(dim=-1)


def at_label_thresholds(logits: Tensor, label_thresholds: Sequence[float] | None) -> Tensor:
    """Return logits (..., C), less the log-odds of label thresholds: above 0 where a label is part of the answer.

    So their answers at 0.5 (`predictions`) are the answers of `logits` at the label thresholds.

    Args:
        logits: (..., C) of a problem with several labels.
        label_thresholds: C probabilities above 0, below 1; None = 0.5 for all, which leaves the logits as they are.

    Raises:
        InvalidInput: another number of thresholds than C.
    """
    if label_thresholds is None:
        return logits
    return logits - torch.tensor(log_odds(label_thresholds, logits.shape[-1]), dtype=torch.float64).to(logits)
