"""Patient confidence (PCEE): leave once several exits in a row were confident, by any score.

Zhang et al., "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting", Findings of NAACL 2022,
section 3.2: patience around normalised entropy; versions 1 and 2 take the largest probability and a learned certainty.

No public code. The paper's rule for versions 1 and 2 has its sign reversed; here larger = readier throughout.
"""

import math
from dataclasses import dataclass, field
from typing import final

import torch

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.confidence import Entropy
from offramp.types.outputs import ExitOutput


@final
@dataclass(frozen=True)
class PatientConfidence(Policy):
    """Score: the smallest of the measure's last `patience` scores; -inf before exit `patience`, the earliest one.

    With one threshold for each exit the whole window is compared with the current exit's.

    Attributes:
        measure: the policy whose scores must reach the threshold.
        patience: number of exits in a row, at least 1; 1 is the measure alone.
    """

    measure: Policy = field(default_factory=Entropy)
    patience: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.measure, Policy):
            raise InvalidInput(f"measure must be a policy, its name or its data, got {self.measure!r}")
        if not isinstance(self.patience, int) or self.patience < 1:
            raise InvalidInput(f"patience must be a whole number of at least 1, got {self.patience!r}")

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        inner = self.measure.step(exit, out, memory[1:])
        current = inner.score.unsqueeze(-1)  # (B, 1)
        window = torch.cat((memory[0], current), dim=-1)[:, -self.patience :] if memory else current
        ready = window.shape[-1] == self.patience
        score = window.amin(dim=-1) if ready else torch.full_like(inner.score, -math.inf)
        return Step(score, inner.logits, (window, *inner.memory), window.shape[-1])
