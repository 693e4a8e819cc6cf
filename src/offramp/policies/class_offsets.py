"""By class: another policy, which lets some answers go later than others.

A guard model that says "safe" too early costs more than one that says "unsafe" too early, so "safe" is held back: its
score counts for less. One threshold then stands for one a class, and all that works on a threshold works on it.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.ensemble import Ensemble
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import SINGLE_LABEL


@final
@dataclass(frozen=True)
class ClassOffsets(Policy):
    """Score: the other policy's, minus what the class that the exit answers is held back by.

    Attributes:
        policy: says when to leave; an ensemble goes around this, not into it.
        offsets: one number for each class, in the unit of the score; 0 = as before.
    """

    policy: Policy
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy) or isinstance(self.policy, (ClassOffsets, Ensemble)):
            raise InvalidInput(f"classes are held back of a policy that is no ensemble, got {self.policy!r}")
        numbers = tuple(float(value) for value in self.offsets)
        if not numbers or not all(map(math.isfinite, numbers)):
            raise InvalidInput(f"classes are held back by a finite number each; got {numbers}")
        object.__setattr__(self, "offsets", numbers)

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """See `Policy.step`."""
        if out.problem_type != SINGLE_LABEL:
            raise NotApplicable("classes are held back where an answer is one of them")
        if len(self.offsets) != out.logits.shape[-1]:
            raise InvalidInput(f"{len(self.offsets)} classes are held back, and the model has {out.logits.shape[-1]}")
        step = self.policy.step(exit, out, memory)
        numbers = torch.tensor(self.offsets, device=out.logits.device)
        score = step.score.float() - numbers[predictions(out).squeeze(-1)]
        return Step(score, step.logits, step.memory, step.window)
