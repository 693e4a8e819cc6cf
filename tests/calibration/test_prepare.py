"""From a trace in one call: which rows fit, which choose, and that the point is the one of the separate calls."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.calibration.calibrate import calibrate
from offramp.calibration.certify import certify
from offramp.calibration.exit_choice import choose_exits
from offramp.calibration.ladder import ladder
from offramp.calibration.prepare import PreparedPolicy, fit_and_calibrate, prepare_policy
from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.fitting import fit_default_policy, fit_lines, fit_policy, fit_temperatures, halves
from offramp.policies.registry import load_policy
from offramp.types.operating_point import Target
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes
from support.traces import random_trace

TRACE = random_trace(SINGLE_LABEL, samples=101)
FIT_HALF, CHOOSE_HALF = halves(TRACE)
TARGET = Target(max_drop=0.1)


def report(fitted: str) -> str:
    return f"{fitted} fitted on 51 rows, the threshold chosen on the other 50"


def prepared(rows: Trace, policy: Any, line: str, confidence: float | None = None) -> PreparedPolicy:
    return PreparedPolicy(policy, rows, confidence, line)


@pytest.mark.parametrize(
    ("policy", "options", "expected"),
    [
        ("entropy", {}, prepared(TRACE, load_policy("entropy"), "")),
        ({"ensemble": "run"}, {}, prepared(TRACE, load_policy("margin", ensemble="run"), "")),
        ("gain", {}, prepared(CHOOSE_HALF, fit_policy("gain", FIT_HALF), report("gain"))),
        (
            "entropy",
            {"temperature": True},
            prepared(CHOOSE_HALF, load_policy("entropy", **fit_temperatures(FIT_HALF)), report("temperatures")),
        ),
        (None, {"per_exit": True}, prepared(TRACE, load_policy("margin", **fit_lines("margin", TRACE)), "")),
        (
            "entropy",
            {"per_exit": True, "confidence": 0.9},
            prepared(
                CHOOSE_HALF,
                load_policy("entropy", **fit_lines("entropy", FIT_HALF)),
                report("thresholds for each exit"),
                0.9,
            ),
        ),
    ],
)
def test_fitted_numbers_and_thresholds_come_from_other_rows(
    policy: Any, options: dict[str, Any], expected: PreparedPolicy
) -> None:
    result = prepare_policy(TRACE, policy, **options)
    assert (result.policy, result.confidence, result.report) == (expected.policy, expected.confidence, expected.report)
    assert row_hashes(result.rows) == row_hashes(expected.rows)
    assert fit_and_calibrate(TRACE, Target(speedup=1.5), policy, **{**options, "confidence": None}).measured


@pytest.mark.parametrize(
    ("problem_type", "report"),
    [(SINGLE_LABEL, ""), (REGRESSION, "consistency fitted on 30 rows, the threshold chosen on the other 30")],
)
def test_nothing_asked_for_is_the_default_policy_and_says_which_rows_fitted(problem_type: str, report: str) -> None:
    trace = random_trace(problem_type, samples=60)
    policy, rows = fit_default_policy(trace)
    result = prepare_policy(trace)
    assert (result.policy, len(result.rows), result.report) == (policy, len(rows), report)
    assert fit_and_calibrate(trace, TARGET) == calibrate(rows, policy, TARGET)


def test_few_values_choose_whether_the_lexical_exit_is_read() -> None:
    """The half of three rows that chooses the threshold is not halved once more."""
    trace = random_trace(REGRESSION, depth=4, samples=3, layers=torch.arange(4))
    assert row_hashes(prepare_policy(trace, target=TARGET).rows) == row_hashes(halves(trace)[1])


@pytest.mark.parametrize(
    ("problem_type", "options", "expected"),
    [
        (SINGLE_LABEL, {"patience": 2}, "the default for classes is 'margin': 'margin' has no parameter 'patience'"),
        (REGRESSION, {"measure": "margin"}, "the default for a regression is 'stability': 'stability' has no"),
    ],
)
def test_a_parameter_that_the_default_policy_lacks_is_refused_with_its_name(
    problem_type: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidInput, match=rf"^no policy is named, and {expected}") as caught:
        prepare_policy(random_trace(problem_type), options)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match=r"^'margin' has no parameter 'patience'"):
        prepare_policy(TRACE, {"name": "margin", "patience": 2})


def test_a_confidence_certifies_the_target_and_the_ladder() -> None:
    entropy = prepare_policy(TRACE, "entropy", confidence=0.9)
    assert entropy.calibrate(Target(max_drop=0.2)) == certify(TRACE, "entropy", "drop", 0.2, 0.1)
    assert entropy.calibrate(Target(agreement=0.8)) == certify(TRACE, "entropy", "agreement", 0.2, 0.1)
    assert entropy.ladder() == ladder(TRACE, "entropy", delta=0.1)
    for target, metric in ((Target(speedup=2), None), (TARGET, "macro-f1")):
        with pytest.raises(InvalidInput, match="a confidence goes with max_drop"):
            entropy.calibrate(target, metric)
    with pytest.raises(NotApplicable, match="a regression has none"):
        fit_and_calibrate(random_trace(REGRESSION), TARGET, "stability", confidence=0.9)


def test_options_that_exclude_each_other_are_refused_and_data_is_not_changed() -> None:
    with pytest.raises(InvalidInput, match="choose one"):
        prepare_policy(TRACE, "margin", temperature=True, per_exit=True)
    with pytest.raises(InvalidInput, match="gain has a scale of its own"):
        prepare_policy(TRACE, "gain", per_exit=True)
    data = {"name": "margin"}
    assert isinstance(prepare_policy(TRACE, data, per_exit=True).policy, ExitScaled)
    assert data == {"name": "margin"}


def with_lexical(first: Tensor) -> Trace:
    """Return a trace whose exit before the first layer has these logits (N, C)."""
    logits = torch.cat((first.unsqueeze(0), TRACE.logits))
    return Trace(logits, TRACE.labels, layers=torch.arange(TRACE.depth + 1))


NOISE = with_lexical(torch.randn(TRACE.logits[0].shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("options", [{}, {"policy": "margin"}, {"policy": "gain"}, {"temperature": True}])
def test_a_lexical_exit_that_does_not_pay_is_left_out_and_one_that_does_is_read(options: dict[str, Any]) -> None:
    result = prepare_policy(NOISE, **options)
    assert result.report.splitlines()[-1].startswith("the lexical exit is not read: for max_drop 0.01 on ")
    for target in (TARGET, Target(speedup=1.5)):
        assert result.calibrate(target).exit_layers == tuple(TRACE.layer_numbers)
    assert result.ladder()["full"].exit_layers == tuple(TRACE.layer_numbers)
    knows = prepare_policy(with_lexical(9 * TRACE.logits[-1]), **options)
    assert knows.calibrate(TARGET).exit_layers == (0, *TRACE.layer_numbers)
    assert "lexical" not in knows.report


def test_with_a_confidence_the_rows_that_fit_choose_the_exits() -> None:
    result = prepare_policy(NOISE, "margin", per_exit=True, confidence=0.9)
    fit_half, choose_half = halves(NOISE)
    assert result.exits == choose_exits(fit_half, lambda rows: load_policy("margin", **fit_lines("margin", rows)))
    assert set(result.exits.fitted_on) == set(row_hashes(fit_half))
    assert len(result.rows) == len(choose_half)
    assert result.calibrate(TARGET).exit_layers == tuple(TRACE.layer_numbers)
    assert prepare_policy(NOISE, "entropy", confidence=0.9).calibrate(TARGET).exit_layers[0] == 0  # no rows fit


ONE_ROW, NO_ANSWERS = TRACE.take(torch.tensor([0])), replace(TRACE, logits=torch.full_like(TRACE.logits, math.nan))


@pytest.mark.parametrize("options", [{"per_exit": True}, {"per_exit": True, "confidence": 0.9}, {"temperature": True}])
def test_rows_that_all_fail_are_counted_and_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"^all 101 samples have logits that are not finite; a model or"):
        prepare_policy(NO_ANSWERS, "margin", **options)
    some = TRACE.logits.clone()
    some[2, 7, 1] = math.inf
    with pytest.raises(InvalidInput, match=r"^1 of 101 samples have logits that are not finite; leave them out first$"):
        prepare_policy(replace(TRACE, logits=some), "margin", **options)


def test_one_row_certifies_nothing_and_is_not_halved() -> None:
    note = fit_and_calibrate(ONE_ROW, Target(agreement=0.99), "margin", confidence=0.95).certificate.note
    assert note == "cannot certify an early exit on 1 row; needs about 299 rows"
    for options in ({"per_exit": True, "confidence": 0.9}, {"temperature": True}):
        with pytest.raises(InvalidInput, match="one row cannot be halved"):
            prepare_policy(ONE_ROW, "margin", **options)
    with pytest.raises(InvalidInput, match="all 101 samples have a NaN score or logits that are not finite"):
        fit_and_calibrate(NO_ANSWERS, Target(agreement=0.9), "entropy", confidence=0.9)


@pytest.mark.parametrize("options", [{"per_exit": True}, {"policy": "consistency"}, {"temperature": True}])
def test_texts_that_recur_in_both_halves_certify_all_the_same(options: dict[str, Any]) -> None:
    repeated = TRACE.take(torch.cat((torch.arange(101), torch.arange(9))))
    fit_half, choose_half = halves(repeated)
    assert set(row_hashes(fit_half)) & set(row_hashes(choose_half))
    prepared = prepare_policy(repeated, **{"policy": "margin", **options}, confidence=0.9)
    assert prepared.calibrate(Target(agreement=0.5)).certificate.rows == len(choose_half)
    assert "full" in prepared.ladder()
    with pytest.raises(InvalidInput, match="of these rows"):
        certify(choose_half, prepared.policy, "agreement")
