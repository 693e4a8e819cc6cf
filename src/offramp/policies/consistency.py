"""Consistency and gain: leave once the last exit would hardly say anything else, or anything better.

Schuster et al., "Consistent Accelerated Inference via Confident Adaptive Transformers", EMNLP 2021, arXiv:2104.08803:
their meta consistency classifier, which predicts at an exit whether the last one will agree.

Differs from the authors' code (TalSchuster/CATs, src/modeling.py), which trains a small network on hidden states, one
for all layers: here each exit has a linear one over a handful of numbers that exits have said. So a trace is enough to
fit it (`offramp.fit_policy`), and it runs wherever a policy runs. For values they predict whether the last exit is
within a given tolerance, here how far it is. Gain is ours.
"""

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.divergence import kullback_leibler
from offramp.types.outputs import ExitOutput, class_log_probs
from offramp.types.problem_types import REGRESSION

FARTHEST = 20.0  # log-odds and divergences end here: what lies beyond is rounding

Weights = tuple[tuple[float, ...], ...]
"""For each exit, the last one too: a constant, and a weight for each of the `features` there."""


@final
@dataclass(frozen=True)
class Consistency(Policy):
    """Score: the chance that the last exit gives this answer, in 0..1; for values, minus the expected change to it.

    Several labels agree as a set.

    Attributes:
        weights: fitted on a trace, of which they need no labels.
        fitted_on: hashes of its rows (`offramp.types.trace.row_hashes`).
    """

    weights: Weights = field(default=(), repr=False)
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _checked("consistency", self.weights))
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """See `Policy.step`."""
        seen, memory = features(out, memory)
        weighed = _weighed(self.weights, exit, out, seen)
        return Step(weighed if out.problem_type == REGRESSION else weighed.sigmoid(), out.logits, memory)


@final
@dataclass(frozen=True)
class Gain(Policy):
    """Score: 1 - the chance that this answer is wrong and the last exit's is right, in 0..1.

    Consistency spends layers on whoever may change; this only on whom the change may help.

    Attributes:
        weights: fitted on a trace with labels.
        fitted_on: hashes of its rows (`offramp.types.trace.row_hashes`).
    """

    weights: Weights = field(default=(), repr=False)
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _checked("gain", self.weights))
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """See `Policy.step`."""
        if out.problem_type == REGRESSION:
            raise NotApplicable("gain tells right from wrong, and a regression has neither; it has: consistency")
        seen, memory = features(out, memory)
        return Step(_weighed(self.weights, exit, out, seen).sigmoid(), out.logits, memory)


def features(out: ExitOutput, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    """What a fitted policy looks at, (B,) float32 each, and what is to be remembered for the next exit.

    Of classes: the largest probability, its log-odds, its distance from the second; behind the first exit also the
    largest one of the exit before, how many exits in a row repeated the answer, the divergence (KL, nats) from the exit
    before, and the probability that this one's answer had there. Of several labels the worst counts; divergences add
    up. Of values: their mean and mean square; behind the first exit also the largest change of one, now and before.
    """
    return _of_values(out, memory) if out.problem_type == REGRESSION else _of_choices(out, memory)


def _of_choices(out: ExitOutput, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    log_p = class_log_probs(out)  # (B, G, K)
    given = log_p.argmax(dim=-1, keepdim=True)  # (B, G, 1)
    best = log_p.amax(dim=-1)  # (B, G)
    chosen = torch.arange(log_p.shape[-1], device=log_p.device) == given
    others = torch.where(chosen, -math.inf, log_p)
    log_odds = (best - others.logsumexp(dim=-1)).clamp(-FARTHEST, FARTHEST)
    margin = best.exp() - others.amax(dim=-1).exp()
    now = (best.exp().amin(dim=-1), log_odds.amin(dim=-1), margin.amin(dim=-1))
    if not memory:
        return now, (log_p, torch.zeros_like(now[0]))
    previous, agreed = memory
    same = (previous.argmax(dim=-1, keepdim=True) == given).flatten(1).all(dim=-1)  # (B,)
    agreed = torch.where(same, agreed + 1, 0.0)
    before = previous.amax(dim=-1).exp().amin(dim=-1)
    moved = kullback_leibler(log_p.exp(), log_p, previous).clamp(max=FARTHEST)
    foreseen = previous.gather(-1, given).squeeze(-1).exp().amin(dim=-1)
    return (*now, before, agreed, moved, foreseen), (log_p, agreed)


def _of_values(out: ExitOutput, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    value = out.logits.float()  # (B, C)
    now = (value.mean(dim=-1), value.square().mean(dim=-1))
    if not memory:
        return now, (value, torch.zeros_like(now[0]))
    previous, before = memory
    change = (value - previous).abs().amax(dim=-1)  # (B,)
    return (*now, change, before), (value, change)


def _weighed(weights: Weights, exit: int, out: ExitOutput, seen: tuple[Tensor, ...]) -> Tensor:
    """The constant plus the weighted features of an exit, (B,)."""
    if exit >= len(weights) or (out.last and exit < len(weights) - 1):
        raise InvalidInput(f"this policy was fitted for {len(weights)} exits, and the model has another number")
    constant, *rest = weights[exit]
    if len(rest) != len(seen):
        raise NotApplicable(
            f"this policy was fitted for another kind of problem: exit {exit + 1} has {len(rest)} weights for "
            f"{len(seen)} numbers"
        )
    score = torch.full_like(seen[0], constant)
    for weight, feature in zip(rest, seen, strict=True):
        score = score + weight * feature
    return score


def _checked(name: str, weights: Weights) -> Weights:
    """The weights as tuples, also if JSON made lists of them."""
    if not weights:
        raise InvalidInput(
            f'{name} needs numbers that are fitted: offramp.fit_policy("{name}", trace), or '
            f"`offramp calibrate --policy {name}`"
        )
    rows = tuple(tuple(float(value) for value in row) for row in weights)
    if not all(row and all(map(math.isfinite, row)) for row in rows):
        raise InvalidInput(f"the weights of {name} must be finite numbers, a constant at each exit at least")
    return rows
