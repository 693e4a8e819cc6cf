"""Replay a policy on a trace, without running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy
from offramp.policies.decision import continues, is_invalid, nan_where_invalid, refuse_broken, thresholds_per_exit
from offramp.policies.registry import as_policy
from offramp.types.outputs import Answers
from offramp.types.trace import Trace


def run_policy(policy: Policy, trace: Trace) -> tuple[Tensor, Tensor]:
    """Return a policy's scores (L, N) and its answers' logits (L, N, C) at every exit of a trace."""
    memory: Memory = ()
    steps = []
    for exit in range(trace.depth):
        step = policy.step(exit, trace.exit(exit), memory)
        memory = step.memory
        steps.append(step)
    return torch.stack([step.score.float() for step in steps]), torch.stack([step.logits for step in steps])


def scores(policy: Policy, trace: Trace) -> Tensor:
    """Return a policy's scores (L, N) at every exit of a trace.

    Raises:
        NotApplicable: the policy has no meaning for this kind of problem.

    Example:
        >>> offramp.scores(offramp.load_policy("max-prob"), trace).shape
        torch.Size([4, 100])
    """
    return run_policy(policy, trace)[0]


def replay(
    trace: Trace, policy: Policy | Mapping[str, Any] | str, threshold: float | Sequence[float] | Tensor
) -> Answers:
    """Return the answers and exit layers that a policy gives on a trace, without running the model.

    Args:
        trace: a full-depth pass, (L, N, C).
        policy: a policy, its name, or an operating point's policy as data.
        threshold: one number, or one for each exit but the last; inf = never.

    Raises:
        InvalidInput: the wrong number of thresholds, or a NaN among them.
        NotApplicable: the policy has no meaning for this kind of problem.

    Example:
        >>> answers = offramp.replay(trace, "fixed", 2)
        >>> answers.exit_layers.unique(), answers.logits.shape
        (tensor([2]), torch.Size([100, 3]))
    """
    policy = as_policy(policy)
    return answers_at(trace, *run_policy(policy, trace), threshold)


def answers_at(trace: Trace, score: Tensor, logits: Tensor, threshold: float | Sequence[float] | Tensor) -> Answers:
    """Return `replay`'s answers for a policy that has run: its scores (L, N), its logits (L, N, C), and a threshold."""
    checked_score = nan_where_invalid(score, logits)  # (L, N)
    thresholds = thresholds_per_exit(threshold, trace.depth)
    leaves = torch.stack([~continues(row, limit) for row, limit in zip(checked_score, thresholds, strict=True)])
    first = leaves.to(torch.uint8).argmax(dim=0)  # (N,) the first exit that each sample may leave at
    samples = torch.arange(len(trace))
    exit_layers = torch.tensor(trace.layer_numbers)[first]
    return Answers(logits[first, samples], exit_layers, checked_score[first, samples].isnan())


def finite_outputs(trace: Trace, policy: Policy) -> tuple[Tensor, Tensor]:
    """Return a policy's scores (L, N) and logits (L, N, C), checked so that they can choose a threshold.

    Raises:
        InvalidInput: a single exit; samples whose score is NaN or whose logits are not finite.
        NotApplicable: the policy has no meaning for this kind of problem.
    """
    if trace.depth == 1:
        raise InvalidInput("a trace of one exit: there is nowhere to leave early")
    score, logits = run_policy(policy, trace)
    refuse_broken(is_invalid(score, logits).any(dim=0), "a NaN score or logits that are not finite")
    return score, logits
