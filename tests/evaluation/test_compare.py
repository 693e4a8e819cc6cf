import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.bootstrap import bootstrap_curve
from offramp.evaluation.compare import against_full, compare, comparison
from offramp.evaluation.curves import area, score_at
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import METRICS, layerwise
from offramp.evaluation.oracle import oracle
from offramp.evaluation.summary import ExitScoreSummary, exit_score_summary, histogram
from offramp.evaluation.sweep import curve
from offramp.policies.confidence import Entropy, Margin
from offramp.policies.fixed import Fixed
from offramp.policies.patience import Stability
from offramp.policies.registry import POLICIES, load_policy
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes
from support.traces import CASES, PLAIN_CASES, first_classes, random_trace

OUTPUTS = {REGRESSION: 1, SINGLE_LABEL: 2, MULTI_LABEL: 3}
LAYERS = torch.tensor([1, 2, 4, 6, 7, 9])


def metrics_for(problem_type: str) -> Iterator[str]:
    for name, metric in METRICS.items():
        if problem_type in (metric.problem_types or (SINGLE_LABEL, MULTI_LABEL)):
            yield name


# --- bands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "problem_type"), PLAIN_CASES)
def test_a_band_is_what_is_measured_at_its_thresholds(data: dict[str, Any], problem_type: str) -> None:
    trace = random_trace(problem_type, samples=40, outputs=OUTPUTS[problem_type], layers=LAYERS)
    policy = load_policy(first_classes(data, OUTPUTS[problem_type]))
    for metric in metrics_for(problem_type):
        seen = bootstrap_curve(trace, policy, metric, points=12, resamples=3)
        told = [measure(trace, policy, threshold, metric) for threshold in seen.thresholds.tolist()]
        assert seen.mean_exits.tolist() == pytest.approx([each.mean_exit for each in told], abs=1e-9)
        assert seen.scores.tolist() == pytest.approx([each.score for each in told], abs=1e-9)


def test_a_band_is_a_part_of_the_curve_from_end_to_end_and_evenly_spread() -> None:
    trace = random_trace(SINGLE_LABEL, samples=500)
    seen, whole = bootstrap_curve(trace, Entropy(), points=51, resamples=2), curve(trace, Entropy())
    places = torch.searchsorted(-whole.thresholds, -seen.thresholds)
    assert torch.equal(whole.thresholds[places], seen.thresholds)
    assert whole.scores[places].tolist() == pytest.approx(seen.scores.tolist(), abs=1e-12)
    assert (places[0], places[-1], len(places)) == (0, len(whole.thresholds) - 1, 51)
    assert seen.mean_exits.diff().abs().max() < 5 / 50 * 1.1
    every = bootstrap_curve(trace, Fixed(), resamples=2)
    assert every.mean_exits.tolist() == [6, 5, 4, 3, 2, 1]
    assert every.scores.tolist() == pytest.approx(layerwise(trace)[::-1])


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_intervals_are_those_of_a_loop_over_resampled_traces_and_wider_where_few_are_right_or_wrong(
    problem_type: str,
) -> None:
    trace = random_trace(problem_type, samples=30, outputs=OUTPUTS[problem_type])
    policy = Stability() if problem_type == REGRESSION else Margin()
    drawn = torch.randint(30, (30, 25), generator=torch.Generator().manual_seed(4))
    for metric in metrics_for(problem_type):
        seen = bootstrap_curve(trace, policy, metric, points=6, resamples=25, confidence=0.8, seed=4)
        for number, threshold in enumerate(seen.thresholds.tolist()):
            scores = [measure(trace.take(rows), policy, threshold, metric).score for rows in drawn.T]
            low, middle, high = np.quantile(scores, (0.1, 0.5, 0.9))
            moved = seen.scores[number].item() - middle
            low, high = max(low + min(0, moved), METRICS[metric].least), min(high + max(0, moved), 1)
            right = None if problem_type == REGRESSION else 30 * measure(trace, policy, threshold, "accuracy").score
            if right is None or right <= 20.5:
                assert seen.low[number].item() == pytest.approx(low, abs=1e-9)
            if right is None or right >= 9.5:
                assert seen.high[number].item() == pytest.approx(high, abs=1e-9)
            assert seen.low[number].item() <= low + 1e-9
            assert seen.high[number].item() >= high - 1e-9


def test_intervals_hold_what_they_promise_on_fresh_draws() -> None:
    random, held, draws = torch.Generator().manual_seed(0), 0, 300
    for seed in range(draws):
        right = torch.rand(2, 150, generator=random) < torch.tensor([[0.7], [0.9]])
        trace = Trace(torch.stack((~right, right), dim=-1).float(), torch.ones(150, dtype=torch.long))
        seen = bootstrap_curve(trace, Fixed(), seed=seed)
        held += int(seen.low[-1] <= 0.7 <= seen.high[-1])
    assert 0.91 <= held / draws <= 0.98


def test_a_band_needs_labels_exits_and_finite_answers() -> None:
    trace = random_trace(SINGLE_LABEL)
    with pytest.raises(InvalidInput, match="needs labels"):
        bootstrap_curve(Trace(trace.logits), Entropy())
    with pytest.raises(InvalidInput, match="a trace of one exit"):
        bootstrap_curve(Trace(trace.logits[:1], trace.labels), Entropy())
    trace.logits[2, 7] = math.nan
    with pytest.raises(InvalidInput, match="1 of 50 samples"):
        bootstrap_curve(trace, Entropy())


# --- comparisons --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem_type", "missing"),
    [(SINGLE_LABEL, {"stability"}), (MULTI_LABEL, {"stability"}), (REGRESSION, None)],
)
def test_every_policy_that_has_a_meaning_is_compared(problem_type: str, missing: set[str] | None) -> None:
    trace = random_trace(problem_type)
    found, rows = comparison(trace)
    wanted = (
        {"certainty", "consistency", "fixed", "stability"}
        if missing is None
        else {*POLICIES, "margin, per exit"} - missing
    )
    assert set(found) == wanted
    assert len(rows) == 25
    bare = Trace(trace.logits, problem_type=problem_type)
    assert set(comparison(bare)[0]) == wanted - {"certainty", "gain"}


def test_no_row_that_fitted_a_policy_is_compared_on() -> None:
    trace = random_trace(SINGLE_LABEL)
    for seed in (0, 1):
        found, rows = comparison(trace, seed)
        for name in ("consistency", "gain", "margin, per exit"):
            fitted_on = set(found[name].fitted_on)
            assert fitted_on | set(row_hashes(rows)) == set(row_hashes(trace))
            assert not fitted_on & set(row_hashes(rows))
    assert row_hashes(comparison(trace, 0)[1]) != row_hashes(comparison(trace, 1)[1])


def test_a_comparison_has_a_band_for_every_policy_and_limits_that_all_reach() -> None:
    found = compare(random_trace(SINGLE_LABEL, layers=LAYERS), "macro-f1")
    assert (found.metric, set(found.bands)) == ("macro-f1", set(found.policies))
    assert found.limits == (2, 9)  # pcee and divergence compare two exits
    assert found.bands["margin"].scores.tolist() == pytest.approx(
        bootstrap_curve(found.trace, Margin(), "macro-f1").scores.tolist()
    )
    assert found.oracle is not None
    with pytest.raises(InvalidInput, match="one row cannot be halved"):
        compare(random_trace(SINGLE_LABEL, samples=1))


def test_without_labels_the_score_is_agreement() -> None:
    for problem_type in (SINGLE_LABEL, MULTI_LABEL):
        labelled = random_trace(problem_type)
        found = compare(Trace(labelled.logits, problem_type=problem_type))
        assert found.metric == "agreement"
        for threshold, score in zip(found.bands["margin"].thresholds, found.bands["margin"].scores, strict=True):
            rows = Trace(found.trace.logits, problem_type=problem_type)
            assert score.item() == pytest.approx(measure(rows, Margin(), threshold.item()).agreement)
    values = compare(Trace(random_trace(REGRESSION, outputs=1).logits))
    assert values.metric == "pearson with the full model"
    assert values.oracle is None
    assert values.bands["fixed"].scores[0] == pytest.approx(1)
    assert layerwise(against_full(random_trace(SINGLE_LABEL)))[-1] == 1


@pytest.mark.slow
def test_ten_thousand_rows_are_compared_in_less_than_half_a_minute() -> None:
    trace = random_trace(SINGLE_LABEL, depth=12, samples=20_000)
    began = time.perf_counter()
    assert len(compare(trace).trace) == 10_000
    assert time.perf_counter() - began < 30


# --- the oracle ---------------------------------------------------------------------------------------------


def test_the_oracle_by_hand() -> None:
    right = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).bool()  # exits at layers 2, 3, 5; the last never
    trace = Trace(torch.stack((~right, right), dim=-1).float(), torch.ones(4, dtype=torch.long), layers=[2, 3, 5])
    found = oracle(trace)
    assert found.thresholds.tolist() == [math.inf, 5, 3, 2]
    assert found.mean_exits.tolist() == [5, (2 + 3 + 5 + 2) / 4, (2 + 3 + 2 + 2) / 4, 2]
    assert found.scores.tolist() == [0.75, 0.75, 0.5, 0.25]
    assert oracle(trace, "f1").scores.tolist() == pytest.approx([6 / 7, 6 / 7, 4 / 6, 2 / 5])
    with pytest.raises(NotApplicable, match="regression"):
        oracle(random_trace(REGRESSION))


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_nobody_beats_the_oracle(problem_type: str) -> None:
    trace = random_trace(problem_type, layers=LAYERS)
    bound = oracle(trace)
    for data, kind in CASES:
        if kind == problem_type and "ensemble" not in str(data):  # which gives answers that no exit gave
            seen = curve(trace, load_policy(data))
            best = np.interp(seen.mean_exits, bound.mean_exits.flip(0), bound.scores.flip(0))
            assert (seen.scores.numpy() <= best + 1e-9).all(), data


# --- exits in numbers ---------------------------------------------------------------------------------------


def test_from_layer_0_every_figure_is_the_same_one_layer_earlier() -> None:
    trace = random_trace(SINGLE_LABEL, depth=4, samples=60)
    lexical = replace(trace, layers=torch.arange(4))
    for policy in (Entropy(), Margin()):
        later, earlier = (bootstrap_curve(rows, policy, resamples=10) for rows in (trace, lexical))
        assert earlier.mean_exits[-1] == 0
        torch.testing.assert_close(later.mean_exits - 1, earlier.mean_exits)
        for name in ("thresholds", "scores", "low", "high"):
            assert torch.equal(getattr(later, name), getattr(earlier, name))
        assert area(later) == pytest.approx(area(earlier))
        assert area(later, 1, 3) == pytest.approx(area(earlier, 0, 2))
        assert score_at(earlier.mean_exits, earlier.scores, 0) == later.scores[-1]
    limits = [compare(rows).limits for rows in (trace, lexical)]
    assert limits[1] == pytest.approx([limit - 1 for limit in limits[0]])
    later, earlier = oracle(trace), oracle(lexical)
    torch.testing.assert_close(later.mean_exits - 1, earlier.mean_exits)
    assert torch.equal(later.scores, earlier.scores)


def test_the_spread_over_the_exits() -> None:
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    trace = Trace(torch.stack((~right, right), dim=-1).float(), torch.ones(4, dtype=torch.long))
    expected = pytest.approx(vars(ExitScoreSummary(0.5, 0.75, math.sqrt(0.125 / 3))))
    assert vars(exit_score_summary(trace)) == expected
    lexical = torch.cat((torch.zeros_like(trace.logits[:1]), trace.logits))  # papers have none
    assert vars(exit_score_summary(replace(trace, logits=lexical, layers=torch.arange(4)))) == expected


def test_the_histogram_counts_who_leaves_where() -> None:
    layers = (0, *LAYERS[1:].tolist())
    trace = random_trace(SINGLE_LABEL, layers=layers)
    assert histogram(trace, fixed_depth_point(4, layers)) == {0: 0, 2: 0, 4: 50, 6: 0, 7: 0, 9: 0}
    assert histogram(trace, fixed_depth_point(0, layers))[0] == 50
    counts = histogram(trace, OperatingPoint({"name": "entropy"}, (0.6,) * 4, exit_layers=(0, *layers[2:])))
    assert (sum(counts.values()), counts[2]) == (50, 0)
    read = trace.select([0, *layers[2:]])
    assert sum(layer * count for layer, count in counts.items()) / 50 == measure(read, Entropy(), 0.6).mean_exit
