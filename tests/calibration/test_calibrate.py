"""Calibration against brute force: replay every split of the trace, count with scikit-learn and scipy, then choose."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score

from offramp.calibration.calibrate import calibrate
from offramp.errors import CannotReach, InvalidInput, NotApplicable
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import METRICS
from offramp.evaluation.sweep import curve, sweep
from offramp.policies.base import Policy
from offramp.policies.certainty import Certainty
from offramp.policies.confidence import Entropy, MaxProb
from offramp.policies.divergence import Divergence
from offramp.policies.ensemble import Ensemble
from offramp.policies.fixed import Fixed
from offramp.policies.patience import Patience, Stability
from offramp.policies.pcee import PatientConfidence
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import Measured, OperatingPoint, Target
from offramp.types.outputs import Answers
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import PLAIN_CASES, first_classes, random_trace

LAYERS = [2, 3, 5, 8, 9]
FOR_CLASSES = [
    Entropy(),
    MaxProb(),
    Patience(),
    Certainty(),
    Fixed(),
    Divergence("kl"),
    PatientConfidence(Entropy(), 2),
    PatientConfidence(Certainty(), 3),
    Ensemble(Patience(), "run"),
    Ensemble(PatientConfidence(Certainty(), 2), "run"),
]
FOR_VALUES = [Stability(1), Stability(2), Certainty(), PatientConfidence(Certainty(), 2), Ensemble(Stability(1), "run")]


# --- brute force --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Where everybody leaves at one threshold; `threshold` sits on a score, where >= lets it count."""

    threshold: float
    answers: Answers


def running_maxima(trace: Trace, policy: Policy) -> list[float]:
    """All that a threshold can tell apart, falling."""
    columns = scores(policy, trace)[:-1].T.tolist()
    seen = {best for column in columns for best in accumulate(column, max)}
    return sorted(seen - {-math.inf}, reverse=True)


def splits(trace: Trace, policy: Policy) -> list[Split]:
    """Every way in which one threshold splits a trace, from full depth to the loosest."""
    return [Split(at, replay(trace, policy, at)) for at in [math.inf, *running_maxima(trace, policy)]]


def loosest_before_the_first_failure(candidates: list[tuple[Split, bool]]) -> Split:
    holding = [split for split, _ in candidates]
    first_failure = next((number for number, (_, holds) in enumerate(candidates) if not holds), len(candidates))
    return holding[first_failure - 1]


def given_answers(logits: torch.Tensor, problem_type: str) -> np.ndarray:
    return (logits > 0).int().numpy() if problem_type == MULTI_LABEL else logits.argmax(dim=-1).numpy()


def right_answers(trace: Trace, answers: Answers, truth: Any) -> Fraction:
    given = given_answers(answers.logits, trace.problem_type)
    return Fraction(round(accuracy_score(truth, given, normalize=False)), len(trace))


def assert_leaves_as(point: OperatingPoint, split: Split, trace: Trace) -> None:
    assert len(set(point.thresholds)) == 1
    got = replay(trace, point.policy, point.thresholds)
    assert got.exit_layers.tolist() == split.answers.exit_layers.tolist()


# --- small traces ------------------------------------------------------------------------------------------


@st.composite
def traces(draw: st.DrawFn, problem_type: str, outputs: int, fewest: int) -> Trace:
    """Few values, so that scores repeat; 2 to 5 exits, up to 8 samples."""
    depth, samples = draw(st.integers(2, 5)), draw(st.integers(fewest, 8))
    logits = draw(arrays(np.int8, (depth, samples, outputs), elements=st.integers(-6, 6)))
    certainty = draw(arrays(np.int8, (depth, samples), elements=st.integers(0, 16)))
    shape, most = {
        SINGLE_LABEL: ((samples,), outputs - 1),
        MULTI_LABEL: ((samples, outputs), 1),
        REGRESSION: ((samples,), 6),
    }[problem_type]
    labels = draw(arrays(np.int8, shape, elements=st.integers(0, most)))
    return Trace(
        torch.from_numpy(logits).float() / 2,
        torch.from_numpy(labels).long(),
        torch.from_numpy(certainty).float() / 16,
        torch.tensor(LAYERS[:depth]),
        problem_type,
    )


@st.composite
def cases(draw: st.DrawFn, problem_types: tuple[str, ...], fewest: int = 1) -> tuple[Trace, Policy]:
    """A trace and a policy for it, whose scores are equal or clearly apart: no rounding decides."""
    problem_type = draw(st.sampled_from(problem_types))
    trace = draw(traces(problem_type, 1 if problem_type == REGRESSION else draw(st.integers(2, 3)), fewest))
    policy = draw(st.sampled_from(FOR_VALUES if problem_type == REGRESSION else FOR_CLASSES))
    seen = running_maxima(trace, policy)
    assume(all(high - low > 1e-5 for high, low in pairwise(seen)))
    return trace, policy


CLASSES = (SINGLE_LABEL, SINGLE_LABEL, MULTI_LABEL)
drops = st.sampled_from(["0", "0.01", "0.1", "0.2", "0.25", "0.5", "1"])


# --- calibrate ---------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(cases(CLASSES), drops)
def test_max_drop_is_the_loosest_such_that_all_stricter_hold_too(case: tuple[Trace, Policy], drop: str) -> None:
    trace, policy = case
    candidates = splits(trace, policy)
    right = [right_answers(trace, split.answers, trace.labels.numpy()) for split in candidates]
    if right[0] == 0:
        with pytest.raises(CannotReach, match="full model scores 0"):
            calibrate(trace, policy, Target(max_drop=float(drop)))
        return
    holds = [one >= (1 - Fraction(drop)) * right[0] for one in right]
    point = calibrate(trace, policy, Target(max_drop=float(drop)))
    assert_leaves_as(point, loosest_before_the_first_failure(list(zip(candidates, holds, strict=True))), trace)


@settings(max_examples=60)
@given(cases(CLASSES), drops)
def test_agreement_is_the_loosest_such_that_all_stricter_hold_too(case: tuple[Trace, Policy], lost: str) -> None:
    trace, policy = case
    full = given_answers(trace.logits[-1], trace.problem_type)
    candidates = splits(trace, policy)
    agreement = 1 - Fraction(lost)
    holds = [right_answers(trace, split.answers, full) >= agreement for split in candidates]
    point = calibrate(trace, policy, Target(agreement=float(agreement)))
    assert_leaves_as(point, loosest_before_the_first_failure(list(zip(candidates, holds, strict=True))), trace)


@settings(max_examples=60)
@given(cases((*CLASSES, REGRESSION)), st.sampled_from(["1", "1.1", "1.25", "1.5", "2", "2.5", "4", "5"]))
def test_speedup_is_the_strictest_that_is_fast_enough(case: tuple[Trace, Policy], speedup: str) -> None:
    trace, policy = case
    layers = trace.layer_numbers[-1] * len(trace)
    ran = [(split, sum(split.answers.exit_layers.tolist())) for split in splits(trace, policy)]
    enough = [split for split, run in ran if Fraction(speedup) * run <= layers]
    target = Target(speedup=float(speedup))
    if enough:
        point = calibrate(trace, policy, target)
        assert_leaves_as(point, enough[0], trace)
        assert point.measured.speedup >= float(speedup) - 1e-12
    else:
        with pytest.raises(CannotReach, match=f"the best is {layers / ran[-1][1]:.4g}$"):
            calibrate(trace, policy, target)


@settings(max_examples=40)
@given(cases((REGRESSION,), fewest=4), drops)
def test_max_drop_of_a_regression_keeps_pearsons_correlation(case: tuple[Trace, Policy], drop: str) -> None:
    trace, policy = case
    candidates, truth = splits(trace, policy), trace.labels.numpy()
    values = [split.answers.logits[:, 0].numpy() for split in candidates]
    assume(np.ptp(truth) > 0 and all(np.ptp(given) > 0 for given in values))  # scipy has no answer for constants
    correlations = [pearsonr(given, truth).statistic for given in values]
    wanted = (1 - float(drop)) * correlations[0]
    assume(correlations[0] > 1e-9)
    assume(all(one == correlations[0] or abs(one - wanted) > 1e-9 for one in correlations))
    point = calibrate(trace, policy, Target(max_drop=float(drop)))
    assert point.measured.metric == "pearson"
    holds = [one >= wanted for one in correlations]
    assert_leaves_as(point, loosest_before_the_first_failure(list(zip(candidates, holds, strict=True))), trace)


def test_a_lucky_loose_threshold_is_not_taken() -> None:
    # as the threshold falls, the samples leave one by one: one more is wrong, right, right, wrong
    certainty = torch.tensor([[0.8, 0.6, 0.4, 0.2], [0.0] * 4])
    answers = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])
    trace = Trace(torch.nn.functional.one_hot(answers, 2).float(), torch.tensor([1, 1, 0, 0]), certainty)
    assert curve(trace, Certainty()).scores.tolist() == [0.5, 0.25, 0.5, 0.75, 0.5]
    assert calibrate(trace, Certainty(), Target(max_drop=0.0)).thresholds == (math.inf,)  # although .3 scores .75


def test_max_drop_is_a_share_of_the_full_score() -> None:
    # 10 samples, the full model right on 5; these leave first, one by one, and each turns wrong
    certainty = torch.stack((torch.linspace(0.95, 0.05, 10), torch.zeros(10)))
    answers = torch.tensor([[1] * 10, [0] * 5 + [1] * 5])
    trace = Trace(torch.nn.functional.one_hot(answers, 2).float(), torch.zeros(10), certainty)
    for max_drop, kept in ((0.19, 0.5), (0.2, 0.4), (0.39, 0.4), (0.4, 0.3), (1, 0.0)):
        measured = calibrate(trace, Certainty(), Target(max_drop=max_drop)).measured
        assert (measured.score, measured.full_score) == (kept, 0.5)


def test_a_point_says_what_was_asked_and_what_was_measured() -> None:
    certainty = torch.tensor([[0.9, 0.8, 0.25, 0.125], [0.9, 0.8, 0.7, 0.1], [0.0] * 4])
    answers = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0]])
    logits = torch.nn.functional.one_hot(answers, 2).float()
    trace = Trace(logits, torch.tensor([0, 1, 0, 1]), certainty, [2, 4, 6], provenance={"engine": "torch"})
    # falling: .9 and .8 leave at exit 1, .7 at exit 2, all as the full model says; at .25 it moves to exit 1: differs
    point = calibrate(trace, "certainty", Target(agreement=0.75))
    measured = Measured("accuracy", 0.5, 0.75, 0.75, mean_exit=3.0, depth=6, rows=4, provenance={"engine": "torch"})
    expected = OperatingPoint({"name": "certainty"}, (0.1875, 0.1875), {"agreement": 0.75}, measured)
    assert point == replace(expected, exit_layers=(2, 4, 6))
    other = calibrate(trace, "certainty", Target(agreement=0.75), metric="macro-f1")
    assert (other.thresholds, other.measured.metric) == (point.thresholds, "macro-f1")


def test_no_drop_at_all_keeps_the_full_score() -> None:
    trace = random_trace(SINGLE_LABEL, samples=200)
    for policy in FOR_CLASSES:
        point = calibrate(trace, policy, Target(max_drop=0))
        assert point.measured.score >= point.measured.full_score
        assert point.policy == policy_to_dict(policy)


def test_targets_compare_with_the_full_model_whatever_an_ensemble_makes_of_never() -> None:
    # the last exit is right 4 times of 4; the mean of both exits follows the first, which is loudly wrong once
    first, last = [[0.01, 0.99], *[[0.9, 0.1]] * 3], [[0.6, 0.4], *[[0.9, 0.1]] * 3]
    trace = Trace(torch.tensor([first, last]).log(), torch.tensor([0, 0, 0, 0]))
    for target in (Target(max_drop=0.1), Target(agreement=0.9)):
        with pytest.raises(CannotReach, match="not even full depth holds the target"):
            calibrate(trace, Ensemble(Entropy(), "all"), target)
    point = calibrate(trace, Ensemble(Entropy(), "all"), Target(max_drop=0.25))
    assert (point.measured.score, point.measured.full_score, point.measured.agreement) == (0.75, 1.0, 0.75)
    assert calibrate(trace, Ensemble(Entropy(), "run"), Target(max_drop=0)).measured.score == 1.0


def test_policies_are_taken_by_name_and_as_data() -> None:
    trace = random_trace(SINGLE_LABEL)
    target = Target(max_drop=0.1)
    point = calibrate(trace, PatientConfidence(Entropy(), 2), target)
    assert calibrate(trace, "pcee", target) == point
    assert calibrate(trace, {"name": "pcee", "measure": "entropy", "patience": 2}, target) == point


def test_a_single_exit_has_nowhere_to_leave_early() -> None:
    trace = random_trace(SINGLE_LABEL, depth=1)
    for target in (Target(max_drop=0), Target(agreement=1), Target(speedup=1)):
        with pytest.raises(InvalidInput, match="one exit"):
            calibrate(trace, Entropy(), target)


# --- thresholds lie between scores --------------------------------------------------------------------------


@settings(max_examples=60)
@given(cases((*CLASSES, REGRESSION)))
def test_no_threshold_sits_on_a_score(case: tuple[Trace, Policy]) -> None:
    trace, policy = case
    found = curve(trace, policy).thresholds.tolist()
    seen = running_maxima(trace, policy)
    assert found[0] == math.inf
    assert len(found) == len(seen) + 1
    for above, threshold, below in zip(seen, found[1:], [*seen, -math.inf][1:], strict=True):
        assert below < threshold < above


def test_thresholds_lie_midway() -> None:
    score = torch.tensor([[0.5, 0.25, -math.inf], [0.25, 0.75, -math.inf], [9.0, 9.0, 9.0]])
    swept = sweep(score, torch.tensor([1.0, 2.0, 3.0]).double().view(3, 1, 1).expand(3, 3, 1))
    assert swept.thresholds.tolist() == [math.inf, 0.625, 0.375, -0.25]
    assert swept.statistics.flatten().tolist() == [9, 8, 6, 5]  # exits (3,3,3) (3,2,3) (1,2,3) (1,1,3)


@pytest.mark.parametrize("policy", [Entropy(), MaxProb()])
def test_no_threshold_of_a_larger_trace_sits_on_a_score(policy: Policy) -> None:
    trace = random_trace(SINGLE_LABEL, depth=12, samples=2000)
    assert not set(curve(trace, policy).thresholds.tolist()) & set(running_maxima(trace, policy))


@pytest.mark.parametrize(
    "seen",
    [
        [0.5, 0.5 + 2**-24],  # neighbouring float32
        [-1e9, -3e9],  # 1 below these is the same float32
    ],
)
def test_no_threshold_sits_on_a_score_where_floats_are_coarse(seen: list[float]) -> None:
    score = torch.tensor([seen, [0.0, 0.0]])
    found = sweep(score, torch.tensor([[[1.0], [1.0]], [[2.0], [2.0]]]).double())  # layers
    assert not set(found.thresholds.tolist()) & set(score[0].tolist())
    assert found.thresholds[-1] < score[0].min()
    assert found.statistics[[0, -1], 0].tolist() == [4, 2]  # all of the way, and everybody at the first exit


def test_scores_with_no_float_in_between_leave_together() -> None:
    trace = Trace(torch.zeros(2, 3, 2), certainty=torch.tensor([[0.5, 0.5 + 2**-24, 0.25], [0.0] * 3]))
    found = curve(Trace(trace.logits, torch.tensor([0, 1, 0]), trace.certainty), Certainty())
    assert found.thresholds.tolist() == [math.inf, 0.375, -0.25]
    assert found.mean_exits.tolist() == pytest.approx([2, 4 / 3, 1])
    assert calibrate(trace, Certainty(), Target(speedup=1.1)).measured.mean_exit == pytest.approx(4 / 3)


# --- what cannot be reached, what cannot be asked -----------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "layers", "speedup", "best"),
    [
        (Fixed(), [2, 4, 6], 3.1, "3"),
        (PatientConfidence(Entropy(), 3), [1, 2, 3, 4], 1.5, "1.333"),
        (PatientConfidence(Entropy(), 5), [1, 2, 3, 4], 1.5, "1"),
    ],
)
def test_what_cannot_be_reached_names_the_best(policy: Policy, layers: list[int], speedup: float, best: str) -> None:
    trace = random_trace(SINGLE_LABEL, depth=len(layers), layers=torch.tensor(layers))
    name = {"Fixed": "fixed"}.get(type(policy).__name__, r"pcee \(measure entropy, patience [35]\)")
    with pytest.raises(CannotReach, match=f"^{name} cannot reach a speed-up of {speedup:g} here; the best is {best}$"):
        calibrate(trace, policy, Target(speedup=speedup))


@pytest.mark.parametrize(
    ("labels", "answers", "metric"),
    [
        ([1, 1, 1, 1], [0, 0, 0, 0], "accuracy"),
        ([0, 0, 1, 1], [1, 0, 0, 1], "matthews"),  # 0
        ([1, 0, 0, 0], [0, 1, 1, 1], "matthews"),  # -1
    ],
)
def test_of_a_full_score_of_0_or_less_there_is_no_share_to_keep(
    labels: list[int], answers: list[int], metric: str
) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(answers), 2).float()
    trace = Trace(logits.expand(3, 4, 2), torch.tensor(labels))
    with pytest.raises(CannotReach, match=r"not above 0: .*; train longer, or choose another --metric"):
        calibrate(trace, Entropy(), Target(max_drop=0.1), metric)


def test_max_drop_needs_labels_and_the_other_targets_do_not() -> None:
    labelled = random_trace(SINGLE_LABEL)
    trace = Trace(labelled.logits)
    with pytest.raises(InvalidInput, match="needs labels"):
        calibrate(trace, Entropy(), Target(max_drop=0.1))
    for target in (Target(agreement=0.9), Target(speedup=2)):
        point = calibrate(trace, Entropy(), target)
        assert point.thresholds == calibrate(labelled, Entropy(), target).thresholds
        assert (point.measured.metric, point.measured.score, point.measured.full_score) == (None, None, None)


@pytest.mark.parametrize("exit", [0, 2, 5])
@pytest.mark.parametrize("target", [Target(max_drop=0.1), Target(agreement=0.9), Target(speedup=1.5)])
def test_samples_without_a_finite_answer_are_counted_and_refused(target: Target, exit: int) -> None:
    trace = random_trace(SINGLE_LABEL)
    trace.logits[exit, [3, 5], 1] = math.nan
    with pytest.raises(InvalidInput, match="2 of 50 samples"):
        calibrate(trace, Entropy(), target)


@pytest.mark.parametrize("target", [Target(max_drop=0.5), Target(agreement=0.5), Target(speedup=1.5)])
def test_samples_with_a_certainty_of_nan_are_counted_and_refused(target: Target) -> None:
    trace = random_trace(SINGLE_LABEL)
    trace.certainty[3, [3, 5]] = math.nan
    trace.certainty[0, [3, 5]] = 1.0  # they leave before that
    with pytest.raises(InvalidInput, match="2 of 50 samples"):
        calibrate(trace, Certainty(), target)


def test_a_regression_has_no_agreement() -> None:
    with pytest.raises(NotApplicable, match="agreement compares classes"):
        calibrate(random_trace(REGRESSION, outputs=1), Stability(), Target(agreement=0.9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of max_drop, speedup, agreement, latency_ms; got none"),
        ({"max_drop": 0.1, "speedup": 2.0}, "exactly one of"),
        ({"max_drop": -0.1}, "max_drop must be from 0 to 1, got -0.1"),
        ({"max_drop": 1.1}, "max_drop must be from 0 to 1, got 1.1"),
        ({"agreement": 99}, "agreement must be from 0 to 1, got 99"),
        ({"agreement": math.nan}, "agreement must be from 0 to 1, got nan"),
        ({"speedup": 0.9}, "speedup must be at least 1, got 0.9"),
        ({"speedup": math.inf}, "speedup must be at least 1, got inf"),
        ({"speedup": math.nan}, "speedup must be at least 1, got nan"),
    ],
)
def test_a_target_is_one_number_in_its_range(given: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Target(**given)


# --- curve --------------------------------------------------------------------------------------------------


def metrics_for(trace: Trace) -> Iterator[str]:
    for name, metric in METRICS.items():
        if trace.problem_type in (metric.problem_types or (SINGLE_LABEL, MULTI_LABEL)) and not metric.resampled:
            yield name


@pytest.mark.parametrize(("data", "problem_type"), PLAIN_CASES)
def test_the_curve_is_what_is_measured_at_each_threshold(data: dict[str, Any], problem_type: str) -> None:
    outputs = {REGRESSION: 1, SINGLE_LABEL: 2, MULTI_LABEL: 3}[problem_type]
    trace = random_trace(problem_type, samples=12, outputs=outputs, layers=torch.tensor([1, 2, 4, 6, 7, 9]))
    policy = load_policy(first_classes(data, outputs))
    for metric in metrics_for(trace):
        found = curve(trace, policy, metric)
        points = [measure(trace, policy, threshold, metric) for threshold in found.thresholds.tolist()]
        assert found.mean_exits.tolist() == pytest.approx([point.mean_exit for point in points], abs=1e-12)
        assert found.scores.tolist() == pytest.approx([point.score for point in points], abs=1e-9)
        assert found.thresholds.diff().lt(0).all()


def test_the_curve_runs_from_full_depth_to_the_first_exit() -> None:
    found = curve(random_trace(SINGLE_LABEL), Entropy())
    assert (found.thresholds[0], found.mean_exits[0], found.mean_exits[-1]) == (math.inf, 6, 1)
    assert found.mean_exits.diff().lt(0).all()


def test_ranks_are_not_swept_and_the_refusal_says_what_is() -> None:
    trace = random_trace(REGRESSION, outputs=1)
    for refused in (
        lambda: curve(trace, Stability(), "spearman"),
        lambda: calibrate(trace, Stability(), Target(max_drop=0.1), "spearman"),
    ):
        with pytest.raises(NotApplicable, match="spearman ranks all samples together"):
            refused()
    assert calibrate(trace, Stability(), Target(speedup=1.2), "spearman").measured.metric == "spearman"


def test_constant_labels_of_a_regression_are_named_where_nothing_can_be_kept() -> None:
    trace = Trace(torch.randn(2, 12, 1), torch.full((12,), 3.5))
    with pytest.raises(CannotReach, match="the labels of all 12 rows are alike: pearson is not defined"):
        calibrate(trace, "stability", Target(max_drop=0.1))
