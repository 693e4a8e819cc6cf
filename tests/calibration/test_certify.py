"""Certified thresholds: p-values against scipy and by hand, promises against a population whose risk is known."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom
from torch import Tensor

from offramp.calibration.bounds import betting, binomial, conformal, hoeffding_bentkus
from offramp.calibration.calibrate import calibrate
from offramp.calibration.certify import METHODS, Method, certify, losses, lost_at
from offramp.calibration.ladder import ladder
from offramp.cli.main import main
from offramp.errors import CannotReach, InvalidInput, NotApplicable, UnknownName
from offramp.evaluation.sweep import all_splits
from offramp.model.card import save_points
from offramp.policies import registry
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.confidence import Entropy
from offramp.policies.replay import scores
from offramp.types.operating_point import Certificate, OperatingPoint, Target, read_points, write_points
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes, trace_digest
from support.command_line import offramp
from support.models import save_folder, texts, tiny_model
from support.traces import random_trace

SURE = ("hoeffding-bentkus", "binomial", "betting")  # these promise with probability 1 - delta


# --- p-values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "level"), [(1, 0.5), (20, 0.1), (300, 0.01), (5000, 0.02)])
def test_binomial_p_values_are_scipys(rows: int, level: float) -> None:
    wanted = binom.cdf(np.arange(rows + 1), rows, level)
    assert binomial(rows, level).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("rows", "level"), [(20, 0.1), (300, 0.01), (2000, 0.05)])
def test_the_binomial_test_is_clopper_and_pearsons_bound(rows: int, level: float) -> None:
    for lost, p_value in enumerate(binomial(rows, level).tolist()[:-1]):
        bound = beta.ppf(0.95, lost + 1, rows - lost)
        assert (p_value <= 0.05) == (bound <= level)


@pytest.mark.parametrize(("rows", "level"), [(20, 0.1), (300, 0.01), (2000, 0.05)])
def test_hoeffding_bentkus_is_the_smaller_of_its_two_formulas(rows: int, level: float) -> None:
    def formula(lost: int) -> float:
        share = min(lost / rows, level)
        first = share * math.log(share / level) if share else 0.0
        divergence = first + (1 - share) * math.log((1 - share) / (1 - level))
        return min(1.0, math.exp(-rows * divergence), math.e * binom.cdf(math.ceil(lost), rows, level))

    wanted = [formula(lost) for lost in range(rows + 1)]
    assert hoeffding_bentkus(rows, level).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_hoeffding_bentkus_by_hand() -> None:
    # 10 rows, level .2: none lost .8^10; one lost: exp(-10 kl(.1, .2)) = 2^1 (9/8)^-9 against e (.8^10 + 2 .8^9)
    assert hoeffding_bentkus(10, 0.2)[0].item() == pytest.approx(0.8**10)
    assert hoeffding_bentkus(10, 0.2)[1].item() == pytest.approx(2 * (8 / 9) ** 9)
    assert math.e * (0.8**10 + 2 * 0.8**9) > 2 * (8 / 9) ** 9
    assert hoeffding_bentkus(10, 0.2)[2:].tolist() == [1.0] * 9
    # 1,000 rows, level .01, 1 lost: Bentkus is the smaller
    small = math.e * (0.99**1000 + 10 * 0.99**999)
    assert hoeffding_bentkus(1000, 0.01)[1].item() == pytest.approx(min(small, 10 * (0.99 / 0.999) ** 999))


def test_betting_by_hand() -> None:
    # stakes: variance before is 1/4; after one loss of 0: mean 1/4, (1/4 + 1/16) / 2 = 5/32
    level, delta = 0.5, math.exp(-0.125)  # 2 ln(1/delta) = 1/4
    first = 1 + math.sqrt(0.25 / (3 * 0.25)) * 0.5
    second = first * (1 + math.sqrt(0.25 / (3 * 5 / 32)) * 0.5)
    assert betting(torch.tensor([0, 0, 1]), level, delta) == pytest.approx(1 / second)
    assert betting(torch.tensor([1, 1, 0]), level, delta) == 1.0  # never above what it began with


@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_betting_is_the_bound_of_the_authors_code(delta: float) -> None:
    lost = np.random.default_rng(0).random(400) < 0.03

    def capital(level: float) -> float:  # as in aangelopoulos/conformal-prediction, written row by row
        most, now, mean, variance, total = 1.0, 1.0, 0.5, 0.25, 0.25
        for number, loss in enumerate(lost, start=1):
            now *= 1 - min(1.0, math.sqrt(2 * math.log(1 / delta) / (len(lost) * variance))) * (loss - level)
            mean = (0.5 + lost[:number].sum()) / (1 + number)
            total += (loss - mean) ** 2
            variance = total / (1 + number)
            most = max(most, now)
        return most

    for level in (0.02, 0.04, 0.06, 0.1):
        assert betting(torch.from_numpy(lost), level, delta) == pytest.approx(1 / capital(level))


def test_conformal_counts_one_loss_more() -> None:
    assert conformal(4).tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]


@settings(max_examples=50)
@given(st.integers(1, 400), st.floats(0.005, 0.5))
def test_more_losses_have_larger_p_values_and_the_exact_one_is_never_the_larger(rows: int, level: float) -> None:
    exact, general = binomial(rows, level), hoeffding_bentkus(rows, level)
    assert (exact.diff() >= -1e-12).all()
    assert (general.diff() >= -1e-12).all()
    assert (exact <= general + 1e-12).all()


@pytest.mark.parametrize("rows", [50, 200])
def test_a_p_value_is_below_delta_no_more_often_than_delta(rows: int) -> None:
    random = np.random.default_rng(0)
    for level in (0.02, 0.1):
        lost = torch.from_numpy(random.random((4000, rows)) < level)  # the risk is the level: the worst that may be
        for delta in (0.05, 0.2):
            most = delta + 2 * math.sqrt(delta * (1 - delta) / len(lost))
            for table in (hoeffding_bentkus(rows, level), binomial(rows, level)):
                assert (table[lost.sum(dim=1)] <= delta).double().mean() <= most
            assert np.mean([betting(row, level, delta) <= delta for row in lost[:1000]]) <= most + 0.01


# --- coverage: a population whose risk is known at every threshold --------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Rows to draw from. A draw with replacement is independent rows, and the risk is that of all rows."""

    score: Tensor  # (L, M)
    loss: Tensor  # (L, M) bool

    def risk(self, threshold: float) -> float:
        return lost_at(self.score, self.loss, threshold).double().mean().item()

    def draw(self, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(self.score.shape[1], (rows,), generator=torch.Generator().manual_seed(seed))
        return self.score[:, chosen], self.loss[:, chosen]


def layers_of_equal_risk(risk: float) -> Population:
    """Everybody leaves at one layer, whichever the threshold says, and at each another few are lost."""
    depth, rows = 16, 2000
    order = torch.rand(depth, rows, generator=torch.Generator().manual_seed(1)).argsort(dim=1).argsort(dim=1)
    loss = order < risk * rows
    loss[-1] = False
    return Population(torch.arange(1.0, depth + 1).view(-1, 1).expand(depth, rows).contiguous(), loss)


def surer_is_better(exits: int) -> Population:
    """The less sure, the more are lost; deeper exits are surer and lose less. The risk passes the level."""
    rows, random = 2000, torch.Generator().manual_seed(2)
    ease, depth = torch.rand(rows, generator=random), torch.linspace(0, 1, exits).view(-1, 1)
    score = ease + depth / 2 + torch.rand(exits, rows, generator=random) / 4
    loss = torch.rand(exits, rows, generator=random) < 0.4 * (1 - ease).square() * (1 - depth)
    return Population(score, loss)


LEVEL, DELTA, ROWS, DRAWS = 0.05, 0.1, 200, 1000
EVERYBODY = torch.ones(ROWS, dtype=torch.bool)


def broken_promises(find: Method, population: Population, draws: int = DRAWS) -> tuple[float, float]:
    """The share of draws with a risk above the level; the mean risk."""
    found = []
    for seed in range(draws):
        threshold = find(*population.draw(ROWS, seed), EVERYBODY, LEVEL, DELTA)
        found.append(0.0 if threshold is None else population.risk(threshold))
    return float(np.mean([risk > LEVEL for risk in found])), float(np.mean(found))


def keeps_its_promise(find: Method, population: Population) -> bool:
    return broken_promises(find, population)[0] <= DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


def loosest_anywhere(score: Tensor, loss: Tensor, counted: Tensor, level: float, delta: float) -> float | None:
    """Wrong: tests every threshold at delta, and takes the loosest that passes, whatever the stricter ones say."""
    swept, _ = all_splits(score, loss.double().unsqueeze(-1))
    passes = hoeffding_bentkus(loss.shape[1], level)[swept.statistics[:, 0].long()] <= delta
    return swept.thresholds[passes][-1].item() if passes.any() else None


POPULATIONS = {"surer is better": surer_is_better(4), "just too much": layers_of_equal_risk(LEVEL * 1.02)}


@pytest.mark.parametrize(
    ("method", "population"),
    [
        pytest.param(
            method,
            population,
            marks=pytest.mark.slow if (method, name) == ("betting", "surer is better") else (),
            id=f"{method}, {name}",
        )
        for name, population in POPULATIONS.items()
        for method in SURE
    ],
)
def test_promises_are_broken_no_more_often_than_delta(method: str, population: Population) -> None:
    assert keeps_its_promise(METHODS[method], population)


def test_a_search_without_correction_fails_the_coverage_test() -> None:
    assert not keeps_its_promise(loosest_anywhere, POPULATIONS["just too much"])


@pytest.mark.parametrize("population", POPULATIONS.values(), ids=POPULATIONS)
def test_conformal_keeps_the_mean_over_draws(population: Population) -> None:
    assert broken_promises(METHODS["conformal"], population)[1] <= LEVEL * 1.01


def test_conformal_breaks_its_promise_in_single_draws() -> None:
    broken, mean = broken_promises(METHODS["conformal"], surer_is_better(2))
    assert LEVEL * 0.8 < mean <= LEVEL * 1.01
    assert broken > 2 * DELTA


def test_certificates_are_not_empty_promises() -> None:
    """On many rows every method comes near to the loosest threshold there is."""
    population, everybody = surer_is_better(2), torch.ones(5000, dtype=torch.bool)
    for find in METHODS.values():
        assert 0.8 * LEVEL < population.risk(find(*population.draw(5000, 1), everybody, LEVEL, DELTA)) <= LEVEL * 1.05


# --- the search -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(METHODS)))
def test_the_search_is_the_slow_one(seed: int, method: str) -> None:
    """Replays every threshold and tests the losses, from the strictest down, as the papers write it."""
    random = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 12, (4, 60), generator=random).float() / 4
    loss = torch.rand(4, 60, generator=random) < torch.tensor([0.08, 0.05, 0.03, 0.0]).view(-1, 1)
    level, delta = 0.1, 0.2
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    best, ever = None, torch.zeros(60, dtype=torch.bool)
    for threshold in [math.inf, *(np.arange(11, -1, -1) / 4 - 0.125)]:
        lost = lost_at(score, loss, threshold)
        ever |= lost
        lost_now, lost_ever = int(lost.sum()), int(ever.sum())
        passes = {
            "hoeffding-bentkus": hoeffding_bentkus(60, level)[lost_now].item() <= delta,
            "binomial": binom.cdf(lost_now, 60, level) <= delta,
            "betting": betting(lost[mixed], level, delta) <= delta,
            "conformal": (lost_ever + 1) / 61 <= level,
        }[method]
        if not passes:
            break
        best = threshold
    found = METHODS[method](score, loss, torch.ones(60, dtype=torch.bool), level, delta)
    assert (best is None) == (found is None)
    if best is not None:
        assert torch.equal(lost_at(score, loss, best), lost_at(score, loss, found))
        assert torch.equal((score >= best).any(dim=0), (score >= found).any(dim=0))


def test_a_split_that_has_no_threshold_of_its_own_is_tested_all_the_same() -> None:
    """The two surest scores are neighbouring floats: who is between cannot be asked for, but fails the test."""
    step = 2.0**-24
    score = torch.tensor([[0.5 + step] * 3 + [0.5] * 3 + [0.25] * 200, [0.0] * 206])
    loss = torch.zeros(2, 206, dtype=torch.bool)
    loss[0, :3] = True  # lost by the surest
    loss[0, 3:6] = False
    loss[1, 3:6] = True  # who would be lost at full depth is not at exit 1: the sum falls again
    sums, between = all_splits(score, loss.double().unsqueeze(-1))
    assert sums.statistics.flatten().tolist() == [3, 6, 3, 3]
    assert between.tolist() == [True, False, True, True]
    delta = float(binomial(206, 0.03)[4])  # 3 losses pass, 6 do not
    assert METHODS["binomial"](score, loss, torch.ones(206, dtype=torch.bool), 0.03, delta) == math.inf


@pytest.mark.parametrize("method", sorted(METHODS))
def test_more_is_promised_where_more_may_be_lost(method: str) -> None:
    trace = random_trace(SINGLE_LABEL, samples=2000)
    exits = [
        certify(trace, "entropy", "agreement", level, method=method).measured.mean_exit
        for level in (0.01, 0.02, 0.05, 0.1, 0.3)
    ]
    assert exits == sorted(exits, reverse=True)
    assert exits[-1] < exits[0]
    if method in SURE:
        surer = [
            certify(trace, "entropy", "agreement", 0.05, delta, method).measured.mean_exit for delta in (0.001, 0.5)
        ]
        assert surer[0] > surer[1]


# --- certify --------------------------------------------------------------------------------------------------------


def given_by(answers: list[list[int]], labels: list[int], certainty: Tensor, copies: int = 1) -> Trace:
    """A trace by its answers (L, N), each row as often as said."""
    logits = torch.nn.functional.one_hot(torch.tensor(answers), 3).float().repeat_interleave(copies, dim=1)
    return Trace(logits, torch.tensor(labels).repeat_interleave(copies), certainty.repeat_interleave(copies, dim=1))


def test_risks_by_hand() -> None:
    # right: both; full alone; early alone; neither, the same answer; neither, another answer
    trace = given_by([[0, 1, 0, 1, 2], [0, 0, 1, 1, 1]], [0, 0, 0, 0, 0], torch.zeros(2, 5))
    wanted = {
        "quality": ([False, True, False, False, False], [True] * 5),
        "drop": ([False, True, False, False, False], [True, True, False, False, False]),
        "agreement": ([False, True, True, False, True], [True] * 5),
    }
    for risk, (lost, counted) in wanted.items():
        found = losses(trace, trace.logits, risk)
        assert (found[0][0].tolist(), found[1].tolist()) == (lost, counted)
        assert not found[0][1].any()


def test_a_row_without_a_score_leaves_at_once_as_in_the_decision() -> None:
    score, loss = torch.tensor([[math.nan], [0.0], [0.0]]), torch.tensor([[True], [False], [False]])
    assert lost_at(score, loss, 0.5).tolist() == [True]


def test_with_several_labels_the_whole_set_counts() -> None:
    logits = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], [[1.0, -1.0], [1.0, -1.0], [1.0, 1.0]]])
    trace = Trace(logits, torch.tensor([[1, 0], [1, 1], [1, 1]]))
    assert losses(trace, logits, "quality")[0][0].tolist() == [True, False, False]
    assert losses(trace, logits, "drop")[1].tolist() == [True, False, True]
    assert losses(trace, logits, "agreement")[0][0].tolist() == [True, False, False]
    large = random_trace(MULTI_LABEL, samples=2000)
    point = certify(large, "entropy", "agreement", 0.2)
    assert point.measured.mean_exit < 6
    assert point.certificate.observed == pytest.approx(1 - point.measured.agreement)


def test_a_point_and_its_certificate_by_hand() -> None:
    # 4 kinds of 100 rows; .9 and .7 lose nothing, .5 loses 100 of 400 although the full model is right
    certainty = torch.tensor([[0.9, 0.7, 0.5, 0.3], [0.0] * 4])
    trace = given_by([[0, 1, 1, 1], [0, 0, 0, 0]], [0, 1, 0, 0], certainty, copies=100)
    trace = replace(trace, provenance={"engine": "torch-float32", "weights": "ab"})
    point = certify(trace, "certainty", "quality", level=0.02, delta=0.05)
    assert (point.policy, point.thresholds) == ({"name": "certainty"}, (pytest.approx(0.6),))
    assert point.target == {"level": 0.02, "delta": 0.05}
    assert point.measured.mean_exit == 1.5
    assert point.certificate == Certificate(
        risk="quality",
        level=0.02,
        delta=0.05,
        bound=0.02,
        observed=0.0,
        rows=400,
        method="binomial",
        engine="torch-float32",
        data=trace_digest(trace),
        weights="ab",
    )
    drop = certify(trace, "certainty", "drop", level=0.02)
    assert (drop.thresholds, drop.certificate.rows) == ((pytest.approx(0.6),), 300)
    agree = certify(trace, "certainty", "agreement", level=0.02)
    assert agree.thresholds == (pytest.approx(0.8),)  # .7 says otherwise than the full model, which is wrong
    loose = certify(trace, "certainty", "quality", level=0.3)
    assert (loose.thresholds, loose.certificate.observed) == ((pytest.approx(0.4),), 0.25)
    mean = certify(trace, "certainty", "quality", level=0.02, method="conformal")
    assert (mean.certificate.delta, mean.target) == (None, {"level": 0.02})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_drop_is_the_quality_on_the_rows_that_the_full_model_answers_right(method: str) -> None:
    trace = random_trace(SINGLE_LABEL, samples=4000)
    right = trace.logits[-1].argmax(dim=-1) == trace.labels
    point = certify(trace, "entropy", "drop", 0.05, method=method)
    alone = certify(trace.take(right.nonzero().flatten()), "entropy", "quality", 0.05, method=method)
    assert point.thresholds == pytest.approx(alone.thresholds, abs=1e-2)
    assert point.certificate.rows == alone.certificate.rows == int(right.sum()) < 4000
    assert point.certificate.observed == alone.certificate.observed
    assert point.measured.score >= 0.95 * point.measured.full_score


def test_a_threshold_lies_between_the_scores_of_all_rows_also_of_those_that_are_not_counted() -> None:
    trace = random_trace(SINGLE_LABEL, samples=4000)
    threshold = certify(trace, "entropy", "drop", 0.05).thresholds[0]
    seen = scores(Entropy(), trace)[:-1].cummax(dim=0).values.flatten().sort().values.double()
    above = int((seen < threshold).sum())
    assert threshold == pytest.approx(float(seen[above - 1] + seen[above]) / 2, abs=1e-7)


# 1 % at 95 %: .99^299 <= .05; betting starts with small stakes; on average (0 + 1) / (99 + 1)
@pytest.mark.parametrize(("method", "needed"), [("hoeffding-bentkus", 299), ("binomial", 299), ("conformal", 99)])
def test_too_few_rows_stay_at_full_depth_and_say_how_many_would_do(method: str, needed: int) -> None:
    for rows in (needed - 1, needed):
        trace = given_by([[0], [0]], [0], torch.tensor([[0.5], [0.0]]), copies=rows)
        point = certify(trace, "certainty", "quality", 0.01, 0.05, method)
        if rows == needed:
            assert point.thresholds[0] < 0.5
            assert point.certificate.note == ""
            continue
        assert point.thresholds == (math.inf,)
        assert (point.certificate.bound, point.measured.mean_exit) == (0, 2)
        assert point.certificate.note == f"cannot certify an early exit on {rows} rows; needs about {needed} rows"


def test_betting_says_how_many_rows_would_do() -> None:
    trace = given_by([[0], [0]], [0], torch.tensor([[0.5], [0.0]]), copies=100)
    note = certify(trace, "certainty", "quality", 0.01, 0.05, "betting").certificate.note
    needed = int(note.split("about ")[1].split()[0])
    assert 299 < needed < 340
    enough = given_by([[0], [0]], [0], torch.tensor([[0.5], [0.0]]), copies=needed)
    assert certify(enough, "certainty", "quality", 0.01, 0.05, "betting").certificate.note == ""


def test_the_exact_test_is_the_default_and_needs_fewer_rows_where_some_are_lost() -> None:
    # 1 row of 200 is lost by the only early exit; by scipy, the fewest rows on which 0.5 % of losses pass 2 % at 95 %
    trace = given_by([[0] * 199 + [1], [0] * 200], [0] * 200, torch.tensor([[0.5], [0.0]]).expand(2, 200))
    needed = next(rows for rows in range(201, 400) if binom.cdf(int(rows * 0.005), rows, 0.02) <= 0.05)
    assert 0.98**200 + 200 * 0.02 * 0.98**199 > 0.05
    certificate = certify(trace, "certainty", "quality", 0.02).certificate
    assert certificate.method == "binomial"
    assert certificate.note == f"cannot certify an early exit on 200 rows; needs about {needed} rows"
    general = certify(trace, "certainty", "quality", 0.02, method="hoeffding-bentkus").certificate.note
    assert int(general.split("about ")[1].split()[0]) > needed
    more = given_by(
        [[0] * (needed - 1) + [1], [0] * needed], [0] * needed, torch.tensor([[0.5], [0.0]]).expand(2, needed)
    )
    assert certify(more, "certainty", "quality", 0.02).thresholds[0] < 0.5
    assert certify(more, "certainty", "quality", 0.02, method="hoeffding-bentkus").thresholds == (math.inf,)


def test_of_a_drop_all_rows_are_counted_that_are_needed() -> None:
    certainty = torch.tensor([[0.5, 0.5], [0.0, 0.0]])  # the full model is right on one half
    note = certify(given_by([[0, 0], [0, 0]], [0, 1], certainty, 100), "certainty", "drop", 0.01).certificate.note
    assert note.endswith("on 200 rows; needs about 598 rows")


def test_where_no_number_of_rows_helps_none_is_named() -> None:
    trace = given_by([[1, 0], [0, 0]], [0, 0], torch.tensor([[0.9, 0.5], [0.0, 0.0]]), copies=100)
    note = certify(trace, "certainty", "quality", 0.01).certificate.note
    assert note == "cannot certify: even the strictest early exit loses 50.00% of 200 rows"
    nobody = replace(trace, certainty=None)
    assert certify(nobody, {"name": "pcee", "patience": 3}, "quality").certificate.note.startswith("no row has a score")


def test_an_answer_at_full_depth_that_is_not_the_full_models_is_tested_too() -> None:
    trace = random_trace(SINGLE_LABEL, samples=500)
    ensemble = {"name": "entropy", "ensemble": "all"}
    with pytest.raises(CannotReach, match="not even full depth holds the level"):
        certify(trace, ensemble, "agreement", 0.01)
    point = certify(trace, ensemble, "agreement", 0.6)
    assert point.certificate.bound == 0.6


@pytest.mark.parametrize("risk", ["quality", "drop", "agreement"])
def test_a_regression_is_refused_by_name(risk: str) -> None:
    with pytest.raises(NotApplicable, match=r"a regression has none; calibrate\(..., Target\(max_drop=...\)\)"):
        certify(random_trace(REGRESSION, outputs=1), "stability", risk)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"level": 0}, InvalidInput, "level must be between 0 and 1, got 0"),
        ({"level": 1.5}, InvalidInput, "level must be between 0 and 1, got 1.5"),
        ({"delta": math.nan}, InvalidInput, "delta must be between 0 and 1, got nan"),
        ({"risk": "regret"}, UnknownName, "unknown risk 'regret'; known: quality, drop, agreement"),
        ({"method": "hope"}, UnknownName, "unknown method 'hope'; known: hoeffding-bentkus, "),
    ],
)
def test_what_cannot_be_asked(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        certify(random_trace(SINGLE_LABEL), "entropy", **given)


def test_labels_are_needed_for_right_and_wrong_alone() -> None:
    trace = Trace(random_trace(SINGLE_LABEL, samples=500).logits)
    for risk in ("quality", "drop"):
        with pytest.raises(InvalidInput, match="needs labels"):
            certify(trace, "entropy", risk)
    assert certify(trace, "entropy", "agreement", 0.1).measured.mean_exit < 6


def test_rows_without_an_answer_single_exits_and_models_that_are_never_right_are_refused() -> None:
    trace = random_trace(SINGLE_LABEL)
    broken = trace.logits.clone()
    broken[2, [3, 5], 1] = math.nan
    with pytest.raises(InvalidInput, match="2 of 50 samples"):
        certify(replace(trace, logits=broken), "entropy")
    with pytest.raises(InvalidInput, match="one exit"):
        certify(random_trace(SINGLE_LABEL, depth=1), "entropy")
    with pytest.raises(CannotReach, match="there are none"):
        certify(given_by([[0], [0]], [1], torch.zeros(2, 1)), "certainty", "drop")


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted(Policy):
    """The least that a fitted policy is."""

    fitted_on: tuple[str, ...] = ()

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        return Entropy().step(exit, out, memory)


@pytest.mark.parametrize("inside", [False, True])
def test_rows_that_a_policy_was_fitted_on_are_refused(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.POLICIES, "fitted", f"{__name__}:Fitted")
    trace = random_trace(SINGLE_LABEL, samples=40)
    fitted_on = row_hashes(trace.take(torch.arange(25)))
    policy: dict[str, Any] = {"name": "fitted", "fitted_on": fitted_on}
    policy = {"name": "pcee", "measure": policy} if inside else policy
    with pytest.raises(InvalidInput, match="fitted on 5 of these rows"):
        certify(trace.take(torch.arange(20, 40)), policy, "agreement")
    assert certify(trace.take(torch.arange(25, 40)), policy, "agreement").certificate.rows == 15


def test_rows_that_fitted_the_lexical_exit_certify_nothing_where_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    trace = random_trace(SINGLE_LABEL, samples=40)
    few, many = (replace(trace, layers=torch.arange(trace.depth), fit_rows=torch.arange(40) < n) for n in (2, 3))
    assert certify(few, "margin", "agreement").certificate.rows == 40  # 5 % recur by chance
    calibrate(few, "margin", Target(agreement=0.9))
    assert not caplog.messages
    text = "3 of 40 rows fitted the exit before the first layer, which answers them better than others"
    with pytest.raises(InvalidInput, match=f"^{text}; certify on rows that were not trained on$"):
        certify(many, "margin", "agreement")
    with pytest.raises(InvalidInput, match=text):
        ladder(many, "margin", delta=0.1)
    calibrate(many, "margin", Target(agreement=0.9))
    ladder(many, "margin")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{text}: thresholds chosen on them lose more there"] * 2
    behind = many.select(many.layer_numbers[1:])
    assert certify(behind, "margin", "agreement").exit_layers == tuple(behind.layer_numbers)
    assert row_hashes(behind) == row_hashes(many)  # a policy that was fitted with the exit or without is refused


def test_a_row_is_known_again_without_labels_and_with_float_noise() -> None:
    trace = random_trace(SINGLE_LABEL, samples=200)
    hashes = row_hashes(trace)
    assert len(set(hashes)) == 200
    assert all(len(bytes.fromhex(each)) == 8 for each in hashes)
    assert row_hashes(Trace(trace.logits)) == hashes
    noisy = row_hashes(replace(trace, logits=trace.logits + 1e-6 * torch.randn_like(trace.logits)))
    assert sum(one == other for one, other in zip(hashes, noisy, strict=True)) > 150
    zeros = torch.zeros(2, 1, 2)
    assert row_hashes(Trace(zeros)) == row_hashes(Trace(-zeros))


def test_a_digest_tells_logits_labels_and_certainty_apart() -> None:
    trace = random_trace(SINGLE_LABEL)
    other = {
        "logits": trace.logits + 1e-6,
        "labels": (trace.labels + 1) % 3,
        "certainty": trace.certainty / 2,
    }
    assert trace_digest(replace(trace, provenance={"data": "x"})) == trace_digest(trace)
    assert (
        len({trace_digest(trace), *(trace_digest(replace(trace, **{name: value})) for name, value in other.items())})
        == 4
    )


# --- where it is kept, where it is told -----------------------------------------------------------------------------


def test_a_certificate_is_kept_in_json_and_old_files_still_load(tmp_path: Path) -> None:
    point = certify(random_trace(SINGLE_LABEL, samples=500), "entropy", "agreement", 0.1)
    write_points({"sure": point}, tmp_path / "points.json")
    assert read_points(tmp_path / "points.json") == {"sure": point}
    old = point.to_json()
    del old["certificate"]
    assert OperatingPoint.from_json(old) == replace(point, certificate=None)


def test_a_certificate_in_words() -> None:
    told = Certificate("quality", 0.01, 0.05, 0.01, 0.004, 2000, "binomial", "torch-float32", "ab")
    words = "at most 1% of the rows answered wrong where the full model is right (binomial, 2000 rows, 0.40% seen)"
    assert told.describe() == f"certified with 0.95 confidence: {words}"
    assert replace(told, delta=None).describe() == f"certified on average over draws of rows: {words}"
    full = replace(told, bound=0.0, observed=0.0, note="cannot certify")
    assert full.describe() == "full depth: cannot certify (quality 0.01, binomial, 2000 rows, 0.00% seen)"


def test_the_card_names_the_certificate_and_forgets_it_with_the_point(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A model\n\n## Operating points\n\nNone yet.\n\n## More\n")
    point = certify(random_trace(SINGLE_LABEL, samples=500), "entropy", "agreement", 0.1)
    save_points({"sure": point}, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"\n- sure: {point.certificate.describe()}\n" in card
    assert card.endswith("\n## More\n")
    save_points({"sure": replace(point, certificate=None)}, tmp_path)
    assert "certified" not in (tmp_path / "README.md").read_text()


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and rows on which its last exit is right: it labels them itself."""
    folder = save_folder(tmp_path_factory.mktemp("risk") / "model", tiny_model(id2label={0: "bad", 1: "good"}))
    rows = "\n".join(texts(400, seed=4))
    told = CliRunner().invoke(main, ["predict", str(folder), "--operating-point", "full"], input=rows).stdout
    labels = [json.loads(line)["label"] for line in told.splitlines()]
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(rows.splitlines(), labels, strict=True)]
    (folder.parent / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder.parent


def test_calibrate_with_confidence_saves_a_certificate_that_other_weights_make_void(place: Path) -> None:
    data = ("--data", place / "rows.jsonl")
    for name, target in (("drop", ("--max-drop", 0.2)), ("same", ("--agreement", 0.8))):
        result = offramp("calibrate", place / "model", *data, *target, "--confidence", 0.9, "--name", name)
        assert result.exit_code == 0, result.output
        assert "certified with 0.9 confidence: at most 20% of the" in result.stdout
    points = read_points(place / "model" / "operating_points.json")
    told = {
        name: (point.certificate.risk, point.certificate.level, point.certificate.delta)
        for name, point in points.items()
    }
    assert told == {"drop": ("drop", 0.2, 0.1), "same": ("agreement", 0.2, 0.1)}
    assert points["drop"].certificate.engine == "torch-float32"
    assert len(points["drop"].certificate.weights) == 64
    shown = offramp("info", place / "model").stdout
    assert shown.count("certified with 0.9 confidence") == 2
    assert "void" not in shown
    assert points["drop"].certificate.weights not in shown

    changed = place / "changed"
    save_folder(changed, tiny_model(id2label={0: "bad", 1: "good"}, seed=7))
    (changed / "operating_points.json").write_bytes((place / "model" / "operating_points.json").read_bytes())
    assert offramp("info", changed).stdout.count("void: the weights changed") == 2
    told = json.loads(offramp("info", changed, "--json").stdout)["operating_points"]
    assert told["same"]["certificate"]["void"] == "the weights changed"


def test_a_trace_of_other_weights_promises_nothing(place: Path) -> None:
    trace = place / "trace.safetensors"
    assert offramp("record", place / "model", "--data", place / "rows.jsonl", "-o", trace).exit_code == 0
    asked = ("--trace", trace, "--agreement", 0.8, "--confidence", 0.9)
    assert offramp("calibrate", place / "model", *asked).exit_code == 0
    other = save_folder(place / "other", tiny_model(id2label={0: "bad", 1: "good"}, seed=8))
    result = offramp("calibrate", other, *asked)
    assert result.exit_code == 1
    assert "was not recorded with the weights in" in result.stderr


def test_confidence_goes_with_what_it_can_promise(place: Path) -> None:
    data = (place / "model", "--data", place / "rows.jsonl", "--confidence", 0.95)
    for wrong in (("--speedup", 2), ("--max-drop", 0.1, "--metric", "f1")):
        result = offramp("calibrate", *data, *wrong)
        assert result.exit_code == 2
        assert "--confidence goes with --max-drop" in result.stderr


def test_calibrate_says_when_the_rows_do_not_suffice(place: Path) -> None:
    (place / "few.jsonl").write_text("\n".join((place / "rows.jsonl").read_text().splitlines()[:50]) + "\n")
    data = ("--data", place / "few.jsonl", "--max-drop", 0.01, "--confidence", 0.95, "--name", "few")
    result = offramp("calibrate", place / "model", *data)
    assert result.exit_code == 0
    assert "full depth: cannot certify" in result.stdout
    assert read_points(place / "model" / "operating_points.json")["few"].thresholds == (math.inf,) * 3
