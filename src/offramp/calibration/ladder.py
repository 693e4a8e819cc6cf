"""A ladder of operating points, from full depth down, for a server to step down under load.

All rungs have one policy and one number each (with `lines` it means a threshold at each exit), so a lower rung has
looser thresholds, and no sample exits later there. A name is the target, whatever the data: "keep-99" keeps 99 % of the
full model's score, "2x" takes half of its cost (`Measured.speedup`).

There are two families of certificates. Those of quality (`OperatingPoint.certificate`) are made where they are asked
for, on rungs that keep a share of the score, and hold at once. Those of agreement (`OperatingPoint.agreement`) are on
every rung but "full", where the rows permit it, and hold at once too. Each family has its own confidence; that of both
together is less.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from offramp.calibration.agreement import DELTA, LEVELS, agreement_bounds
from offramp.calibration.calibrate import point_for
from offramp.calibration.certify import certified_point, check_certifiable, fit_rows_text, refuse_fit_rows
from offramp.calibration.label_thresholds import LabelThresholds
from offramp.calibration.lexical_rows import warn_of_lexical_rows
from offramp.calibration.outputs import PolicyOutputs, policy_outputs
from offramp.errors import CannotReach, InvalidInput
from offramp.policies.base import Policy
from offramp.policies.registry import as_policy
from offramp.types.ladder_names import DROPS, SPEEDUPS
from offramp.types.operating_point import OperatingPoint, Target, rows_text
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace

log = logging.getLogger("offramp")


def ladder(
    trace: Trace,
    policy: Policy | Mapping[str, Any] | str,
    metric: str | None = None,
    *,
    delta: float | None = None,
    label_thresholds: LabelThresholds | None = None,
) -> dict[str, OperatingPoint]:
    """Choose operating points by name (LADDER_NAMES), each with a lower mean cost than the one before.

    Costs are multiply-accumulates where the trace has them, else layers. A rung that is no faster than one before it is
    left out, as is one that cannot be reached; the log names them. Where "keep-99" takes less than half of the cost,
    "2x" comes before it. The policy runs over the trace once.

    With `delta` the rungs of DROPS are certified (`offramp.certify`, risk "drop"), each at delta / 3. Each alone would
    hold at the full delta: its thresholds are tested in a fixed order. But rungs have their own levels and fail at
    their own thresholds, on rows that one of them loses and another does not. Nothing orders these tests, so only the
    sum of their chances bounds the chance that any rung fails. The certificate is of the whole ladder: all its bounds
    hold at once, except for a share delta of the draws of rows, whichever rung the load may choose.

    Every rung but "full" has a certificate on agreement too (`offramp.calibration.agreement`), at `delta`, or DELTA
    without it. It binds the rung to no engine. It takes classes, and rows that the policy was not fitted on; where
    there is none, the log says why.

    Args:
        trace: a full-depth pass over data that is neither trained on nor reported on, with labels.
        policy: a policy, its name, or its data form.
        metric: of which DROPS keep a share, where it is not certified; None = the problem's default.
        delta: above 0, below 1; None = the score is not certified.
        label_thresholds: for several labels, of all points; with `delta` they are chosen on other rows. None = 0.5.

    Raises:
        InvalidInput: no labels; samples without a finite answer; a single exit; as `certify`, where delta is given.
        NotApplicable: policy or metric have no meaning for this kind of problem; certificates for a regression.

    Example:
        >>> points = offramp.ladder(trace, "entropy")
        >>> list(points)
        ['full', 'keep-99.5', ...]
        >>> points["full"].thresholds
        (inf, inf, inf)
    """
    policy = as_policy(policy)
    if delta is not None:
        refuse_fit_rows(trace, policy, label_thresholds)
    refusal = fit_rows_text(trace, policy, label_thresholds)
    return ladder_points(policy_outputs(trace, policy, label_thresholds), metric, delta, refusal)


def ladder_points(
    outputs: PolicyOutputs, metric: str | None, delta: float | None, refusal: str = ""
) -> dict[str, OperatingPoint]:
    """Return `ladder`'s points for a policy that has run over the trace; arguments and errors as there.

    `refusal` says why these rows cannot certify agreement; empty where they can.
    """
    points = {"full": outputs.point(math.inf, {}, metric)}
    outputs = _with_agreement(outputs, DELTA if delta is None else delta, refusal)
    share = None if delta is None else delta / len(DROPS)
    if share is not None:
        check_certifiable(outputs.trace, "drop", min(DROPS.values()), share)
    else:
        warn_of_lexical_rows(outputs.trace)
    for name in (*DROPS, *SPEEDUPS):
        try:
            if name in SPEEDUPS:
                points[name] = point_for(outputs, Target(speedup=SPEEDUPS[name]), metric)
            elif share is None:
                points[name] = point_for(outputs, Target(max_drop=DROPS[name]), metric)
            else:
                points[name] = certified_point(outputs, "drop", DROPS[name], share)
        except CannotReach as error:
            log.info("without %s: %s", name, error)
    rungs = _falling(points)
    if without := [name for name in list(rungs)[1:] if outputs.agreement and rungs[name].agreement is None]:
        most, rows = 100 * LEVELS[-1], rows_text(len(outputs.trace))
        log.info("no certificate on agreement for %s: not even %g %% holds on %s", ", ".join(without), most, rows)
    return rungs


def _with_agreement(outputs: PolicyOutputs, delta: float, refusal: str) -> PolicyOutputs:
    """Return outputs whose points have certificates on agreement; as they are, with a line in the log, if none hold."""
    if outputs.trace.problem_type == REGRESSION:
        refusal = "a regression has no answers to compare"
    try:
        if refusal:
            raise InvalidInput(refusal)
        bounds = agreement_bounds(outputs, delta)
    except InvalidInput as error:
        log.info("no certificates on agreement: %s", error)
        return outputs
    return replace(outputs, agreement=bounds.certificate)


def _falling(points: Mapping[str, OperatingPoint]) -> dict[str, OperatingPoint]:
    """Return the points by falling mean cost, without those that are no faster than one before them."""
    rungs: dict[str, OperatingPoint] = {}
    last = 0.0
    for name in sorted(points, key=lambda name: _speedup(points[name])):  # equal ones stay in order
        if rungs and _speedup(points[name]) <= last:
            certificate = points[name].certificate
            reason = f" ({certificate.note})" if certificate and certificate.note else ""
            log.info("without %s: no faster than %s%s", name, next(reversed(rungs)), reason)
            continue
        rungs[name], last = points[name], _speedup(points[name])
    return rungs


def _speedup(point: OperatingPoint) -> float:
    return 0.0 if point.measured is None else point.measured.speedup
