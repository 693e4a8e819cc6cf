"""A point that is certified on audited rows: never looser, and as strict as its rows ask for."""

from __future__ import annotations

import math

import pytest
import torch

from offramp.calibration.from_audit import stricter_point
from offramp.errors import CannotReach, NotApplicable
from offramp.policies.registry import as_policy
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace


def trace_of(differing: float, rows: int = 4000, seed: int = 0) -> Trace:
    """Return a trace of three exits; at the first two a row is the surer, the likelier its answer is the last one's."""
    random = torch.Generator().manual_seed(seed)
    sure = torch.rand(2, rows, generator=random)  # the largest probability less 0.5, times 2
    right = torch.rand(2, rows, generator=random) > differing * (1 - sure)
    full = torch.randint(2, (rows,), generator=random)
    odds = torch.log((1 + sure) / (1 - sure).clamp(min=1e-4))
    early = torch.where(right == full.bool(), odds, -odds)  # (2, N) for class 1
    logits = torch.cat((early, (2.0 * full - 1).unsqueeze(0) * 9))  # (3, N)
    return Trace(
        torch.stack((torch.zeros_like(logits), logits), dim=-1), provenance={"engine": "torch", "weights": "w"}
    )


@pytest.mark.parametrize("thresholds", [(0.2, 0.2), (0.1, 0.3), (math.inf, 0.1), (-math.inf, 0.2)])
def test_thresholds_rise_together_until_the_rows_hold_the_level(thresholds: tuple[float, ...]) -> None:
    trace, other = trace_of(0.2), trace_of(0.2, seed=1)
    old = OperatingPoint({"name": "margin"}, thresholds)
    point = stricter_point(trace, old, 0.05, 0.05)
    assert all(new >= before for new, before in zip(point.thresholds, thresholds, strict=True))
    assert point.thresholds != thresholds
    for rows, most in ((trace, 0.05), (other, 0.06)):
        early = replay(rows, as_policy(point.policy), point.thresholds).logits.argmax(dim=-1)
        differs = (early != rows.logits[-1].argmax(dim=-1)).double().mean().item()
        assert 0.03 < differs < most  # not stricter than it must be
    assert point.agreement is not None
    assert point.measured is not None
    assert point.agreement.observed == pytest.approx(1 - point.measured.agreement)  # type: ignore[operator]
    assert (point.agreement.level, point.agreement.delta, point.agreement.rows) == (0.05, 0.05, 4000)
    assert (point.certificate, point.measured.score) == (None, None)


def test_thresholds_that_hold_stay_as_they_are() -> None:
    old = OperatingPoint({"name": "margin"}, (0.5, 0.75))
    point = stricter_point(trace_of(0.01), old, 0.05, 0.05)
    assert point.thresholds == pytest.approx((0.5, 0.75), abs=1e-9)
    early = replay(trace_of(0.01), as_policy(old.policy), old.thresholds).logits.argmax(dim=-1)
    assert point.agreement is not None
    differs = (early != trace_of(0.01).logits[-1].argmax(dim=-1)).double().mean().item()
    assert point.agreement.observed == pytest.approx(differs)


def test_what_cannot_be_moved_or_certified_is_refused() -> None:
    old = OperatingPoint({"name": "margin"}, (0.1, 0.1))
    with pytest.raises(CannotReach, match="cannot certify an early exit on 30 rows; needs about"):
        stricter_point(trace_of(0.1, 30), old, 0.05, 0.05)
    with pytest.raises(CannotReach, match="the thresholds differ by exit"):
        stricter_point(trace_of(0.1), OperatingPoint({"name": "patience"}, (1.0, 2.0)), 0.05, 0.05)
    with pytest.raises(NotApplicable, match="certainty needs a learned gate"):
        stricter_point(trace_of(0.1), OperatingPoint({"name": "certainty"}, (0.1, 0.2)), 0.05, 0.05)


def test_several_labels_are_compared_at_the_thresholds_of_the_point() -> None:
    trace = random_trace(MULTI_LABEL, samples=2000)
    old = OperatingPoint({"name": "margin"}, (0.0,) * 5, label_thresholds=(0.9, 0.2, 0.5))
    point = stricter_point(trace, old, 0.5, 0.05)
    assert point.label_thresholds == old.label_thresholds
    odds = torch.logit(torch.tensor(old.label_thresholds))
    early = replay(trace, as_policy(point.policy), point.thresholds).logits > odds
    differs = (early != (trace.logits[-1] > odds)).any(dim=-1).double().mean().item()
    assert point.agreement is not None
    assert point.agreement.observed == pytest.approx(differs)
    assert 0.4 < differs < 0.5
