"""A threshold with a standard error to spare: the rows that it allows, by hand, and the error, by leaving out rows."""

import math
from dataclasses import replace

import pytest
import torch

from offramp.calibration.calibrate import calibrate
from offramp.calibration.cautious import MOST_TESTED, _contributions, _spread, cautious_point
from offramp.calibration.outputs import policy_outputs
from offramp.calibration.prepare import prepare_policy
from offramp.errors import CannotReach
from offramp.evaluation.metrics import METRICS
from offramp.evaluation.sweep import sweep
from offramp.policies.registry import load_policy
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace

ROWS = 100


def with_losses(*ranks: int) -> Trace:
    """Return a trace of two exits: the last one is right, the first one wrong for the rows of these ranks by margin."""
    margins = torch.linspace(4, 1, ROWS)
    margins[list(ranks)] *= -1
    first = torch.stack((margins, torch.zeros(ROWS)), dim=-1)
    return Trace(torch.stack((first, torch.tensor([9.0, 0.0]).expand(ROWS, 2))), torch.zeros(ROWS, dtype=torch.int64))


def left(point: OperatingPoint) -> int:
    """Return how many rows leave at the first exit."""
    assert point.measured is not None
    return round(ROWS * (2 - point.measured.mean_exit))


def test_the_lost_rows_and_their_standard_error_stay_below_what_is_allowed() -> None:
    """Of 100 right answers 5 may go: with l lost the error is sqrt(l (1 - l / 100)), and 3 + 1.71 < 5 < 4 + 1.96."""
    outputs = policy_outputs(with_losses(20, 30, 40, 50, 60, 70), "margin")
    point = cautious_point(outputs, 0.05)
    assert left(point) == 50  # the rows before the fourth loss
    assert left(calibrate(outputs.trace, "margin", Target(max_drop=0.05))) == 70
    assert point.target == {"max_drop": 0.05}
    assert point.measured.score == pytest.approx(0.97)


def test_without_a_loss_there_is_no_error_and_with_one_too_many_nothing_leaves() -> None:
    assert left(cautious_point(policy_outputs(with_losses(), "margin"), 0.0)) == ROWS
    assert cautious_point(policy_outputs(with_losses(0), "margin"), 0.01).thresholds == (math.inf,)
    wrong = with_losses(*range(ROWS))
    sure_of_the_first = replace(wrong, logits=wrong.logits * torch.tensor([1.0, 0.1]).view(2, 1, 1))
    wrong_at_full_depth = policy_outputs(sure_of_the_first, load_policy("margin", ensemble="all"))
    with pytest.raises(CannotReach, match="not even full depth"):
        cautious_point(wrong_at_full_depth, 0.01)


@pytest.mark.parametrize(
    ("problem_type", "metric"),
    [
        *((SINGLE_LABEL, name) for name in ("accuracy", "macro-f1", "matthews")),
        *((MULTI_LABEL, name) for name in ("accuracy", "f1", "macro-f1")),
        (REGRESSION, "pearson"),
    ],
)
def test_the_standard_error_is_that_of_the_jackknife(problem_type: str, metric: str) -> None:
    trace, rule = random_trace(problem_type, samples=400), METRICS[metric]
    early, full = (rule.statistics(trace.exit(exit), trace.labels) for exit in (2, 5))

    def kept(rows: torch.Tensor) -> torch.Tensor:
        return rule.value(early[rows].sum(dim=0), len(rows)) - 0.99 * rule.value(full[rows].sum(dim=0), len(rows))

    others = torch.stack([kept(torch.cat((torch.arange(row), torch.arange(row + 1, 400)))) for row in range(400)])
    jackknife = ((others - others.mean()).square().sum() * 399 / 400).sqrt()
    error = _spread(_contributions(rule, early) - 0.99 * _contributions(rule, full))
    assert error.item() == pytest.approx(jackknife.item(), rel=0.03)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_the_default_point_is_never_looser_than_the_exact_one(problem_type: str) -> None:
    trace = random_trace(problem_type, samples=300, seed=3)
    prepared = prepare_policy(trace)
    thresholds = sweep(policy_outputs(prepared.rows, prepared.policy).scores, trace.logits[:, : len(prepared.rows), :1])
    assert len(thresholds.thresholds) > 2 * MOST_TESTED
    default, exact = (prepared.calibrate(Target(max_drop=0.05), to_spare=to_spare) for to_spare in (True, False))
    assert prepared.calibrate(Target(speedup=1.5), to_spare=True) == prepared.calibrate(Target(speedup=1.5))
    pairs = list(zip(default.thresholds, exact.thresholds, strict=True))
    assert all(one >= other for one, other in pairs)
    assert default.measured.mean_exit > exact.measured.mean_exit
