"""Label thresholds: chosen by hand and by brute force, of both sides of a target, and on rows that certify nothing."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from offramp.calibration.calibrate import calibrate
from offramp.calibration.certify import certify
from offramp.calibration.label_thresholds import FEWEST_POSITIVES, LabelThresholds, choose_label_thresholds
from offramp.calibration.prepare import fit_and_calibrate, prepare_policy
from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.measure import measure_point
from offramp.evaluation.slices import by_length
from offramp.model.card import save_points
from offramp.policies.fitting import halves
from offramp.policies.replay import replay
from offramp.report.tables import point_text, scores_text
from offramp.types.operating_point import OperatingPoint, Target, read_points, write_points
from offramp.types.outputs import at_label_thresholds
from offramp.types.problem_types import MULTI_LABEL, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes
from support.command_line import offramp
from support.models import save_folder, tiny_model
from support.traces import random_trace


def shifted_trace(samples: int = 400, seed: int = 0) -> Trace:
    """Several labels whose logits lie too low, so that 0.5 misses many."""
    trace = random_trace(MULTI_LABEL, samples=samples, seed=seed)
    return replace(trace, logits=trace.logits - torch.tensor([1.5, 0.5, -1.0]), tokens=torch.arange(samples) % 7)


def one_label(log_odds: list[float], labels: list[int]) -> Trace:
    """Two labels, of which the second is always right; each row as often as makes the first frequent enough."""
    logits = torch.tensor([[value, 9.0 if index % 2 else -9.0] for index, value in enumerate(log_odds)])
    truth = torch.tensor([[value, index % 2] for index, value in enumerate(labels)])
    copies = FEWEST_POSITIVES
    return Trace(logits.repeat(copies, 1)[None], truth.repeat(copies, 1), problem_type=MULTI_LABEL)


@pytest.mark.parametrize(
    ("log_odds", "labels", "wanted"),
    [
        # the F1 of the first k rows is 1/2, 4/5, 6/6, 6/7: the cut is between the third and the fourth
        ([2.0, -1.0, -2.0, -3.0], [1, 1, 1, 0], (1 / (1 + np.exp(2)) + 1 / (1 + np.exp(3))) / 2),
        # first k: 0, 2/3, 4/4... the cut above 0.5, between 3 and 1
        ([5.0, 3.0, 1.0, -1.0], [1, 1, 0, 0], (1 / (1 + np.exp(-3)) + 1 / (1 + np.exp(-1))) / 2),
        ([2.0, 1.0, -1.0, -2.0], [1, 1, 0, 0], 0.5),  # nothing is better than 0.5
        ([1.0, 1.0, -1.0, -1.0], [1, 0, 1, 0], 0.5),  # equal probabilities cannot be parted
        ([0.5, 0.4, 0.3, 0.2], [1, 1, 1, 1], 0.5),
    ],
)
def test_a_threshold_by_hand(log_odds: list[float], labels: list[int], wanted: float) -> None:
    chosen = choose_label_thresholds(one_label(log_odds, labels))
    assert chosen.values == (pytest.approx(wanted), 0.5)
    assert chosen.few == 0


def test_a_threshold_has_the_best_f1_of_all_midpoints_and_lies_on_no_probability() -> None:
    trace = shifted_trace(120)
    probabilities = trace.logits[-1].double().sigmoid().numpy()
    for label, value in enumerate(choose_label_thresholds(trace).values):
        column, truth = probabilities[:, label], trace.labels[:, label].numpy()
        ordered = np.unique(column)
        scores = {cut: f1_score(truth, column > cut) for cut in [*((ordered[1:] + ordered[:-1]) / 2), 0.5]}
        assert f1_score(truth, column > value) == pytest.approx(max(scores.values()))
        assert min(abs(np.unique(trace.logits[-1, :, label].numpy()) - np.log(value / (1 - value)))) > 1e-6


def test_a_label_with_few_positive_rows_keeps_a_half() -> None:
    trace = shifted_trace()
    labels = trace.labels.clone()
    labels[:, 1] = 0
    labels[: FEWEST_POSITIVES - 1, 1] = 1
    chosen = choose_label_thresholds(replace(trace, labels=labels))
    assert (chosen.values[1], chosen.few) == (0.5, 1)
    assert chosen.values[0] != 0.5
    labels[FEWEST_POSITIVES, 1] = 1
    assert choose_label_thresholds(replace(trace, labels=labels)).few == 0


@pytest.mark.parametrize("metric", ["macro-f1", "f1"])
def test_a_target_compares_answers_with_the_same_label_thresholds(metric: str) -> None:
    """By scikit-learn: both scores, the agreement, and that a looser threshold loses more than was allowed."""
    trace = shifted_trace()
    chosen = choose_label_thresholds(trace)
    target = Target(max_drop=0.05)
    point = calibrate(trace, "margin", target, metric, label_thresholds=chosen)

    def answers(logits: torch.Tensor) -> np.ndarray:
        return (logits.double().sigmoid() > torch.tensor(chosen.values, dtype=torch.float64)).int().numpy()

    def score(given: np.ndarray) -> float:
        return f1_score(trace.labels.numpy(), given, average={"f1": "micro"}.get(metric, "macro"))

    early, full = answers(replay(trace, "margin", point.thresholds).logits), answers(trace.logits[-1])
    measured = point.measured
    assert (measured.metric, measured.score, measured.full_score) == (
        metric,
        pytest.approx(score(early)),
        pytest.approx(score(full)),
    )
    assert measured.agreement == pytest.approx((early == full).all(axis=1).mean())
    assert score(full) > score(trace.logits[-1].gt(0).int().numpy()) + 0.02
    assert 0.95 * score(full) <= score(early) < score(full)
    assert measure_point(trace, point, metric) == measured
    assert point.label_thresholds == chosen.values
    assert "label" not in point.policy
    # exits are those of the policy without label thresholds
    same = calibrate(trace, "margin", Target(speedup=2), metric)
    assert calibrate(trace, "margin", Target(speedup=2), metric, label_thresholds=chosen).thresholds == same.thresholds


def test_agreement_is_of_label_sets_above_the_label_thresholds() -> None:
    trace = shifted_trace(2000)
    chosen_on, others = halves(trace)
    chosen = choose_label_thresholds(chosen_on)
    point = certify(others, "margin", "agreement", 0.1, label_thresholds=chosen)
    early, full = (
        at_label_thresholds(logits, chosen.values) > 0
        for logits in (replay(others, "margin", point.thresholds).logits, others.logits[-1])
    )
    differs = (early != full).any(dim=-1).double().mean().item()
    assert 0 < differs <= 0.1
    assert point.certificate.observed == pytest.approx(differs)
    assert point.measured.agreement == pytest.approx(1 - differs)
    with pytest.raises(InvalidInput, match="label thresholds were chosen on 1000 of these rows"):
        certify(chosen_on, "margin", "agreement", 0.1, label_thresholds=chosen)


def test_with_a_confidence_one_half_chooses_and_the_other_certifies() -> None:
    trace = shifted_trace()
    chosen_on, others = halves(trace)
    result = prepare_policy(trace, confidence=0.9, label_thresholds=True)
    assert result.label_thresholds == choose_label_thresholds(chosen_on)
    assert row_hashes(result.rows) == row_hashes(others)
    assert result.report == "label thresholds chosen on 200 rows"
    assert not set(result.label_thresholds.fitted_on) & set(row_hashes(result.rows))
    certified = result.calibrate(Target(agreement=0.8))
    assert certified.certificate.rows == 200
    assert certified.label_thresholds == result.label_thresholds.values
    without = prepare_policy(trace, label_thresholds=True)
    assert len(without.rows) == 400
    assert fit_and_calibrate(trace, Target(max_drop=0.05), label_thresholds=True).measured.metric == "macro-f1"
    assert all(point.label_thresholds for point in without.ladder().values())
    with pytest.raises(InvalidInput, match="chosen for macro-f1 and f1, got metric 'accuracy'"):
        without.calibrate(Target(max_drop=0.05), "accuracy")


def test_what_label_thresholds_do_not_go_with() -> None:
    chosen = LabelThresholds((0.5, 0.25, 0.75))
    with pytest.raises(NotApplicable, match="are for several labels"):
        choose_label_thresholds(random_trace(SINGLE_LABEL))
    with pytest.raises(NotApplicable, match="are for several labels"):
        calibrate(random_trace(SINGLE_LABEL), "margin", Target(speedup=2), label_thresholds=chosen)
    with pytest.raises(InvalidInput, match="2 label thresholds for a model with 3 outputs"):
        calibrate(shifted_trace(), "margin", Target(speedup=2), label_thresholds=LabelThresholds((0.5, 0.5)))
    tempered = {"name": "pcee", "measure": {"name": "margin", "temperatures": (1.0,) * 6}}
    with pytest.raises(NotApplicable, match="probabilities that temperatures change"):
        calibrate(shifted_trace(), tempered, Target(speedup=2), label_thresholds=chosen)
    with pytest.raises(InvalidInput, match="needs labels"):
        choose_label_thresholds(replace(shifted_trace(), labels=None))


POINT = OperatingPoint({"name": "margin"}, (0.5, 0.5), label_thresholds=(0.25, 0.5, 0.125))


@pytest.mark.parametrize("wrong", [[], [0.5, 0.0], [1.0], [float("nan")], ["0.5"], [True], "0.5", 0.5, {"a": 0.5}])
def test_label_thresholds_out_of_range_are_refused(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="are probabilities above 0 and below 1, one for each label"):
        replace(POINT, label_thresholds=wrong)


def test_label_thresholds_travel_with_the_point(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("## Operating points\n\nNone yet.\n")
    save_points({"few": POINT}, tmp_path)
    assert "- few: labels above 0.25, 0.5, 0.125 (in the order" in (tmp_path / "README.md").read_text()
    assert "\n  labels above 0.25, 0.5, 0.125" in point_text(POINT)
    assert read_points(tmp_path / "operating_points.json") == {"few": POINT}
    old = POINT.to_json()
    del old["label_thresholds"]
    assert OperatingPoint.from_json(old).label_thresholds is None
    assert "label_thresholds" not in replace(POINT, label_thresholds=None).to_json()
    long = replace(POINT, label_thresholds=(0.5,) * 28)
    assert "and 8 more" in point_text(long)
    write_points({"few": long}, tmp_path / "operating_points.json")
    assert len(json.loads((tmp_path / "operating_points.json").read_text())["points"]["few"]["label_thresholds"]) == 28


def test_tables_and_slices_measure_with_label_thresholds() -> None:
    trace = shifted_trace()
    point = calibrate(trace, "margin", Target(speedup=2), "f1", label_thresholds=choose_label_thresholds(trace))
    text = scores_text(trace, {"two": point}, "f1")
    assert "f1 of every exit, on 400 rows, labels above 0.5" in text
    assert f"{point.measured.score:.4f}" in text
    slices = by_length(trace, point, "f1")
    assert sum(part.agreement * part.rows for part in slices) == pytest.approx(400 * point.measured.agreement)


def test_calibrate_chooses_and_saves_label_thresholds(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", tiny_model(problem_type=MULTI_LABEL, num_labels=3))
    full = shifted_trace()
    trace = Trace(full.logits[-4:], full.labels, problem_type=MULTI_LABEL)
    trace.save(tmp_path / "trace.safetensors")
    asked = ("calibrate", folder, "--trace", tmp_path / "trace.safetensors", "--max-drop", 0.05, "--label-thresholds")
    result = offramp(*asked)
    assert result.exit_code == 0, result.output
    assert "label thresholds chosen on 400 rows" in result.stderr
    assert "macro-f1" in result.stdout
    saved = read_points(folder / "operating_points.json")["default"]
    assert saved.label_thresholds == choose_label_thresholds(trace).values
    assert "labels above 0." in offramp("info", folder).stdout
    for wrong, words in itertools.chain(
        [(("--metric", "accuracy"), "goes with --metric macro-f1 or f1")],
        [(("--temperature",), "--temperature and --label-thresholds both change what a probability means")],
    ):
        refused = offramp(*asked, *wrong)
        assert (refused.exit_code, words in refused.stderr) == (2, True), refused.stderr
