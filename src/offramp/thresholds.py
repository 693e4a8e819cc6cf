"""Thresholds for a target, exact over all scores seen.

FastBERT and PABEE search a grid. Here one sweep from the strictest threshold to the loosest passes every score that was
seen, so the answer is exact, and it lies midway between two neighbouring scores, where float noise cannot tip it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.errors import CannotReach, InvalidInput, NotApplicable
from offramp.evaluate import labels_of, layerwise, measure, metric_for
from offramp.policies.base import Policy
from offramp.policies.decision import is_invalid
from offramp.policies.ensemble import Ensemble
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.replay import run_policy
from offramp.registry import load_policy, policy_data
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace


@dataclass(frozen=True)
class Sweep:
    """Every way in which one threshold for all exits can split a trace, from strictest to loosest.

    Attributes:
        thresholds: (K,) float32; the first is inf.
        statistics: (K, S) float64, summed over the samples as they leave at that threshold.
    """

    thresholds: Tensor
    statistics: Tensor


def sweep(score: Tensor, statistics: Tensor) -> Sweep:
    """Sum per-sample statistics at every threshold that lies between two scores.

    Args:
        score: (L, N) a policy's scores; the last exit's do not matter.
        statistics: (L, N, S) what a sample contributes if it leaves at that exit.
    """
    found, between = splits(score, statistics)
    return Sweep(found.thresholds[between], found.statistics[between])


def splits(score: Tensor, statistics: Tensor) -> tuple[Sweep, Tensor]:
    """Sum per-sample statistics at every split, those among them between whose scores no float lies.

    As the threshold falls, a sample's exit moves up to the first exit whose running maximum reaches it. Each of these
    (L-1) N steps replaces the statistics of exit m+1 by those of exit m; sorted by score and summed they give all K.

    Args:
        score: (L, N) a policy's scores; the last exit's do not matter.
        statistics: (L, N, S) what a sample contributes if it leaves at that exit.

    Returns:
        All K splits, and (K,) bool: whether the threshold lies between two scores. Else it lies on the upper one.
    """
    reached = score[:-1].cummax(dim=0).values.flatten()  # ((L-1) N,)
    change = (statistics[:-1] - statistics[1:]).flatten(0, 1)  # ((L-1) N, S)
    real = reached.isfinite()
    seen, order = reached[real].sort(descending=True)
    totals = statistics[-1].sum(dim=0) + change[real][order].cumsum(dim=0)
    values, counts = torch.unique_consecutive(seen, return_counts=True)
    under = torch.cat((values[1:], values[-1:] - values[-1:].abs().clamp(min=1)))
    middle = ((values.double() + under.double()) / 2).float()
    apart = (middle < values) & (middle > under)
    thresholds = torch.cat((torch.tensor([math.inf]), torch.where(apart, middle, values)))
    sums = torch.cat((statistics[-1].sum(dim=0)[None], totals[counts.cumsum(dim=0) - 1]))
    return Sweep(thresholds, sums), torch.cat((torch.tensor([True]), apart))


@dataclass(frozen=True)
class Curve:
    """Speed against quality, (K,) each, from full depth to the first exit."""

    thresholds: Tensor
    mean_exits: Tensor
    scores: Tensor


def curve(trace: Trace, policy: Policy, metric: str | None = None) -> Curve:
    """Mean exit layer and score at every threshold.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: policy or metric have no meaning for this kind of problem; a metric that no sweep can sum.
    """
    name, found = metric_for(trace, metric)
    if found.resampled is not None:
        raise NotApplicable(f"{name} ranks all samples together, so it is not known at every threshold; pearson is")
    score, logits = run_policy(policy, trace)
    statistics = found.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels_of(trace))
    swept = sweep(score, torch.cat((at_exits(trace, trace.layer_numbers), statistics), dim=-1))
    return Curve(
        swept.thresholds,
        swept.statistics[:, 0] / len(trace),
        found.value(swept.statistics[:, 1:], len(trace)),
    )


def at_exits(trace: Trace, values: Sequence[float]) -> Tensor:
    """(L, N, 1) what a sample counts if it leaves at each exit, from (L,) values."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1).expand(-1, len(trace), 1)


def calibrate(
    trace: Trace,
    policy: Policy | Mapping[str, Any] | str,
    target: Target,
    metric: str | None = None,
    cost: CostTable | None = None,
) -> OperatingPoint:
    """The operating point that meets a target: one threshold for all exits, of a policy with `lines` one for each.

    For `max_drop` and `agreement` it is the loosest threshold such that it and all stricter ones hold the target on
    this trace; for `speedup` and `latency_ms` the strictest one that is fast enough.

    Args:
        trace: a full-depth pass over data that is neither trained on nor reported on; labels for `max_drop`.
        policy: a policy, its name, or its data form.
        target: what to hold.
        metric: a name of `offramp.evaluate.METRICS`; None = the usual one of the problem.
        cost: what each exit takes (`offramp.measure_costs`), for `latency_ms` and for nothing else.

    Raises:
        CannotReach: no threshold meets the target; the message names the best.
        InvalidInput: no labels where they are needed; samples without a finite answer; a single exit; `latency_ms`
            without a cost table, a table without it, or one of other exits.
        NotApplicable: policy, metric or target have no meaning for this kind of problem.
    """
    policy = policy if isinstance(policy, Policy) else load_policy(policy)
    if (target.latency_ms is None) != (cost is None):
        raise InvalidInput(
            "a cost table is for the target latency_ms alone; leave out cost="
            if cost
            else "latency_ms needs to know what each exit takes: cost=offramp.measure_costs(folder, texts)"
        )
    checked(trace, policy)
    if target.max_drop is not None:
        threshold = _for_quality(trace, policy, target.max_drop, metric)
    elif target.agreement is not None:
        threshold = _for_agreement(trace, policy, target.agreement)
    elif target.speedup is not None:
        threshold = _for_speedup(trace, policy, target.speedup)
    else:
        assert target.latency_ms is not None  # Target holds exactly one
        assert cost is not None
        threshold = _for_latency(trace, policy, target.latency_ms, cost)
    policy, thresholds = as_run(policy, threshold, trace.depth)
    asked = {name: value for name, value in asdict(target).items() if value is not None}
    return OperatingPoint(policy_data(policy), thresholds, asked, measure(trace, policy, thresholds, metric, cost))


def as_run(policy: Policy, threshold: float, exits: int) -> tuple[Policy, tuple[float, ...]]:
    """A policy with a threshold, and how they run: with a threshold for each exit but the last.

    Lines need not run (see `offramp.policies.exit_scaling`).
    """
    if isinstance(policy, Ensemble):
        inner, thresholds = as_run(policy.policy, threshold, exits)
        return Ensemble(inner, policy.members), thresholds
    if isinstance(policy, ExitScaled):
        return policy.policy, policy.thresholds(threshold)
    return policy, (threshold,) * (exits - 1)


def checked(trace: Trace, policy: Policy) -> tuple[Tensor, Tensor]:
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


def _for_quality(trace: Trace, policy: Policy, max_drop: float, metric: str | None) -> float:
    seen = curve(trace, policy, metric)
    full = layerwise(trace, metric)[-1]  # not the score of "never": an ensemble may change that answer
    if full <= 0:
        raise CannotReach(f"the full model scores {full:.4g}: not above 0, so there is no share of it to keep")
    return _loosest(seen.thresholds, seen.scores >= (1 - max_drop) * full - 1e-12)


def _for_agreement(trace: Trace, policy: Policy, agreement: float) -> float:
    if trace.problem_type == REGRESSION:
        raise NotApplicable("agreement compares classes and a regression has none; use max_drop or speedup")
    score, logits = run_policy(policy, trace)
    given = predictions(ExitOutput(logits, problem_type=trace.problem_type))  # (L, N, G)
    full = predictions(trace.exit(trace.depth - 1))  # (N, G)
    same = (given == full).all(dim=-1, keepdim=True).double()  # (L, N, 1)
    swept = sweep(score, same)
    return _loosest(swept.thresholds, swept.statistics[:, 0] >= agreement * len(trace) - 1e-9)


def _for_speedup(trace: Trace, policy: Policy, speedup: float) -> float:
    swept = sweep(run_policy(policy, trace)[0], at_exits(trace, trace.layer_numbers))
    reached = trace.layer_numbers[-1] * len(trace) / swept.statistics[:, 0]  # (K,) rises as thresholds fall
    fast_enough = reached >= speedup * (1 - 1e-12)
    if not fast_enough.any():
        best = f"the best is {reached[-1]:.4g}"
        raise CannotReach(f"{policy} cannot reach a speed-up of {speedup:g} here; {best}")
    return swept.thresholds[fast_enough.long().argmax()].item()


def _for_latency(trace: Trace, policy: Policy, latency_ms: float, cost: CostTable) -> float:
    cost.check(trace.layer_numbers)
    swept = sweep(run_policy(policy, trace)[0], at_exits(trace, cost.ms))
    means = swept.statistics[:, 0] / len(trace)  # (K,) never rises as thresholds fall
    fast_enough = means <= latency_ms * (1 + 1e-12)
    if not fast_enough.any():
        best = f"the best is {means[-1]:.4g}"
        raise CannotReach(f"{policy} cannot answer in {latency_ms:g} ms a sample here; {best}")
    return swept.thresholds[fast_enough.long().argmax()].item()


def _loosest(thresholds: Tensor, holds: Tensor) -> float:
    """The last of the falling thresholds (K,) before the first that does not hold."""
    good = int(holds.long().cumprod(dim=0).sum())
    if good == 0:
        raise CannotReach("not even full depth holds the target")
    return thresholds[good - 1].item()
