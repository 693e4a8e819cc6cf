"""Class offsets: another policy, with a score that is lowered for some answers, so that they leave later.

Not from a paper.

A guard model that answers "safe" too early costs more than one that answers "unsafe" too early. So an offset is
subtracted from the score of "safe", and such samples leave later. One threshold then acts as one threshold for each
class, and replay, calibration and certificates work as with any policy.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step, WrapperPolicy
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import SINGLE_LABEL


@final
@dataclass(frozen=True)
class ClassOffsets(WrapperPolicy):
    """Score: the inner policy's, minus the offset of the class that the exit answers.

    Attributes:
        policy: the inner policy; an ensemble goes around this, not into it.
        offsets: one number for each class, in the unit of the score; 0 = no change.
    """

    parameter: ClassVar[str] = "offsets"

    policy: Policy
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        inner = self.policy
        if not isinstance(inner, Policy) or isinstance(inner, ClassOffsets) or inner.averages_exits:
            raise InvalidInput(f"offsets go around a policy that has no offsets and is no ensemble, got {inner!r}")
        offsets = tuple(float(value) for value in self.offsets)
        if not offsets or not all(map(math.isfinite, offsets)):
            raise InvalidInput(f"offsets must be finite numbers, one for each class; got {offsets}")
        object.__setattr__(self, "offsets", offsets)

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        if out.problem_type != SINGLE_LABEL:
            raise NotApplicable("offsets are for problems with a single label, where the answer is one class")
        if len(self.offsets) != out.logits.shape[-1]:
            raise InvalidInput(f"{len(self.offsets)} offsets for a model with {out.logits.shape[-1]} classes")
        step = self.policy.step(exit, out, memory)
        offsets = torch.tensor(self.offsets, device=out.logits.device)
        score = step.score.float() - offsets[predictions(out).squeeze(-1)]
        return Step(score, step.logits, step.memory, step.window)
