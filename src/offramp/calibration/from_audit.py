"""A stricter operating point from the rows that a server audited after an alarm.

The thresholds that drifted are moved together, by one number, up to "never": so they are certified as any others
(`offramp.certify`), and none is looser than it was. With a score in 0..1 the number is one of log-odds, else the policy
must have one threshold for all exits. The rows were drawn without a look at them, and none of them is evidence of the
alarm; so they certify whatever raised it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from offramp.calibration.certify import certified_point, check_certifiable
from offramp.calibration.label_thresholds import LabelThresholds
from offramp.calibration.outputs import policy_outputs
from offramp.errors import CannotReach
from offramp.evaluation.measure import measure_answers
from offramp.policies.base import Policy
from offramp.policies.ensemble import Ensemble
from offramp.policies.exit_scaling import LARGEST_LOG_ODDS, ExitScaled
from offramp.policies.registry import as_policy
from offramp.policies.replay import answers_at
from offramp.types.operating_point import OperatingPoint
from offramp.types.trace import Trace

NEVER = 1e6
"""How far below the others, in log-odds, an exit is that has the threshold "never" already."""


def stricter_point(trace: Trace, point: OperatingPoint, level: float, delta: float) -> OperatingPoint:
    """Return a point whose answers differ from the full model's on at most a share `level` of rows like these.

    Args:
        trace: (L, N, C) of audited rows, at least the exits that the point reads; labels are not used.
        point: whose thresholds are too loose for such rows.
        level: of the certificate, above 0, below 1.
        delta: of the certificate, above 0, below 1.

    Returns:
        A point with `agreement` and `measured` of these rows, and without a certificate of quality, which takes labels.

    Raises:
        CannotReach: the rows do not suffice for any early exit, or the thresholds cannot be moved together.
        NotApplicable: the policy reads a gate's certainty, and the trace has none.
        InvalidInput: the trace does not have the exits; rows without a finite answer.
    """
    trace = trace.select(point.layers_read(trace.layer_numbers))
    check_certifiable(trace, "agreement", level, delta)
    policy, least = _movable(as_policy(point.policy), point.thresholds)
    labels = None if point.label_thresholds is None else LabelThresholds(point.label_thresholds)
    outputs = policy_outputs(trace, policy, labels)
    certified = certified_point(outputs, "agreement", level, delta)
    assert certified.certificate is not None
    if certified.certificate.note:
        raise CannotReach(certified.certificate.note)
    thresholds = tuple(map(max, certified.thresholds, least))
    answers = answers_at(outputs.trace, outputs.deployed_scores, outputs.logits, thresholds)
    measured = measure_answers(outputs.answers, answers)
    assert measured.agreement is not None
    agreement = replace(certified.certificate, observed=1 - measured.agreement)
    return replace(certified, thresholds=thresholds, measured=measured, certificate=None, agreement=agreement)


def _movable(policy: Policy, thresholds: Sequence[float]) -> tuple[Policy, tuple[float, ...]]:
    """Return a policy of which one threshold moves all of these, and the thresholds below which it must not go.

    Raises:
        CannotReach: they differ, and the policy's score has no log-odds.
    """
    if len(set(thresholds)) == 1:
        return policy, tuple(thresholds)
    inner = policy.policy if isinstance(policy, Ensemble) else policy
    if not inner.unit_interval:
        raise CannotReach("the thresholds differ by exit, and the policy's score has no common scale for them")
    scaled = ExitScaled(inner, (*((_constant(threshold), 1.0) for threshold in thresholds), (0.0, 1.0)))
    moved = replace(policy, policy=scaled) if isinstance(policy, Ensemble) else scaled
    return moved, scaled.thresholds(0.0)


def _constant(threshold: float) -> float:
    """Return what takes the log-odds of a threshold to 0."""
    if threshold >= 1:
        return -NEVER
    odds = -math.inf if threshold <= 0 else math.log(threshold / (1 - threshold))
    return -NEVER if odds >= LARGEST_LOG_ODDS else -max(odds, -LARGEST_LOG_ODDS)
