"""A policy runs over a trace once a call, and what is chosen there is what the deployed policy does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from offramp.calibration.calibrate import calibrate
from offramp.calibration.certify import certify
from offramp.calibration.ladder import ladder
from offramp.calibration.outputs import loosest
from offramp.evaluation.measure import measure
from offramp.policies.confidence import Margin
from offramp.policies.fitting import fit_lines
from offramp.policies.replay import replay
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Target
from offramp.types.problem_types import SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace

EXITS = 5
TRACE = random_trace(SINGLE_LABEL, depth=EXITS, samples=120)
OTHERS = random_trace(SINGLE_LABEL, depth=EXITS, samples=90, seed=1)
COST = CostTable((1, 2, 3, 4, 5), (1.0, 2.0, 3.0, 4.0, 5.0), 0.5, "torch", 1, 9.0, "a machine")
POLICIES: dict[str, dict[str, Any]] = {
    "plain": {"name": "margin"},
    "per exit": {"name": "margin", **fit_lines("margin", OTHERS)},
    "ensemble": {"name": "margin", **fit_lines("margin", OTHERS), "ensemble": "run"},
}
CALLS: dict[str, Callable[[Trace, Any], object]] = {
    "max_drop": lambda trace, policy: calibrate(trace, policy, Target(max_drop=0.05)),
    "agreement": lambda trace, policy: calibrate(trace, policy, Target(agreement=0.9)),
    "speedup": lambda trace, policy: calibrate(trace, policy, Target(speedup=1.5)),
    "latency_ms": lambda trace, policy: calibrate(trace, policy, Target(latency_ms=3), cost=COST),
    "certify": lambda trace, policy: certify(trace, policy, "agreement", 0.2, 0.3),
    "ladder": ladder,
    "certified ladder": lambda trace, policy: ladder(trace, policy, delta=0.5),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_runs_the_policy_over_the_trace_once(call: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    step = Margin.step

    def counting(self: Margin, exit: int, *rest: Any) -> Any:
        exits.append(exit)
        return step(self, exit, *rest)

    monkeypatch.setattr(Margin, "step", counting)
    CALLS[call](TRACE, POLICIES[policy])
    assert exits == list(range(EXITS))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_point_is_measured_as_the_deployed_policy_replays(policy: str) -> None:
    points = {**ladder(TRACE, POLICIES[policy]), "sure": certify(TRACE, POLICIES[policy], "agreement", 0.2, 0.3)}
    assert len(points) > 3
    for point in points.values():
        assert "lines" not in point.policy
        assert point.measured == measure(TRACE, point.policy, point.thresholds)
        answers = replay(TRACE, point.policy, point.thresholds)
        assert point.measured.mean_exit == answers.exit_layers.double().mean().item()


@pytest.mark.parametrize(
    ("holds", "among", "expected"),
    [
        ([True, True, False, True], None, 3.0),
        ([True, True, False, True], [True, False, True, True], 4.0),
        ([True, True, True, True], [True, False, False, False], 4.0),
        ([False, True, True, True], None, None),
    ],
)
def test_the_loosest_threshold_is_before_the_first_failure(
    holds: list[bool], among: list[bool] | None, expected: float | None
) -> None:
    allowed = None if among is None else torch.tensor(among)
    assert loosest(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor(holds), allowed) == expected
