"""A ladder follows the default point: its policy, its exits, and lines that these rows did not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from offramp.calibration.label_thresholds import FEWEST_POSITIVES
from offramp.calibration.ladder_policy import prepare_ladder
from offramp.calibration.saved_lines import fit_saved_lines
from offramp.errors import InvalidInput
from offramp.policies.fitting import fit_lines, fit_policy
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.types.operating_point import Measured, OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace


def agreeing(problem_type: str, seed: int, samples: int = 400) -> Trace:
    """Exits 0 to 5 that are near the last one, recorded with the weights "ab" from the data "seed"."""
    trace = random_trace(problem_type, samples=samples, seed=seed)
    logits = trace.logits * 0.05 + trace.logits[-1] * 0.95
    about = {"weights": "ab", "engine": "onnx-int8", "data": str(seed)}
    return replace(trace, logits=logits, layers=torch.arange(trace.depth), provenance=about)


ROWS = agreeing(SINGLE_LABEL, 2)
LINES = fit_saved_lines(agreeing(SINGLE_LABEL, 1), agreeing(SINGLE_LABEL, 1).logits[0])
READ, LAYERS = (0, 2, 5), tuple(range(6))


def point(
    policy: dict[str, Any], rows: int = 99, data: str = "3", read: tuple[int, ...] | None = READ
) -> OperatingPoint:
    measured = Measured("accuracy", 0.9, 0.9, 1.0, 2.0, 5, rows, {"data": data})
    count = 5 if read is None else len(read) - 1
    return OperatingPoint(policy, (0.5,) * count, measured=measured, exit_layers=read)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_lines_of_training_at_the_exits_of_the_point_and_every_rung_is_certified(confidence: float | None) -> None:
    prepared = prepare_ladder(ROWS, point({"name": "margin"}), LINES, LAYERS, confidence=confidence)
    assert prepared is not None
    assert prepared.policy == load_policy("margin", **LINES.parameters("margin", READ))
    assert prepared.report == (
        "policy and exits of the point 'default': margin at layers 0 (lexical), 2, 5\n"
        "thresholds for each exit fitted in training on 400 rows, a ladder chosen on 400"
    )
    ladder = prepared.ladder()
    assert len(ladder) > 2
    assert {(point.policy["name"], *point.policy, point.exit_layers) for point in ladder.values()} == {
        ("margin", "name", READ)
    }
    deltas = {point.agreement.delta for name, point in ladder.items() if name != "full" and point.agreement}
    assert deltas == {0.05 if confidence is None else 0.1}
    assert all(point.agreement for name, point in ladder.items() if name != "full")


def test_rows_that_chose_the_exits_certify_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "offramp")
    same = point({"name": "margin"}, rows=400, data="2")
    prepared = prepare_ladder(ROWS, same, LINES, LAYERS)
    assert prepared is not None
    assert all(point.agreement is None for point in prepared.ladder().values())
    assert caplog.messages[0] == (
        "no certificates on agreement: the exits that are read were chosen on these rows; choose the ladder on others"
    )
    with pytest.raises(InvalidInput, match="were chosen on these rows, and a ladder reads the same: certify it on"):
        prepare_ladder(ROWS, same, LINES, LAYERS, confidence=0.9)
    with pytest.raises(InvalidInput, match="were chosen on these rows"):  # a graph of these exits alone recorded them
        prepare_ladder(ROWS.select(READ), same, LINES, LAYERS, confidence=0.9)
    all_read = prepare_ladder(ROWS, point({"name": "margin"}, 400, "2", tuple(range(6))), LINES, LAYERS, confidence=0.9)
    assert all_read is not None  # to read all is no choice
    assert all_read.exits is not None
    assert all_read.exits.fitted_on == ()


def test_without_lines_these_rows_fit_them_or_there_is_one_threshold() -> None:
    rows = ROWS.select(READ)
    for lines, reason in ((None, ""), (replace(LINES, weights="other"), "\nlines.json is of other weights")):
        plain = prepare_ladder(ROWS, point({"name": "margin"}), lines, LAYERS)
        certified = prepare_ladder(ROWS, point({"name": "margin"}), lines, LAYERS, confidence=0.9)
        assert plain is not None
        assert certified is not None
        assert plain.policy == load_policy("margin", **fit_lines("margin", rows))
        assert policy_to_dict(certified.policy) == {"name": "margin"}
        assert (
            plain.report
            == certified.report
            == f"policy and exits of the point 'default': margin at layers 0 (lexical), 2, 5{reason}"
        )


def test_a_policy_with_numbers_of_its_own_is_taken_as_it_is_unless_these_rows_fitted_it() -> None:
    for policy in ({"name": "patience"}, {"name": "pcee", "patience": 3}):
        prepared = prepare_ladder(ROWS, point(policy, read=None), LINES, LAYERS, confidence=0.9)
        assert prepared is not None
        assert policy_to_dict(prepared.policy) == policy_to_dict(load_policy(policy))
    values = replace(agreeing(REGRESSION, 4), provenance={})
    fitted = policy_to_dict(fit_policy("consistency", values.take(torch.arange(200))))
    assert prepare_ladder(values, point(fitted, read=None), None, LAYERS) is None
    prepared = prepare_ladder(values.take(torch.arange(200, 400)), point(fitted, read=None), None, LAYERS)
    assert prepared is not None
    assert policy_to_dict(prepared.policy) == fitted


def test_with_label_thresholds_a_half_chooses_them_and_the_other_half_certifies() -> None:
    rows = agreeing(MULTI_LABEL, 5)
    lines = fit_saved_lines(agreeing(MULTI_LABEL, 6), agreeing(MULTI_LABEL, 6).logits[0])
    prepared = prepare_ladder(rows, point({"name": "margin"}), lines, LAYERS, confidence=0.9, label_thresholds=True)
    assert prepared is not None
    assert len(prepared.rows) == 200
    assert prepared.label_thresholds is not None
    assert "label thresholds chosen on 200 rows" in prepared.report
    assert FEWEST_POSITIVES < 200


@pytest.mark.parametrize("read", [(1, 7), None])
def test_there_is_nothing_to_follow_without_the_point_or_its_exits(read: tuple[int, ...] | None) -> None:
    assert prepare_ladder(ROWS, None if read is None else point({"name": "margin"}, read=read), LINES, LAYERS) is None
