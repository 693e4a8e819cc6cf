"""Lines that training leaves with a model: a certificate on all rows, and one half where they do not serve."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.calibration.certify import certify
from offramp.calibration.prepare import prepare_policy
from offramp.calibration.saved_lines import (
    LINES_FILE,
    SavedLines,
    fit_saved_lines,
    read_saved_lines,
    write_saved_lines,
)
from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.fitting import fit_lines, halves
from offramp.policies.registry import load_policy
from offramp.types.operating_point import Target
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes
from support.traces import random_trace


def of_weights(trace: Trace, weights: str = "ab") -> Trace:
    return replace(trace, provenance={"weights": weights, "engine": "torch-float32"})


TRAINED_ON = of_weights(random_trace(SINGLE_LABEL, samples=80, seed=1))
ROWS = of_weights(random_trace(SINGLE_LABEL, samples=301, seed=2))
LEXICAL = replace(  # its first exit is before the first layer, and pays
    ROWS, logits=torch.cat((9 * ROWS.logits[-1:], ROWS.logits[1:])), layers=torch.arange(6)
)
SAVED = fit_saved_lines(TRAINED_ON)


def test_every_policy_with_a_score_in_0_to_1_has_lines() -> None:
    assert set(SAVED.lines) == {"certainty", "entropy", "margin", "max-prob"}
    for name in SAVED.lines:
        fitted = fit_lines(name, TRAINED_ON)
        assert SAVED.parameters(name, TRAINED_ON.layer_numbers) == {
            "lines": (*fitted["lines"][:-1], fitted["lines"][-2]),  # the last exit gives its own answer always: flat
            "fitted_on": fitted["fitted_on"],
        }
    assert "certainty" not in fit_saved_lines(replace(TRAINED_ON, certainty=None)).lines
    with pytest.raises(NotApplicable):
        fit_saved_lines(of_weights(random_trace(REGRESSION, outputs=1)))
    with pytest.raises(InvalidInput, match="does not name its own"):
        fit_saved_lines(random_trace(SINGLE_LABEL))


@pytest.mark.parametrize("policy", [None, "entropy", {"name": "max-prob", "ensemble": "run"}])
def test_with_saved_lines_all_rows_certify(policy: Any) -> None:
    result = prepare_policy(ROWS, policy, per_exit=True, confidence=0.9, saved_lines=SAVED)
    name = policy["name"] if isinstance(policy, dict) else policy or "margin"
    more = {"ensemble": "run"} if isinstance(policy, dict) else {}
    assert result.policy == load_policy(name, lines=SAVED.lines[name], **more)
    assert result.rows is ROWS
    words = "thresholds for each exit fitted in training on 80 of its rows, the threshold chosen on 301"
    assert result.report == words
    point = result.calibrate(Target(agreement=0.8))
    assert point.certificate.rows == 301
    assert point == certify(ROWS, result.policy, "agreement", 0.2, 0.1)


@pytest.mark.parametrize(
    ("saved", "rows", "policy", "reason"),
    [
        (None, ROWS, "margin", ""),
        (replace(SAVED, weights="other"), ROWS, "margin", " (lines.json is of other weights)"),
        (replace(SAVED, lines={}), ROWS, "margin", " (lines.json has no lines for margin)"),
        (
            replace(SAVED, lines={"margin": ((0.0, 1.0),) * 2}, layers=None),
            ROWS,
            "margin",
            " (lines.json is of 2 exits)",
        ),
        (SAVED, LEXICAL, "margin", " (lines.json has no line for the exit at layer 0)"),
        (SAVED, TRAINED_ON, "margin", " (lines.json was fitted on 80 of these rows)"),
        (SAVED, random_trace(SINGLE_LABEL, samples=80, seed=3), "margin", " (lines.json is of other weights)"),
    ],
)
def test_where_saved_lines_do_not_serve_one_half_fits_them(
    saved: SavedLines | None, rows: Trace, policy: str, reason: str
) -> None:
    fit_half, choose_half = halves(rows)
    result = prepare_policy(rows, policy, per_exit=True, confidence=0.9, saved_lines=saved)
    assert result.policy == load_policy(policy, **fit_lines(policy, fit_half))
    assert row_hashes(result.rows) == row_hashes(choose_half)
    counts = f"fitted on {len(fit_half)} rows, the threshold chosen on the other {len(choose_half)}"
    assert result.report == f"thresholds for each exit {counts}{reason}"


def test_a_few_texts_that_recur_by_chance_do_not_spoil_the_lines() -> None:
    for shared, halved in ((15, False), (17, True)):  # of 315 and 317 rows; 5 % is 15.75 and 15.85
        logits = torch.cat((TRAINED_ON.logits[:, :shared], ROWS.logits[:, :300]), dim=1)
        rows = Trace(logits, provenance=ROWS.provenance)
        result = prepare_policy(rows, "margin", per_exit=True, confidence=0.9, saved_lines=SAVED)
        assert (len(result.rows) < len(rows)) == halved
        assert result.calibrate(Target(agreement=0.8)).certificate.rows == len(result.rows)


def test_the_lexical_exit_has_a_line_of_logits_that_the_rows_did_not_fit() -> None:
    trained_on, rows = (replace(trace, layers=torch.arange(6)) for trace in (TRAINED_ON, ROWS))
    honest = torch.randn(80, 3, generator=torch.Generator().manual_seed(5))
    saved = fit_saved_lines(trained_on, honest)
    expected = replace(trained_on, logits=torch.cat((honest[None], trained_on.logits[1:])))
    assert saved.parameters("margin", range(6))["lines"][:-1] == fit_lines("margin", expected)["lines"][:-1]
    assert saved.parameters("margin", [2, 5])["lines"] == tuple(saved.lines["margin"][layer] for layer in (2, 5))
    assert saved.fitted_on == tuple(sorted(set(row_hashes(trained_on))))
    for read, count in ((range(6), 301), (range(1, 6), 301)):  # a certificate on all rows, with the exit or without
        result = prepare_policy(rows.select(list(read)), "margin", per_exit=True, confidence=0.9, saved_lines=saved)
        assert (result.policy.lines, len(result.rows)) == (saved.lines["margin"][read[0] :], count)
    assert fit_saved_lines(trained_on).layers == (1, 2, 3, 4, 5)  # nothing honest: no line


def test_exits_that_repeat_the_last_answer_on_all_rows_have_the_line_of_the_exit_before() -> None:
    logits = TRAINED_ON.logits.clone()
    logits[3:5] = logits[5] * torch.tensor([0.5, 0.8]).view(2, 1, 1)  # less sure of the same answers
    lines = fit_saved_lines(replace(TRAINED_ON, logits=logits)).lines["margin"]
    assert lines[2] == lines[3] == lines[4] == lines[5]
    assert len({lines[0], lines[1], lines[2]}) == 3
    assert fit_lines("margin", replace(TRAINED_ON, logits=logits))["lines"][3][1] < 0.01


def test_without_a_confidence_the_rows_fit_their_own_lines() -> None:
    result = prepare_policy(ROWS, "margin", per_exit=True, saved_lines=SAVED)
    assert result == prepare_policy(ROWS, "margin", per_exit=True)


def test_label_thresholds_take_their_half_all_the_same() -> None:
    trained_on, rows = (of_weights(random_trace(MULTI_LABEL, samples=n, seed=n)) for n in (80, 200))
    saved = fit_saved_lines(trained_on)
    result = prepare_policy(rows, per_exit=True, confidence=0.9, label_thresholds=True, saved_lines=saved)
    assert result.policy == load_policy("margin", lines=saved.lines["margin"])
    assert len(result.rows) == 100
    assert result.report.splitlines() == [
        "thresholds for each exit fitted in training on 80 of its rows, the threshold chosen on 100",
        "label thresholds chosen on 100 rows",
    ]


def test_a_certificate_refuses_the_rows_that_the_lines_were_fitted_on() -> None:
    mixed = of_weights(Trace(torch.cat((TRAINED_ON.logits[:, :5], ROWS.logits), dim=1)))
    with pytest.raises(InvalidInput, match="the policy was fitted on 5 of these rows"):
        certify(mixed, load_policy("margin", **SAVED.parameters("margin", ROWS.layer_numbers)), "agreement")


def test_lines_are_kept_in_a_file(tmp_path: Path) -> None:
    assert read_saved_lines(tmp_path) is None
    write_saved_lines(SAVED, tmp_path)
    assert read_saved_lines(tmp_path) == SAVED
    assert json.loads((tmp_path / LINES_FILE).read_text())["format"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not the lines that `offramp train` wrote"),
        ("[]", "not the lines that `offramp train` wrote"),
        ("{}", r"no 'format'\); remove it"),
        ('{"format": 1, "weights": "ab", "fitted_on": []}', r"no 'lines'\); remove it"),
        ('{"format": 1, "weights": "ab", "fitted_on": [], "lines": {"margin": [[1]]}}', "remove it"),
        ('{"format": 1, "weights": "ab", "fitted_on": [], "lines": {"margin": 3}}', "remove it"),
        ('{"format": 1, "weights": "ab", "fitted_on": [], "lines": {"margin": [[NaN, 1]]}}', "finite constant.*remove"),
        ('{"format": 1, "weights": "ab", "fitted_on": [], "lines": {"margin": [[0, -1]]}}', "slope above 0.*remove"),
        ('{"format": 2}', "format 2; this version of offramp reads up to 1"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / LINES_FILE).write_text(text)
    with pytest.raises(InvalidInput, match=rf"lines\.json: .*{reason}") as caught:
        read_saved_lines(tmp_path)
    assert "\n" not in str(caught.value)
