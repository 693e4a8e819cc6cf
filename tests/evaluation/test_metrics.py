import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from offramp.errors import InvalidInput, NotApplicable, UnknownName
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import METRICS, check_metric, layerwise, metric_for, score
from offramp.policies.certainty import Certainty
from offramp.policies.confidence import Entropy
from offramp.policies.fixed import Fixed
from offramp.policies.registry import policy_to_dict
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, labels_of
from support.traces import random_trace

ELSEWHERE: dict[str, Callable[[Any, Any], float]] = {  # (truth, given) -> score
    "accuracy": accuracy_score,
    "f1": lambda truth, given: f1_score(
        truth, given, average="micro" if np.ndim(truth) == 2 else "binary", zero_division=0
    ),
    "macro-f1": lambda truth, given: f1_score(truth, given, average="macro", zero_division=0),
    "matthews": matthews_corrcoef,
    "pearson": lambda truth, given: np.mean(pearsonr(truth, given, axis=0).statistic),
    "spearman": lambda truth, given: np.mean(
        [spearmanr(*pair).statistic for pair in zip(truth.T.reshape(-1, len(truth)), given.T, strict=True)]
    ),
}
CASES = [
    *[(name, SINGLE_LABEL, 2) for name in ("accuracy", "f1", "macro-f1", "matthews")],
    *[(name, SINGLE_LABEL, 5) for name in ("accuracy", "macro-f1", "matthews")],
    *[(name, MULTI_LABEL, 3) for name in ("accuracy", "f1", "macro-f1")],
    ("pearson", REGRESSION, 1),
    ("pearson", REGRESSION, 3),
    ("spearman", REGRESSION, 1),
    ("spearman", REGRESSION, 3),
]


def given_by(logits: torch.Tensor, problem_type: str) -> np.ndarray:
    if problem_type == REGRESSION:
        return logits.double().numpy()
    return (logits > 0).int().numpy() if problem_type == MULTI_LABEL else logits.argmax(dim=-1).numpy()


def of_answers(given: list[int], labels: list[int], classes: int = 2) -> Trace:
    """A single exit that answers so."""
    return Trace(torch.nn.functional.one_hot(torch.tensor(given), classes).float()[None], torch.tensor(labels))


def of_values(given: list[float], labels: list[float]) -> Trace:
    return Trace(torch.tensor(given).view(1, -1, 1), torch.tensor(labels))


# --- metrics ------------------------------------------------------------------------------------------------


def test_every_metric_is_checked_against_another_library() -> None:
    assert set(METRICS) == set(ELSEWHERE) == {name for name, _, _ in CASES}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "problem_type", "outputs"), CASES)
def test_metrics_are_those_of_scikit_learn_and_scipy(name: str, problem_type: str, outputs: int, seed: int) -> None:
    trace = random_trace(problem_type, depth=4, samples=101, outputs=outputs, seed=seed)
    elsewhere = [ELSEWHERE[name](trace.labels.numpy(), given_by(logits, problem_type)) for logits in trace.logits]
    assert len(set(elsewhere)) >= 3
    assert layerwise(trace, name) == pytest.approx(elsewhere, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_labels_may_be_of_any_number_type(dtype: torch.dtype) -> None:
    for problem_type in (SINGLE_LABEL, MULTI_LABEL):
        trace = random_trace(problem_type)
        other = Trace(trace.logits, trace.labels.to(dtype), problem_type=problem_type)
        assert layerwise(other) == layerwise(trace)


def test_several_labels_are_right_only_as_a_set() -> None:
    logits = torch.tensor([[[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]]])
    assert layerwise(Trace(logits, torch.tensor([[1, 0], [1, 0], [0, 0], [1, 1]]))) == [0.5]


def test_metrics_by_hand() -> None:
    trace = of_answers([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0])  # 2 hits, 1 false alarm, 1 missed
    assert layerwise(trace, "accuracy") == [6 / 8]
    assert layerwise(trace, "f1") == pytest.approx([2 * 2 / (3 + 3)])
    assert layerwise(trace, "macro-f1") == pytest.approx([(4 / 6 + 8 / 10) / 2])
    assert layerwise(trace, "matthews") == pytest.approx([(2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)])
    assert layerwise(of_values([1, 2, 3], [1, 3, 2])) == pytest.approx([0.5])


def test_a_class_that_is_neither_given_nor_there_has_no_f1() -> None:
    assert layerwise(of_answers([0, 1, 1], [0, 1, 0], classes=5), "macro-f1") == pytest.approx([2 / 3])


def test_answers_that_are_all_the_same() -> None:
    for given, labels in (([0, 0, 0], [0, 1, 0]), ([0, 0, 0], [0, 0, 0]), ([1, 1, 1], [0, 0, 0])):
        assert layerwise(of_answers(given, labels), "matthews") == [0]
        expected = ELSEWHERE["macro-f1"](labels, given)
        assert layerwise(of_answers(given, labels), "macro-f1") == pytest.approx([expected])
        assert layerwise(of_answers(given, labels), "f1") == pytest.approx([ELSEWHERE["f1"](labels, given)])
    assert layerwise(of_answers([2, 2, 2], [0, 1, 2], classes=3), "matthews") == [0]
    assert layerwise(of_answers([0, 1, 2], [1, 1, 1], classes=3), "matthews") == [0]


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1000.0, -70.0])
def test_a_constant_correlates_with_nothing(value: float) -> None:
    labels = torch.linspace(40, 41, 50).tolist()
    assert layerwise(of_values([value] * 50, labels)) == pytest.approx([0], abs=1e-6)
    assert layerwise(of_values(labels, [value] * 50)) == pytest.approx([0], abs=1e-6)


def test_of_several_values_a_constant_one_counts_0() -> None:
    labels = torch.tensor([[1.0, 3.0], [2.0, 1.0], [3.0, 5.0]])
    given = torch.stack((labels[:, 0], torch.zeros(3)), dim=-1)
    assert layerwise(Trace(given[None], labels, problem_type=REGRESSION)) == pytest.approx([0.5], abs=1e-6)


def test_pearson_keeps_its_digits_far_from_zero() -> None:
    random = torch.Generator().manual_seed(0)
    labels = 1000 + torch.randn(200, generator=random)
    given = 1000 + (labels - 1000) * 0.5 + 0.1 * torch.randn(200, generator=random)
    elsewhere = pearsonr(given.double().numpy(), labels.double().numpy()).statistic
    assert layerwise(Trace(given.view(1, -1, 1), labels)) == pytest.approx([elsewhere], abs=1e-9)


@pytest.mark.parametrize(
    ("problem_type", "name"), [(SINGLE_LABEL, "accuracy"), (MULTI_LABEL, "accuracy"), (REGRESSION, "pearson")]
)
def test_the_usual_metric_is_accuracy_or_pearson(problem_type: str, name: str) -> None:
    assert metric_for(random_trace(problem_type))[0] == name


@pytest.mark.parametrize(
    ("problem_type", "outputs", "name"),
    [
        (SINGLE_LABEL, 3, "f1"),
        (SINGLE_LABEL, 3, "pearson"),
        (MULTI_LABEL, 3, "matthews"),
        (MULTI_LABEL, 3, "pearson"),
        (REGRESSION, 1, "accuracy"),
        (REGRESSION, 1, "f1"),
        (REGRESSION, 1, "macro-f1"),
        (REGRESSION, 1, "matthews"),
    ],
)
def test_a_metric_without_a_meaning_is_refused(problem_type: str, outputs: int, name: str) -> None:
    trace = random_trace(problem_type, outputs=outputs)
    for refused in (lambda: layerwise(trace, name), lambda: measure(trace, Fixed(), 2, name)):
        with pytest.raises(NotApplicable, match=f"{name} has no meaning for {problem_type} with {outputs} outputs"):
            refused()


def test_a_metric_of_ranks_measures_but_does_not_choose_thresholds() -> None:
    assert check_metric("spearman", REGRESSION, 1) == "spearman"
    with pytest.raises(NotApplicable, match="spearman ranks all samples together"):
        check_metric("spearman", REGRESSION, 1, for_thresholds=True)
    with pytest.raises(NotApplicable, match="these have: accuracy, macro-f1, matthews"):
        check_metric("f1", SINGLE_LABEL, 3)


def test_several_labels_of_which_none_is_true_or_answered_have_no_f1() -> None:
    trace = Trace(-torch.ones(1, 4, 3), torch.zeros(4, 3), problem_type=MULTI_LABEL)
    assert (layerwise(trace), layerwise(trace, "macro-f1")) == ([1.0], [0.0])


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownName, match="unknown metric 'recall'; known: accuracy, f1, macro-f1, matthews, pearson, s"
    ):
        layerwise(random_trace(SINGLE_LABEL), "recall")


def test_a_score_needs_labels() -> None:
    trace = Trace(torch.randn(2, 3, 2))
    with pytest.raises(InvalidInput, match="needs labels"):
        layerwise(trace)
    with pytest.raises(InvalidInput, match="needs labels"):
        labels_of(trace)


# --- layer by layer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "problem_type", "outputs"), CASES)
def test_layerwise_is_each_exit_for_everybody(name: str, problem_type: str, outputs: int) -> None:
    trace = random_trace(problem_type, outputs=outputs, layers=torch.tensor([1, 3, 4, 6, 9, 12]))
    alone = [measure(trace, Fixed(), layer, name) for layer in trace.layer_numbers]
    assert layerwise(trace, name) == pytest.approx([measured.score for measured in alone], abs=1e-9)
    assert [measured.mean_exit for measured in alone] == trace.layer_numbers
    assert {round(measured.full_score, 9) for measured in alone} == {round(layerwise(trace, name)[-1], 9)}


def test_scores_of_many_exits_are_the_scores_of_each() -> None:
    trace = random_trace(SINGLE_LABEL)
    metric = METRICS["macro-f1"]
    together = score(metric, ExitOutput(trace.logits), trace.labels)
    assert together.tolist() == [score(metric, trace.exit(number), trace.labels).item() for number in range(6)]


# --- measure ------------------------------------------------------------------------------------------------


def test_measure_by_hand() -> None:
    certainty = torch.tensor([[0.9, 0.1, 0.1, 0.9], [0.9, 0.9, 0.1, 0.9], [0.0] * 4])  # leave at layer 2, 4, 6, 2
    answers = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0]])  # so they answer 1, 1, 1, 1; in full 1 0 1 0
    logits = torch.nn.functional.one_hot(answers, 2).float()
    trace = Trace(logits, torch.tensor([1, 1, 1, 0]), certainty, [2, 4, 6], provenance={"data": "dev"})
    measured = measure(trace, Certainty(), 0.5)
    assert (measured.metric, measured.score, measured.full_score) == ("accuracy", 0.75, 0.75)
    assert measured.agreement == 0.5
    assert measured.mean_exit == (2 + 4 + 6 + 2) / 4
    assert (measured.depth, measured.rows, measured.provenance) == (6, 4, {"data": "dev"})
    assert measured.speedup == pytest.approx(6 / 3.5)  # layers, not exits
    assert measured.saving == pytest.approx(1 - 14 / 24)  # PCEE-BERT, eq. 4
    assert measure(trace, policy_to_dict(Certainty()), (0.5, 0.5)) == measured


def test_agreement_compares_sets_of_labels() -> None:
    logits = torch.tensor([[[1.0, 1.0], [1.0, -1.0]], [[1.0, -1.0], [2.0, -2.0]]])
    assert measure(Trace(logits, problem_type=MULTI_LABEL), Fixed(), 1).agreement == 0.5


def test_a_regression_has_no_agreement() -> None:
    measured = measure(random_trace(REGRESSION, outputs=1), Fixed(), 3)
    assert (measured.metric, measured.agreement, measured.mean_exit) == ("pearson", None, 3)


def test_without_labels_agreement_and_mean_exit_are_measured() -> None:
    labelled = random_trace(SINGLE_LABEL)
    with_labels, without = (measure(trace, Entropy(), 0.5) for trace in (labelled, Trace(labelled.logits)))
    assert (without.metric, without.score, without.full_score) == (None, None, None)
    assert (without.agreement, without.mean_exit) == (with_labels.agreement, with_labels.mean_exit)


@pytest.mark.parametrize(("exit", "threshold"), [(0, 2), (1, 2), (5, 2), (5, math.inf)])
def test_samples_without_a_finite_answer_are_counted_and_refused(exit: int, threshold: float) -> None:
    trace = random_trace(SINGLE_LABEL)
    trace.logits[exit, [3, 5], 1] = math.nan
    with pytest.raises(InvalidInput, match="2 of 50 samples have no finite answer"):
        measure(trace, Fixed(), threshold)


def test_a_broken_exit_that_nobody_reads_does_not_matter() -> None:
    trace = random_trace(SINGLE_LABEL)
    wanted = measure(trace, Fixed(), 2)
    trace.logits[3, 5, 1] = math.nan
    assert measure(trace, Fixed(), 2) == wanted
