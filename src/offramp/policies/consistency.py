"""Consistency and gain: leave once the last exit would hardly give another answer, or a better one.

Schuster et al., "Consistent Accelerated Inference via Confident Adaptive Transformers", EMNLP 2021, arXiv:2104.08803:
their meta consistency classifier, which predicts at an exit whether the last one will agree.

Differs from the authors' code (TalSchuster/CATs, src/modeling.py), which trains a small network on hidden states, one
for all layers: here each exit has a linear one over a few features of the exits so far. So a trace is enough to fit it
(`offramp.fit_policy`), and it runs wherever a policy runs. For values they predict whether the last exit is within a
tolerance, here how far away it is. Gain is ours.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.divergence import kullback_leibler
from offramp.types.outputs import ExitOutput, class_log_probs
from offramp.types.problem_types import REGRESSION

LARGEST_FEATURE = 20.0  # of log-odds and divergences; beyond, differences are rounding

Weights = tuple[tuple[float, ...], ...]
"""For each exit, the last one too: a constant, and a weight for each of its `features`."""


@final
@dataclass(frozen=True)
class Consistency(Policy):
    """Score: the chance that the last exit gives this answer, in 0..1; for values, minus the expected change to it.

    Several labels agree as a set.

    Attributes:
        weights: fitted on a trace, without its labels.
        fitted_on: hashes of its rows (`offramp.types.trace.row_hashes`).
    """

    rescalable: ClassVar[bool] = False

    weights: Weights = field(default=(), repr=False)
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _as_tuples("consistency", self.weights))
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        columns, memory = features(out, memory)
        score = _linear(self.weights, exit, out, columns)
        return Step(score if out.problem_type == REGRESSION else score.sigmoid(), out.logits, memory)


@final
@dataclass(frozen=True)
class Gain(Policy):
    """Score: 1 - the chance that this answer is wrong and the last exit's is right, in 0..1.

    Consistency spends layers on every sample whose answer may change, gain only on those that the change may mend.

    Attributes:
        weights: fitted on a trace with labels.
        fitted_on: hashes of its rows (`offramp.types.trace.row_hashes`).
    """

    rescalable: ClassVar[bool] = False

    weights: Weights = field(default=(), repr=False)
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _as_tuples("gain", self.weights))
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        if out.problem_type == REGRESSION:
            raise NotApplicable("gain tells right from wrong, and a regression has neither; it has: consistency")
        columns, memory = features(out, memory)
        return Step(_linear(self.weights, exit, out, columns).sigmoid(), out.logits, memory)


def features(out: ExitOutput, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    """Return the features of a fitted policy, (B,) float32 each, and the memory for the next exit.

    Of classes: the largest probability, its log-odds, its distance from the second; after the first exit also the
    largest one of the exit before, the number of exits in a row that repeated the answer, the divergence (KL, nats)
    from the exit before, and the probability that this one's answer had there. Of several labels the worst counts;
    divergences add up. Of values: their mean and mean square; after the first exit also the largest change of a value,
    at this exit and at the one before.
    """
    return _of_values(out, memory) if out.problem_type == REGRESSION else _of_choices(out, memory)


def _of_choices(out: ExitOutput, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    log_p = class_log_probs(out)  # (B, G, K)
    answer = log_p.argmax(dim=-1, keepdim=True)  # (B, G, 1)
    best = log_p.amax(dim=-1)  # (B, G)
    chosen = torch.arange(log_p.shape[-1], device=log_p.device) == answer
    others = torch.where(chosen, -math.inf, log_p)
    log_odds = (best - others.logsumexp(dim=-1)).clamp(-LARGEST_FEATURE, LARGEST_FEATURE)
    margin = best.exp() - others.amax(dim=-1).exp()
    now = (best.exp().amin(dim=-1), log_odds.amin(dim=-1), margin.amin(dim=-1))
    if not memory:
        return now, (log_p, torch.zeros_like(now[0]))
    previous, repeats = memory
    same = (previous.argmax(dim=-1, keepdim=True) == answer).flatten(1).all(dim=-1)  # (B,)
    repeats = torch.where(same, repeats + 1, 0.0)
    previous_best = previous.amax(dim=-1).exp().amin(dim=-1)
    divergence = kullback_leibler(log_p.exp(), log_p, previous).clamp(max=LARGEST_FEATURE)
    previous_of_answer = previous.gather(-1, answer).squeeze(-1).exp().amin(dim=-1)
    return (*now, previous_best, repeats, divergence, previous_of_answer), (log_p, repeats)


def _of_values(out: ExitOutput, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    value = out.logits.float()  # (B, C)
    now = (value.mean(dim=-1), value.square().mean(dim=-1))
    if not memory:
        return now, (value, torch.zeros_like(now[0]))
    previous, previous_change = memory
    change = (value - previous).abs().amax(dim=-1)  # (B,)
    return (*now, change, previous_change), (value, change)


def _linear(weights: Weights, exit: int, out: ExitOutput, columns: tuple[Tensor, ...]) -> Tensor:
    """Return the constant plus the weighted features of an exit, (B,)."""
    if exit >= len(weights) or (out.last and exit < len(weights) - 1):
        raise InvalidInput(f"this policy was fitted for {len(weights)} exits, and the model has another number")
    constant, *slopes = weights[exit]
    if len(slopes) != len(columns):
        raise NotApplicable(
            f"this policy was fitted for another kind of problem: exit {exit + 1} has {len(slopes)} weights for "
            f"{len(columns)} numbers"
        )
    score = torch.full_like(columns[0], constant)
    for weight, feature in zip(slopes, columns, strict=True):
        score = score + weight * feature
    return score


def _as_tuples(name: str, weights: Weights) -> Weights:
    """Return the weights as tuples; JSON makes lists of them."""
    if not weights:
        raise InvalidInput(
            f'{name} needs numbers that are fitted: offramp.fit_policy("{name}", trace), or '
            f"`offramp calibrate --policy {name}`"
        )
    rows = tuple(tuple(float(value) for value in row) for row in weights)
    if not all(row and all(map(math.isfinite, row)) for row in rows):
        raise InvalidInput(f"the weights of {name} must be finite numbers, a constant at each exit at least")
    return rows
