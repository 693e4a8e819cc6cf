"""Thresholds for a target, exact over all scores seen.

FastBERT and PABEE search a grid. Here one sweep from the strictest threshold to the loosest passes every score that was
seen, so the answer is exact, and it lies midway between two neighbouring scores, where float noise cannot tip it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from offramp.errors import CannotReach, InvalidInput, NotApplicable
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import layerwise
from offramp.evaluation.sweep import curve, per_exit_constant, sweep
from offramp.policies.base import Policy
from offramp.policies.ensemble import Ensemble
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.policies.replay import finite_outputs, run_policy
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace


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
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one of the problem.
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
    finite_outputs(trace, policy)
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
    policy, thresholds = deployed(policy, threshold, trace.depth)
    asked = {name: value for name, value in asdict(target).items() if value is not None}
    return OperatingPoint(policy_to_dict(policy), thresholds, asked, measure(trace, policy, thresholds, metric, cost))


def deployed(policy: Policy, threshold: float, exits: int) -> tuple[Policy, tuple[float, ...]]:
    """A policy with a threshold, and how they run: with a threshold for each exit but the last.

    Lines need not run (see `offramp.policies.exit_scaling`).
    """
    if isinstance(policy, Ensemble):
        inner, thresholds = deployed(policy.policy, threshold, exits)
        return Ensemble(inner, policy.members), thresholds
    if isinstance(policy, ExitScaled):
        return policy.policy, policy.thresholds(threshold)
    return policy, (threshold,) * (exits - 1)


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
    swept = sweep(run_policy(policy, trace)[0], per_exit_constant(trace, trace.layer_numbers))
    reached = trace.layer_numbers[-1] * len(trace) / swept.statistics[:, 0]  # (K,) rises as thresholds fall
    fast_enough = reached >= speedup * (1 - 1e-12)
    if not fast_enough.any():
        best = f"the best is {reached[-1]:.4g}"
        raise CannotReach(f"{policy} cannot reach a speed-up of {speedup:g} here; {best}")
    return swept.thresholds[fast_enough.long().argmax()].item()


def _for_latency(trace: Trace, policy: Policy, latency_ms: float, cost: CostTable) -> float:
    cost.check(trace.layer_numbers)
    swept = sweep(run_policy(policy, trace)[0], per_exit_constant(trace, cost.ms))
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
