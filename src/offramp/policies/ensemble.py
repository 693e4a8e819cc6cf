"""Ensemble: leave where another policy says, but answer with the mean of several exits.

Zhang et al., "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting", Findings of NAACL 2022,
section 4.6.3 (cross-layer ensemble), which leaves open over which exits.

Differs from the authors' code, whose run has one exit too many (the last one that was not confident), which averages
even where the rule never fired, and which hands out probabilities as if they were logits.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.decision import is_invalid
from offramp.types.outputs import ExitOutput, class_log_probs
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

MEMBERS = ("run", "all")


@final
@dataclass(frozen=True)
class Ensemble(Policy):
    """Score: the other policy's. Answer: the mean probability of several exits; for a regression, the mean value.

    Logits are the logarithm of that mean, so that argmax and softmax say what they always say. An ensemble of one exit
    is that exit's own logits, untouched.

    Attributes:
        policy: says when to leave.
        members: "run": the exits on which the score stands (`Step.window`), and at the last exit, where no threshold
            has been reached, that exit alone; with the threshold "never" the answers are the full model's. "all": every
            exit so far, at the last exit too.
    """

    policy: Policy
    members: str = "run"

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy) or isinstance(self.policy, Ensemble):
            raise InvalidInput(f"an ensemble is around a policy that is none itself, got {self.policy!r}")
        if self.members not in MEMBERS:
            raise InvalidInput(f"ensemble must be one of {', '.join(MEMBERS)}; got {self.members!r}")

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """See `Policy.step`."""
        step = self.policy.step(exit, out, memory[1:])
        out = replace(out, logits=step.logits.float())
        said = _said(out).unsqueeze(1)  # (B, 1, G, K)
        said = torch.cat((memory[0], said), dim=1) if memory else said  # (B, M, G, K)
        size = said.shape[1] if self.members == "all" else 1 if out.last else step.window
        sizes = torch.as_tensor(size, device=said.device).expand(said.shape[0])  # (B,)
        alone = (sizes == 1) | is_invalid(step.score, out.logits)
        logits = torch.where(alone.unsqueeze(-1), out.logits, _mean(out, said, sizes))
        return Step(step.score, logits, (said, *step.memory), step.window)


def _said(out: ExitOutput) -> Tensor:
    """What is averaged: values (B, C, 1) of a regression, else log-probabilities (B, G, K) of its choices."""
    return out.logits.unsqueeze(-1) if out.problem_type == REGRESSION else class_log_probs(out)


def _mean(out: ExitOutput, said: Tensor, sizes: Tensor) -> Tensor:
    """Logits (B, C) of the mean over the last `sizes` (B,) of M exits (B, M, G, K)."""
    exits = said.shape[1]
    inside = torch.arange(exits, device=said.device) >= exits - sizes.unsqueeze(-1)  # (B, M)
    inside = inside.view(-1, exits, 1, 1)
    count = sizes.view(-1, 1, 1)
    if out.problem_type == REGRESSION:
        return (torch.where(inside, said, 0.0).sum(dim=1) / count).squeeze(-1)
    log_p = torch.where(inside, said, -math.inf).logsumexp(dim=1) - count.log()  # (B, G, K)
    return log_p[..., 1] - log_p[..., 0] if out.problem_type == MULTI_LABEL else log_p.squeeze(1)
