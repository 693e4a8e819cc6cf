"""Certainty: leave once a learned gate predicts that the exit is right.

Xin et al., "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression", EACL 2021, section 4.

Differs from the authors' code, which predicts *un*certainty and leaves below a threshold; here larger = more certain.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from offramp.errors import NotApplicable
from offramp.policies.base import Memory, Policy, Step
from offramp.types.outputs import ExitOutput


@final
@dataclass(frozen=True)
class Certainty(Policy):
    """Score: the gate's certainty u, in 0..1; for classification and regression."""

    unit_interval: ClassVar[bool] = True

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        if out.certainty is None:
            raise NotApplicable("certainty needs a learned gate, and this trace or model has none")
        return Step(out.certainty.float(), out.logits)
