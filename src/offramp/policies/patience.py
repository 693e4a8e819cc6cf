"""Patience: leave once several exits in a row agree on the answer.

Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020, arXiv:2006.04152,
equations 2 and 3.

Differs from the authors' code (JetRunner/PABEE, pabee/modeling_bert.py), which keeps one counter for the whole batch;
here every sample has its own, so the batch size cannot change an answer. Equation 3 lacks the absolute value that the
code has; without it any decrease, however large, would count as stable.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION


@final
@dataclass(frozen=True)
class Patience(Policy):
    """Score: the number of exits in a row that repeated the previous exit's answer; several labels repeat as a set.

    The threshold is the paper's patience t; the earliest exit is t + 1.
    """

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        answer = predictions(out)  # (B, G)
        if not memory:
            repeats = torch.zeros_like(answer[:, 0], dtype=torch.float32)  # (B,)
        else:
            previous, repeats = memory
            repeats = torch.where((answer == previous).all(dim=-1), repeats + 1, 0.0)
        return Step(repeats, out.logits, (answer, repeats), repeats + 1)


@final
@dataclass(frozen=True)
class Stability(Policy):
    """Score: minus the largest change of the value in the last `patience` steps; -inf before exit `patience` + 1.

    The threshold is minus the paper's tau, in the unit of the labels: PABEE's rule for regression. Of several outputs
    the one that changed most counts.

    Attributes:
        patience: number of small changes in a row, at least 1.
    """

    patience: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 1:
            raise InvalidInput(f"patience must be a whole number of at least 1, got {self.patience!r}")

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        if out.problem_type != REGRESSION:
            raise NotApplicable(
                "stability follows a value, and classes have none; use patience, entropy, max-prob, ..."
            )
        value = out.logits.float()  # (B, C)
        if not memory:
            changes = value[:, :0]  # (B, 0)
        else:
            previous, changes = memory
            change = (value - previous).abs().amax(dim=-1, keepdim=True)  # (B, 1)
            changes = torch.cat((changes, change), dim=-1)[:, -self.patience :]
        ready = changes.shape[-1] == self.patience
        score = -changes.amax(dim=-1) if ready else torch.full_like(value[:, 0], -math.inf)
        return Step(score, out.logits, (value, changes), changes.shape[-1] + 1)
