"""Exit policies: a score for each sample at each exit; larger = readier. Who reaches the threshold leaves.

Every rule of the literature has this form (`docs/architecture.md`), so replay, calibration and the engine are written
once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.registry import load_policy
from offramp.values import Answers, ExitOutput, Memory, Trace


@dataclass(frozen=True)
class Step:
    """What a policy says at one exit.

    Attributes:
        score: (B,) float32, finite, or -inf for "not yet".
        logits: (B, C) the answer of whoever leaves here: the exit's own, unless the policy combines exits.
        memory: what to remember of each sample, batch first.
        run: on how many exits in a row, this one last, the score stands: one number, or (B,).
    """

    score: Tensor
    logits: Tensor
    memory: Memory = ()
    run: int | Tensor = 1


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


def sound(score: Tensor, logits: Tensor) -> Tensor:
    """The score (...), but NaN where there is no answer: where it is NaN, or logits (..., C) are not finite."""
    return score + (logits * 0).sum(dim=-1)


def failed(score: Tensor, logits: Tensor) -> Tensor:
    """Who has no answer, (...) bool: a score (...) that is NaN, or logits (..., C) that are not finite."""
    return sound(score, logits).isnan()


def stays(sound_score: Tensor, limit: float | Tensor) -> Tensor:
    """Who goes on, (B,) bool: whoever is below the limit. Who has failed is below nothing, and leaves at once.

    Args:
        sound_score: (B,) as `sound` gives it.
        limit: of all, or (B,).
    """
    return sound_score < limit


def limits(thresholds: float | Sequence[float] | Tensor, exits: int) -> list[float]:
    """One limit for each of `exits` exits; the last one is -inf: the last exit always answers.

    Args:
        thresholds: one number for all exits, or one for each but the last; inf = never.
        exits: how many exits there are.

    Raises:
        InvalidInput: the wrong count, or a NaN.
    """
    values = torch.as_tensor(thresholds, dtype=torch.float64).tolist()
    values = [values] * (exits - 1) if isinstance(values, float) else values
    if len(values) != exits - 1:
        raise InvalidInput(
            f"{exits} exits take 1 or {exits - 1} thresholds (all exits but the last), got {len(values)}"
        )
    if any(math.isnan(value) for value in values):
        raise InvalidInput(f"a threshold must be a number, got {values}")
    return [*values, -math.inf]


def unroll(policy: Policy, trace: Trace) -> tuple[Tensor, Tensor]:
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
    return unroll(policy, trace)[0]


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
    score, logits = unroll(policy, trace)  # (L, N), (L, N, C)
    checked = sound(score, logits)  # (L, N)
    leave = torch.stack([~stays(checked[m], at) for m, at in enumerate(limits(threshold, trace.depth))])
    first = leave.to(torch.uint8).argmax(dim=0)  # (N,) the first exit that lets the sample go
    rows = torch.arange(len(trace))
    taken = logits[first, rows]  # (N, C)
    return Answers(taken, torch.tensor(trace.layer_numbers)[first], checked[first, rows].isnan())
