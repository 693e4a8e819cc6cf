"""Fixed: all samples leave at one layer.

Zhang et al., "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting", Findings of NAACL 2022,
section 2.2.2 (budgeted exit). Also the way to evaluate one exit alone.
"""

from dataclasses import dataclass
from typing import final

import torch

from offramp.policies.base import Memory, Policy, Step
from offramp.types.outputs import ExitOutput


@final
@dataclass(frozen=True)
class Fixed(Policy):
    """Score: the layer's number, so threshold m leaves at layer m."""

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        layer = exit + 1 if out.layer is None else out.layer
        score = torch.full_like(out.logits[:, 0], float(layer), dtype=torch.float32)  # (B,)
        return Step(score, out.logits)
