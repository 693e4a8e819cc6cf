"""Exit policies: a score for each sample at each exit; larger = readier. Who reaches the threshold leaves.

Every rule of the literature has this form (`docs/architecture.md`), so replay, calibration and the engine are written
once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from offramp.types.outputs import ExitOutput

Memory = tuple[Tensor, ...]
"""What a policy remembers of each sample: () before the first exit, then tensors with the batch first."""


@dataclass(frozen=True)
class Step:
    """What a policy says at one exit.

    Attributes:
        score: (B,) float32, finite, or -inf for "not yet".
        logits: (B, C) the answer of whoever leaves here: the exit's own, unless the policy combines exits.
        memory: what to remember of each sample, batch first.
        window: on how many exits in a row, this one last, the score stands: one number, or (B,).
    """

    score: Tensor
    logits: Tensor
    memory: Memory = ()
    window: int | Tensor = 1


class Policy(ABC):
    """Scores an exit. A policy has no state: what it must remember of a sample goes through `memory`."""

    @abstractmethod
    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit.

        Args:
            exit: 0-based number of the exit.
            out: what the exit says, logits (B, C).
            memory: what the step before returned, cut to the samples that are still here; () at the first exit.

        Raises:
            NotApplicable: the policy has no meaning for this kind of problem.
        """
