"""Ensemble: leave where another policy leaves, but answer with the mean of several exits.

Zhang et al., "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting", Findings of NAACL 2022,
section 4.6.3 (cross-layer ensemble), which leaves open over which exits.

Differs from the authors' code, whose run has one exit too many (the last one that was not confident), which averages
even where the rule never fired, and which returns probabilities as if they were logits.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy, Step, WrapperPolicy
from offramp.policies.decision import is_invalid
from offramp.types.outputs import ExitOutput, class_log_probs
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

MEMBERS = ("run", "all")


@final
@dataclass(frozen=True)
class Ensemble(WrapperPolicy):
    """Score: the inner policy's. Answer: the mean probability of several exits; for a regression, the mean value.

    Logits are the logarithm of that mean, so that their softmax is the mean. An ensemble of one exit is that exit's own
    logits, unchanged.

    Attributes:
        policy: the inner policy.
        members: "run": the exits that the score is taken over (`Step.window`), and at the last exit, where no threshold
            has been reached, that exit alone; with the threshold "never" the answers are the full model's. "all": every
            exit so far, at the last exit too.
    """

    parameter: ClassVar[str] = "members"
    rescalable: ClassVar[bool] = False
    averages_exits: ClassVar[bool] = True

    policy: Policy
    members: str = "run"

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy) or self.policy.averages_exits:
            raise InvalidInput(f"an ensemble is around a policy that is none itself, got {self.policy!r}")
        if self.members not in MEMBERS:
            raise InvalidInput(f"ensemble must be one of {', '.join(MEMBERS)}; got {self.members!r}")

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        step = self.policy.step(exit, out, memory[1:])
        out = replace(out, logits=step.logits.float())
        outputs = _to_average(out).unsqueeze(1)  # (B, 1, G, K)
        outputs = torch.cat((memory[0], outputs), dim=1) if memory else outputs  # (B, M, G, K)
        size = outputs.shape[1] if self.members == "all" else 1 if out.last else step.window
        sizes = torch.as_tensor(size, device=outputs.device).expand(outputs.shape[0])  # (B,)
        single = (sizes == 1) | is_invalid(step.score, out.logits)
        logits = torch.where(single.unsqueeze(-1), out.logits, _mean_logits(out, outputs, sizes))
        return Step(step.score, logits, (outputs, *step.memory), step.window)


def _to_average(out: ExitOutput) -> Tensor:
    """Return the values (B, C, 1) of a regression, else the log-probabilities (B, G, K) of its choices."""
    return out.logits.unsqueeze(-1) if out.problem_type == REGRESSION else class_log_probs(out)


def _mean_logits(out: ExitOutput, outputs: Tensor, sizes: Tensor) -> Tensor:
    """Return the logits (B, C) of the mean over the last `sizes` (B,) of M exits (B, M, G, K)."""
    exits = outputs.shape[1]
    inside = torch.arange(exits, device=outputs.device) >= exits - sizes.unsqueeze(-1)  # (B, M)
    inside = inside.view(-1, exits, 1, 1)
    count = sizes.view(-1, 1, 1)
    if out.problem_type == REGRESSION:
        return (torch.where(inside, outputs, 0.0).sum(dim=1) / count).squeeze(-1)
    log_p = torch.where(inside, outputs, -math.inf).logsumexp(dim=1) - count.log()  # (B, G, K)
    return log_p[..., 1] - log_p[..., 0] if out.problem_type == MULTI_LABEL else log_p.squeeze(1)
