"""Replay a policy on a trace, without running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy
from offramp.policies.decision import continues, is_invalid, nan_where_invalid, thresholds_per_exit
from offramp.policies.registry import load_policy
from offramp.types.outputs import Answers
from offramp.types.trace import Trace


def run_policy(policy: Policy, trace: Trace) -> tuple[Tensor, Tensor]:
    """Scores (L, N) and the answers' logits (L, N, C) of a policy at every exit of a trace."""
    memory: Memory = ()
    steps = []
    for number in range(trace.depth):
        step = policy.step(number, trace.exit(number), memory)
        memory = step.memory
        steps.append(step)
    return torch.stack([step.score.float() for step in steps]), torch.stack([step.logits for step in steps])


def scores(policy: Policy, trace: Trace) -> Tensor:
    """Scores (L, N) of a policy at every exit of a trace."""
    return run_policy(policy, trace)[0]


def replay(
    trace: Trace, policy: Policy | Mapping[str, Any] | str, threshold: float | Sequence[float] | Tensor
) -> Answers:
    """Who would have left where, without running the model.

    Args:
        trace: a full-depth pass, (L, N, C).
        policy: a policy, its name, or an operating point's policy as data.
        threshold: one number, or one for each exit but the last; inf = never.

    Raises:
        InvalidInput: the wrong number of thresholds, or a NaN among them.
        NotApplicable: the policy has no meaning for this kind of problem.
    """
    policy = policy if isinstance(policy, Policy) else load_policy(policy)
    return answers_at(trace, *run_policy(policy, trace), threshold)


def answers_at(trace: Trace, score: Tensor, logits: Tensor, threshold: float | Sequence[float] | Tensor) -> Answers:
    """Return the answers of a policy that has run: its scores (L, N), its logits (L, N, C), and `replay`'s threshold."""
    checked = nan_where_invalid(score, logits)  # (L, N)
    leave = torch.stack(
        [~continues(checked[m], at) for m, at in enumerate(thresholds_per_exit(threshold, trace.depth))]
    )
    first = leave.to(torch.uint8).argmax(dim=0)  # (N,) the first exit that lets the sample go
    rows = torch.arange(len(trace))
    taken = logits[first, rows]  # (N, C)
    return Answers(taken, torch.tensor(trace.layer_numbers)[first], checked[first, rows].isnan())


def finite_outputs(trace: Trace, policy: Policy) -> tuple[Tensor, Tensor]:
    """Scores (L, N) and logits (L, N, C) of a policy on a trace that can choose a threshold.

    Raises:
        InvalidInput: a single exit; samples whose scores or logits are not finite.
        NotApplicable: the policy has no meaning for this kind of problem.
    """
    if trace.depth == 1:
        raise InvalidInput("a trace of one exit: there is nowhere to leave early")
    score, logits = run_policy(policy, trace)
    if broken := int(is_invalid(score, logits).any(dim=0).sum()):
        raise InvalidInput(
            f"{broken} of {len(trace)} samples have scores or logits that are not finite; leave them out first"
        )
    return score, logits
