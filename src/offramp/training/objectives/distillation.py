"""Distillation within the model: early exits learn from the last one, or from all of them together.

Self-distillation: Liu et al., "FastBERT: a Self-distilling BERT with Adaptive Inference Time", ACL 2020, section 3.2.
Ensemble distillation: Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective
Early Exiting" (MPEE), COLING 2022, section 3.2, eq. 11 to 14.

Differs from MPEE's code, which averages the divergence over the classes as well; here it is summed over them and
averaged over the batch. For regression, which neither paper treats, squared error replaces the divergence.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from offramp.errors import InvalidInput
from offramp.model.losses import exit_losses, gate_losses, task_losses
from offramp.training.objectives.base import FREEZING, Objective, Stage
from offramp.types.outputs import ExitOutput, class_log_probs
from offramp.types.problem_types import REGRESSION

ATTENTION = 64  # width of the teacher's attention; the paper gives none
DIRECTIONS = ("forward", "reverse")


def distances(students: ExitOutput, teacher: Tensor, temperature: float, direction: str = "forward") -> Tensor:
    """Return each student's distance from the teacher, (L,): T^2 KL, both softened by T, mean over the batch.

    Each of several labels is a choice between two; they are summed. For a regression it is the squared error.

    Args:
        students: logits (L, B, C).
        teacher: (B, C) logits.
        temperature: T > 0.
        direction: "forward" = KL(teacher, student), "reverse" = KL(student, teacher).
    """
    if students.problem_type == REGRESSION:
        return (students.logits.float() - teacher.float()).square().mean(dim=(1, 2))
    kind = students.problem_type
    student = class_log_probs(ExitOutput(students.logits.float() / temperature, problem_type=kind))  # (L, B, G, K)
    target = class_log_probs(ExitOutput(teacher.float() / temperature, problem_type=kind)).expand_as(student)
    first, second = (target, student) if direction == "forward" else (student, target)
    return (first.exp() * (first - second)).sum(dim=(2, 3)).mean(dim=1) * temperature**2


@final
@dataclass(frozen=True, kw_only=True)
class SelfDistillation(Objective):
    """First L_n, then, with backbone and last exit frozen, sum_{i<n} T^2 KL(p_n, p_i): needs no labels.

    Attributes:
        temperature: softens both distributions, > 0; 1 is the paper.
        freeze: the second stage alone, for a model that is fine-tuned already.
    """

    temperature: float = 1.0
    freeze: bool = False

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return `FREEZING`, or its second stage with `freeze`."""
        return FREEZING[1:] if self.freeze else FREEZING

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the last exit's loss in the first stage, the divergences of the early exits in the second."""
        if stage is FREEZING[0]:
            return exit_losses(exits, labels)[-1]
        students = ExitOutput(exits.logits[:-1], problem_type=exits.problem_type)
        divergences = distances(students, exits.logits[-1].detach(), self.temperature)
        return (divergences + gate_losses(exits, labels)[:-1]).sum()


@final
class LayerAttention(nn.Module):
    """MPEE's teacher: t = sum_l w_l M_l with w = softmax over layers of v . tanh(W M_l + b) (eq. 12)."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of every lazy module that its interface may change
            self.map = nn.LazyLinear(ATTENTION)  # as wide as its first logits
            self.context = nn.LazyLinear(1, bias=False)  # lazy so that it is drawn with the training run's seed

    def forward(self, logits: Tensor) -> Tensor:
        """Return the teacher's logits (B, C) from those of all exits (L, B, C)."""
        weights = self.context(self.map(logits).tanh()).softmax(dim=0)  # (L, B, 1)
        teacher_logits: Tensor = (weights * logits).sum(dim=0)
        return teacher_logits


@final
@dataclass(frozen=True, kw_only=True)
class EnsembleDistillation(Objective):
    """sum_l [(1 - g) L_l + g T^2 KL(t, M_l)] + g L(t), the teacher t being all exits, weighed by a small attention.

    The teacher sends no gradient to the exits, and the students send none to the teacher.

    Attributes:
        gamma: g in 0..1; None = the paper's eq. 14, L + KL with a teacher that no loss of its own trains.
        temperature: T > 0; the paper gives none, 3 is the code's.
        direction: "forward" is the code's KL(teacher, student), "reverse" the paper's.
    """

    gamma: float | None = 0.1
    temperature: float = 3.0
    direction: str = "forward"
    teacher: LayerAttention = field(default_factory=LayerAttention, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise InvalidInput(f"gamma must be from 0 to 1, or None, got {self.gamma}")
        if self.direction not in DIRECTIONS:
            raise InvalidInput(f"direction must be one of {', '.join(DIRECTIONS)}; got {self.direction!r}")

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the teacher."""
        return (self.teacher,)

    def build(self, exits: int, outputs: int) -> None:
        """Give the teacher's lazy layers their shapes; a teacher that has been built keeps its weights."""
        self.teacher(torch.zeros(exits, 1, outputs, device=self.teacher.context.weight.device))

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the losses of all exits and of the teacher, and the divergences between them."""
        teacher_logits = self.teacher(exits.logits.detach().float())  # (B, C)
        target = teacher_logits if self.gamma is None else teacher_logits.detach()
        divergences = distances(exits, target, self.temperature, self.direction)
        losses = task_losses(exits, labels)
        gates = gate_losses(exits, labels).sum()
        if self.gamma is None:
            return (losses + divergences).sum() + gates
        teacher = replace(exits, logits=teacher_logits.unsqueeze(0), certainty=None)
        teacher_loss = task_losses(teacher, labels).sum()
        return ((1 - self.gamma) * losses + self.gamma * divergences).sum() + self.gamma * teacher_loss + gates


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InvalidInput(f"temperature must be above 0, got {temperature}")
