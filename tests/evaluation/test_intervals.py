"""Bounds from few rows, against scipy and by hand."""

import math

import pytest
import torch
from scipy.stats import binomtest

from offramp.evaluation.bootstrap import bootstrap_curve, loss_interval, point_loss_interval
from offramp.evaluation.intervals import rows_needed, share_interval, upper_share
from offramp.evaluation.metrics import layerwise
from offramp.evaluation.slices import by_groups
from offramp.policies.fixed import Fixed
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace
from support.traces import random_trace

FIRST = OperatingPoint({"name": "fixed"}, (1.0,))


def two_exits(first: list[int], last: list[int], labels: list[int]) -> Trace:
    """A trace of two exits that give these answers of two classes."""
    answers = torch.nn.functional.one_hot(torch.tensor([first, last]), 2).float()
    return Trace(answers, torch.tensor(labels))


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (2, 2), (1, 2), (3, 50), (50, 50), (4_000, 10_000)])
def test_a_share_has_the_exact_interval(count: int, rows: int) -> None:
    expected = binomtest(count, rows).proportion_ci()
    assert share_interval(count, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)
    one_sided = binomtest(count, rows, alternative="less").proportion_ci()
    assert upper_share(count, rows) == pytest.approx(one_sided.high, abs=1e-9)


def test_the_rule_of_three() -> None:
    assert upper_share(0, 1) == pytest.approx(0.95)
    assert upper_share(0, 300) == pytest.approx(3 / 300, rel=0.01)
    assert [rows_needed(level) for level in (0.01, 0.02, 0.05, 0.95, 1.0, 0.0)] == [299, 149, 59, 1, 1, None]
    for level in (0.01, 0.02, 0.05):
        needed = rows_needed(level)
        assert upper_share(0, needed) <= level < upper_share(0, needed - 1)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro-f1", "matthews"])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_rows_that_are_all_alike_have_a_band_with_a_width(metric: str, right: bool, rows: int) -> None:
    labels = [number % 2 for number in range(rows)]
    answers = labels if right else [1 - label for label in labels]
    band = bootstrap_curve(two_exits(answers, answers, labels), Fixed(), metric, resamples=20)
    assert (band.low < band.high).all()
    assert (band.low <= band.scores).all()
    assert (band.scores <= band.high).all()
    if metric == "accuracy":
        expected = binomtest(rows if right else 0, rows).proportion_ci()
        assert band.low.tolist() == pytest.approx([expected.low] * 2, abs=1e-9)
        assert band.high.tolist() == pytest.approx([expected.high] * 2, abs=1e-9)


def test_several_labels_have_a_band_with_a_width_too() -> None:
    trace = Trace(torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]] * 2), torch.tensor([[1, 0], [0, 1]]))
    assert trace.problem_type == MULTI_LABEL
    for metric in ("accuracy", "macro-f1"):
        band = bootstrap_curve(trace, Fixed(), metric, resamples=20)
        assert (band.low < 0.6).all()
        low, high = loss_interval(trace, replay(trace, "fixed", 1), metric)
        assert low == -high < -0.3


def test_a_score_that_the_rows_do_not_define_may_be_anything() -> None:
    constant = Trace(torch.randn(2, 5, 1), torch.full((5,), 3.5))
    band = bootstrap_curve(constant, Fixed())
    assert (band.low.tolist(), band.high.tolist()) == ([-1, -1], [1, 1])
    assert loss_interval(constant, replay(constant, "fixed", 1)) is None
    without_yes = two_exits([0] * 40, [0] * 40, [0] * 40)
    band = bootstrap_curve(without_yes, Fixed(), "f1", resamples=20)
    assert (band.low.tolist(), band.high.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_correlation_of_few_rows_has_no_interval(metric: str) -> None:
    """Resampled, three rows have the true difference of two correlations in 4 of 10 draws."""
    for rows in (2, 3, 9):
        trace = random_trace(REGRESSION, depth=2, samples=rows, outputs=1)
        band = bootstrap_curve(trace, Fixed(), metric)
        assert (band.low.tolist(), band.high.tolist()) == ([-1, -1], [1, 1])
        assert loss_interval(trace, replay(trace, "fixed", 1), metric) is None
    enough = random_trace(REGRESSION, depth=2, samples=10, outputs=1)
    assert loss_interval(enough, replay(enough, "fixed", 1), metric) is not None


def test_a_score_that_is_not_defined_has_no_interval_of_its_loss() -> None:
    answers = [[int(number % divisor == 0) for number in range(60)] for divisor in (3, 2)]
    one_class = two_exits(*answers, [0] * 60)
    for metric in ("matthews", "f1"):
        assert point_loss_interval(one_class, FIRST, metric) in (None, (0.0, 1.0))


def test_macro_f1_of_many_classes_holds_what_it_promises() -> None:
    """A resample lacks some classes, so its macro-F1 is lower than the sample's; percentiles hold two of three."""
    random, classes, draws = torch.Generator().manual_seed(0), 100, 30

    def draw(rows: int) -> Trace:
        labels = torch.randint(classes, (rows,), generator=random)
        wrong = torch.rand(2, rows, generator=random) < torch.tensor([[0.25], [0.1]])
        answers = torch.where(wrong, torch.randint(classes, (2, rows), generator=random), labels)
        return Trace(torch.nn.functional.one_hot(answers, classes).float(), labels)

    first, last = layerwise(draw(50_000), "macro-f1")
    holds = [0, 0]
    for _ in range(draws):
        trace = draw(600)
        band = bootstrap_curve(trace, Fixed(), "macro-f1")
        low, high = loss_interval(trace, replay(trace, "fixed", 1), "macro-f1")
        holds[0] += int(low <= last - first <= high)
        holds[1] += int(band.low[0] <= last <= band.high[0])
    assert min(holds) >= 0.85 * draws


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "matthews"])
def test_an_interval_holds_the_score_itself(metric: str) -> None:
    labels = torch.arange(200).repeat(2)
    answers = torch.stack((torch.where(labels % 7 < 2, 0, labels), torch.where(labels % 11 == 3, 5, labels)))
    trace = Trace(torch.nn.functional.one_hot(answers, 200).float(), labels)
    band = bootstrap_curve(trace, Fixed(), metric)
    assert (band.low <= band.scores).all()
    assert (band.scores <= band.high).all()
    low, high = loss_interval(trace, replay(trace, "fixed", 1), metric)
    first, last = layerwise(trace, metric)
    assert low <= last - first <= high


@pytest.mark.parametrize("rows", [1, 2, 40, 300])
def test_a_loss_that_no_row_shows_is_bounded_by_the_rule_of_three(rows: int) -> None:
    labels = [number % 2 for number in range(rows)]
    wrong_nowhere = two_exits(labels, labels, labels)
    bound = 1 - 0.05 ** (1 / rows)
    assert loss_interval(wrong_nowhere, replay(wrong_nowhere, "fixed", 1)) == pytest.approx((-bound, bound))
    assert point_loss_interval(wrong_nowhere, FIRST) == pytest.approx((-bound, bound))
    never = OperatingPoint({"name": "fixed"}, (math.inf,))
    assert point_loss_interval(wrong_nowhere, never) == (0.0, 0.0)  # nobody leaves, here or elsewhere
    if rows > 1:
        for metric in ("f1", "macro-f1", "matthews"):
            low, high = loss_interval(wrong_nowhere, replay(wrong_nowhere, "fixed", 1), metric)
            assert low < 0 < high


def test_a_loss_of_every_row_is_bounded_too() -> None:
    """With 8 of 8 lost the share of lost rows is at least .05^(1/8); the others may be gained."""
    trace = two_exits([0] * 8, [1] * 8, [1] * 8)
    assert loss_interval(trace, replay(trace, "fixed", 1)) == pytest.approx((2 * 0.05 ** (1 / 8) - 1, 1.0))


def test_one_lost_row_among_a_hundred_has_the_exact_upper_end() -> None:
    labels = [1] * 100
    trace = two_exits([0, *labels[1:]], labels, labels)
    low, high = loss_interval(trace, replay(trace, "fixed", 1))
    assert high == pytest.approx(binomtest(1, 100).proportion_ci().high, abs=1e-9)
    assert -0.04 < low < 0


def test_slices_of_one_row_promise_nothing() -> None:
    trace = two_exits([0, 1, 1], [0, 1, 1], [0, 1, 1])
    alone, together = by_groups(trace, FIRST, ["a", "b", "b"])
    assert alone.loss_interval == pytest.approx((-0.95, 0.95))
    assert together.loss_interval == pytest.approx((-(1 - 0.05**0.5), 1 - 0.05**0.5))
    unlabelled = Trace(trace.logits)
    assert by_groups(unlabelled, FIRST, ["a"] * 3)[0].loss_interval is None
