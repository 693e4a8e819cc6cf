"""Thresholds for a target, exact over all scores.

FastBERT and PABEE search a grid. Here one sweep from the strictest threshold to the loosest passes every score of the
trace, so the answer is exact, and it lies midway between two neighbouring scores, where float noise cannot tip it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offramp.calibration.label_thresholds import LabelThresholds
from offramp.calibration.lexical_rows import warn_of_lexical_rows
from offramp.calibration.outputs import PolicyOutputs, loosest, policy_outputs
from offramp.errors import CannotReach, InvalidInput, NotApplicable
from offramp.evaluation.caveats import undefined
from offramp.evaluation.metrics import layerwise
from offramp.evaluation.sweep import per_exit_constant, score_curve, sweep
from offramp.policies.base import Policy
from offramp.policies.registry import policy_text, policy_to_dict
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
    label_thresholds: LabelThresholds | None = None,
) -> OperatingPoint:
    """Choose the threshold that meets a target: one for all exits, of a policy with `lines` one for each.

    For `max_drop` and `agreement` it is the loosest threshold such that it and all stricter ones hold the target on
    this trace; for `speedup` and `latency_ms` the strictest one that is fast enough. The policy runs over the trace
    once.

    From a trace in one call, as `offramp calibrate` does it, with the policy fitted on other rows than those that
    choose the threshold: `offramp.calibration.prepare.fit_and_calibrate(trace, target)`.

    Args:
        trace: a full-depth pass over data that is neither trained on nor reported on; labels for `max_drop`.
        policy: a policy, its name, or its data form.
        target: the requirement.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the problem's default.
        cost: the time to each exit (`offramp.measure_costs`). `latency_ms` needs it; `speedup` is of these times, else
            of the trace's multiply-accumulates, else of layers; with other targets it is only measured.
        label_thresholds: for several labels, of the early answers and the full model's
            (`offramp.calibration.label_thresholds`); None = 0.5.

    Raises:
        CannotReach: no threshold meets the target; the message names the best.
        InvalidInput: no labels where they are needed; samples without a finite answer; a single exit; `latency_ms`
            without a cost table; a table of other exits.
        NotApplicable: policy, metric or target have no meaning for this kind of problem.

    Example:
        >>> point = offramp.calibrate(trace, "entropy", offramp.Target(speedup=2))
        >>> point.policy, len(point.thresholds)
        ({'name': 'entropy'}, 3)
        >>> point.measured.speedup >= 2
        True
    """
    if target.kind == "latency_ms" and cost is None:
        raise InvalidInput("latency_ms needs the time to each exit: cost=offramp.measure_costs(folder, texts)")
    warn_of_lexical_rows(trace)
    return point_for(policy_outputs(trace, policy, label_thresholds), target, metric, cost)


def point_for(
    outputs: PolicyOutputs, target: Target, metric: str | None = None, cost: CostTable | None = None
) -> OperatingPoint:
    """Return `calibrate`'s operating point for a policy that has run over the trace; arguments and errors as there."""
    trace, value = outputs.answers, target.value
    policy = policy_text(policy_to_dict(outputs.deployed))
    if target.kind == "max_drop":
        quality = score_curve(trace, outputs.scores, outputs.logits, metric)
        least = (1 - value) * _full_score(trace, metric) - 1e-12
        threshold = loosest(quality.thresholds, quality.scores >= least)
    elif target.kind == "agreement":
        agreed = sweep(outputs.scores, _agreement(outputs))
        threshold = loosest(agreed.thresholds, agreed.statistics[:, 0] >= value * len(trace) - 1e-9)
    else:
        thresholds, means = mean_costs(outputs, cost)  # (K,) each; means all but fall as thresholds fall
        if target.kind == "speedup":
            speedups = means[0] / means  # inf where the cost is 0
            limit = f"{policy} cannot reach a speed-up of {value:g} here; the best is {speedups.max():.4g}"
            threshold = strictest(thresholds, speedups >= value * (1 - 1e-12), limit)
        else:  # the target is latency_ms
            limit = f"{policy} cannot answer in {value:g} ms a sample here; the best is {means.min():.4g}"
            threshold = strictest(thresholds, means <= value * (1 + 1e-12), limit)
    if threshold is None:
        raise CannotReach("not even full depth holds the target")
    return outputs.point(threshold, {target.kind: value}, metric, cost)


def mean_costs(outputs: PolicyOutputs, cost: CostTable | None) -> tuple[Tensor, Tensor]:
    """Return falling thresholds (K,), the first of them inf, and the mean cost of a row at each, (K,).

    The unit is that of `Measured.speedup_of`.

    Raises:
        InvalidInput: a table of other exits.
    """
    trace = outputs.trace
    if cost is None:
        swept = sweep(outputs.scores, exit_costs(trace).unsqueeze(-1))
        return swept.thresholds, swept.statistics[:, 0] / len(trace)
    table, exits = cost.select(trace.layer_numbers), torch.eye(trace.depth, dtype=torch.float64)
    swept = sweep(outputs.scores, exits.unsqueeze(1).expand(-1, len(trace), -1))  # (K, L) rows that leave at each exit
    return swept.thresholds, table.expected_ms(swept.statistics / len(trace))


def exit_costs(trace: Trace) -> Tensor:
    """Return the costs (L, N) of a trace's rows at each exit: multiply-accumulates, else layers."""
    if trace.macs is not None:
        return trace.macs.double()
    return per_exit_constant(trace, trace.layer_numbers).squeeze(-1)


def strictest(thresholds: Tensor, fast_enough: Tensor, refusal: str) -> float:
    """Return the first of the falling thresholds (K,) that is fast enough, (K,) bool.

    Raises:
        CannotReach: none is; `refusal` is its message.
    """
    if not fast_enough.any():
        raise CannotReach(refusal)
    return thresholds[fast_enough.long().argmax()].item()


def _full_score(trace: Trace, metric: str | None) -> float:
    """Return the full model's score, not that of the threshold "never": an ensemble may change that answer."""
    full = layerwise(trace, metric)[-1]
    if full <= 0:
        if reason := undefined(trace, metric):
            raise CannotReach(f"{reason}, so there is no share of it to keep")
        remedy = "train longer, or choose another --metric"
        raise CannotReach(f"the full model scores {full:.4g}, not above 0: there is no share of it to keep; {remedy}")
    return full


def _agreement(outputs: PolicyOutputs) -> Tensor:
    """Return 1 where a sample's answer at an exit is the full model's, else 0; (L, N, 1)."""
    trace = outputs.answers
    if trace.problem_type == REGRESSION:
        raise NotApplicable("agreement compares classes and a regression has none; use max_drop, speedup or latency_ms")
    early = predictions(ExitOutput(outputs.logits, problem_type=trace.problem_type))  # (L, N, G)
    full = predictions(trace.exit(trace.depth - 1))  # (N, G)
    return (early == full).all(dim=-1, keepdim=True).double()
