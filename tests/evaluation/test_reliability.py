from __future__ import annotations

import math

import pytest
import torch

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.metrics import calibration_error
from offramp.evaluation.reliability import Bin, at_temperatures, mean_deviation, reliability
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace


def test_a_bin_has_its_answers_their_confidence_and_the_share_that_is_right() -> None:
    """Five bins: .55 right; .7 wrong and .75 right; .9 right. An interval of one or none among n ends at a root."""
    first = torch.tensor([0.55, 0.7, 0.75, 0.9], dtype=torch.float64)
    logits = torch.stack((first.log(), (1 - first).log()), dim=-1)[None]
    (exit,) = reliability(Trace(logits, torch.tensor([0, 1, 0, 0])), bins=5)
    assert exit.layer == 1
    assert exit.bins == (
        Bin(1, pytest.approx(0.55), 1.0, (pytest.approx(0.025), 1.0)),
        Bin(2, pytest.approx(0.725), 0.5, (pytest.approx(1 - math.sqrt(0.975)), pytest.approx(math.sqrt(0.975)))),
        Bin(1, pytest.approx(0.9), 1.0, (pytest.approx(0.025), 1.0)),
    )
    assert exit.error == pytest.approx((0.45 + 2 * 0.225 + 0.1) / 4)
    by_chance = [2 * p * (1 - p) for p in (0.55, 0.9)]  # one answer with p is off by 1 - p with p, by p with 1 - p
    of_two = 0.725**2 * 0.275 + 2 * 0.725 * 0.275 * 0.225 + 0.275**2 * 0.725
    assert exit.error_by_chance == pytest.approx((sum(by_chance) + 2 * of_two) / 4)


@pytest.mark.parametrize(("count", "share"), [(1, 0.3), (7, 0.37), (40, 0.99), (12, 0.5), (9, 1 - 1e-15), (3, 1.0)])
def test_the_mean_deviation_is_that_of_all_outcomes(count: int, share: float) -> None:
    outcomes = [
        math.comb(count, hits) * share**hits * (1 - share) ** (count - hits) * abs(hits / count - share)
        for hits in range(count + 1)
    ]
    assert mean_deviation(count, share) == pytest.approx(math.fsum(outcomes), abs=1e-12)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_the_error_is_the_calibration_error_and_no_answer_is_lost(problem_type: str) -> None:
    trace = random_trace(problem_type, layers=torch.arange(6))
    exits = reliability(trace)
    assert [exit.layer for exit in exits] == list(range(6))
    assert [exit.error for exit in exits] == pytest.approx(calibration_error(trace).tolist())
    answers = len(trace) * (3 if problem_type == MULTI_LABEL else 1)
    assert {sum(one.answers for one in exit.bins) for exit in exits} == {answers}


def test_temperatures_divide_the_logits_of_the_exits_that_a_point_reads() -> None:
    trace = random_trace(SINGLE_LABEL)
    point = OperatingPoint({"name": "margin", "temperatures": [2.0, 0.5]}, (0.5,), exit_layers=(2, 6))
    tempered = at_temperatures(trace, point)
    assert tempered is not None
    assert list(tempered.layer_numbers) == [2, 6]
    assert torch.equal(tempered.logits, torch.stack((trace.logits[1] / 2, trace.logits[5] * 2)))
    assert at_temperatures(trace, OperatingPoint({"name": "margin"}, (0.5,) * 5)) is None


def test_what_has_no_reliability_is_refused() -> None:
    with pytest.raises(NotApplicable, match="a regression has none"):
        reliability(random_trace(REGRESSION))
    with pytest.raises(InvalidInput, match="the trace has none"):
        reliability(Trace(torch.zeros(2, 3, 2)))
