"""Exit policies: a score for each sample at each exit; larger = readier. A sample leaves once it reaches the threshold.

Every rule of the literature has this form (`docs/architecture.md`), so replay, calibration and the engines are written
once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from offramp.types.outputs import ExitOutput

Memory = tuple[Tensor, ...]
"""A policy's memory of each sample: () before the first exit, then tensors with the batch first."""


@dataclass(frozen=True)
class Step:
    """The result of a policy at one exit.

    Attributes:
        score: (B,) float32, finite, or -inf for "not yet".
        logits: (B, C) the answer of a row that leaves here: the exit's own, unless the policy combines exits.
        memory: tensors for the next exit, batch first.
        window: number of exits in a row, this one last, that the score is taken over: one number, or (B,).

    Example:
        >>> step = offramp.load_policy("entropy").step(0, trace.exit(0), ())
        >>> step.score.shape, step.logits.shape, step.memory, step.window
        (torch.Size([100]), torch.Size([100, 3]), (), 1)
    """

    score: Tensor
    logits: Tensor
    memory: Memory = ()
    window: int | Tensor = 1


class Policy(ABC):
    """A score for each sample at each exit. A policy has no state: what it keeps of a sample goes through `memory`.

    Attributes:
        unit_interval: the score lies in 0..1, is one exit's alone and has no fitted numbers: its log-odds can be scaled
            for each exit (`offramp.policies.exit_scaling`).
        rescalable: the logits may be divided by temperatures (`offramp.policies.temperature`); false for policies that
            are fitted on the logits, are scaled already, or average several exits.
        averages_exits: the answer is a mean over exits; such a policy goes around others, not into them.

    Example:
        >>> class LargestLogit(offramp.Policy):
        ...     def step(self, exit, out, memory):
        ...         return offramp.Step(out.logits.amax(dim=-1), out.logits)
        >>> offramp.replay(trace, LargestLogit(), 2.0).exit_layers.shape
        torch.Size([100])
    """

    unit_interval: ClassVar[bool] = False
    rescalable: ClassVar[bool] = True
    averages_exits: ClassVar[bool] = False

    @abstractmethod
    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit.

        Args:
            exit: 0-based number of the exit.
            out: the exit's output, logits (B, C).
            memory: the previous step's memory, cut to the rows that are left; () at the first exit.

        Raises:
            NotApplicable: the policy has no meaning for this kind of problem.
        """


class WrapperPolicy(Policy):
    """A policy around another one; as data it is a parameter of the inner policy, e.g. `temperatures`.

    Every concrete class is a dataclass with the fields `policy` and `parameter`, and perhaps more. It has a row in
    `offramp.policies.registry.WRAPPERS` under the parameter's name as users type it.

    Attributes:
        parameter: the name of the field that the parameter sets; fields besides keep their names in the data.
        policy: the inner policy.
    """

    parameter: ClassVar[str]
    policy: Policy
