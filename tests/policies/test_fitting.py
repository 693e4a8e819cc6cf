"""Policies whose numbers come from a trace: what they look at, what is fitted, what is kept, where they run."""

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

import offramp
from offramp.calibration.calibrate import calibrate
from offramp.cli.main import main
from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.metrics import calibration_error
from offramp.inference.onnx.assemble import DOMAIN, OPSET
from offramp.inference.onnx.export_policy import export_steps
from offramp.inference.onnx.metadata import policy_key
from offramp.model.card import save_points
from offramp.policies.base import Memory
from offramp.policies.confidence import Entropy, MaxProb
from offramp.policies.consistency import Consistency, Gain, features
from offramp.policies.ensemble import Ensemble
from offramp.policies.fitting import fit_policy, fit_temperatures
from offramp.policies.pcee import PatientConfidence
from offramp.policies.registry import load_policy, policy_text, policy_to_dict, summarize
from offramp.policies.replay import replay, run_policy, scores
from offramp.policies.temperature import TemperatureScaled
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, Target, read_points
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes
from support.graphs import one_registry
from support.models import LAYERS, save_folder, tiny_model
from support.traces import TEMPERATURES, fitted, random_trace

FITTED_CASES = [
    (name, problem_type)
    for name in ("consistency", "gain")
    for problem_type in PROBLEM_TYPES
    if (name, problem_type) != ("gain", REGRESSION)
]
EVERY_FITTED = pytest.mark.parametrize(("name", "problem_type"), FITTED_CASES)


def of_probabilities(*exits: list[list[float]], **more: Any) -> Trace:
    """A trace whose softmax gives these probabilities, [exit][sample][class]."""
    return Trace(torch.tensor(exits).log(), **more)


def seen(trace: Trace) -> list[list[float]]:
    """The features of the first sample at each exit."""
    memory: Memory = ()
    found = []
    for number in range(trace.depth):
        now, memory = features(trace.exit(number), memory)
        found.append([feature[0].item() for feature in now])
    return found


def approx(*rows: list[float]) -> list[Any]:
    return [pytest.approx(row, abs=1e-5) for row in rows]


# --- features and scores, by hand ---------------------------------------------------------------------------

THREE = ([[0.5, 0.3, 0.2]], [[0.6, 0.2, 0.2]], [[0.1, 0.8, 0.1]])


def test_what_classes_are_judged_by() -> None:
    assert seen(of_probabilities(*THREE)) == approx(
        # largest, ln(p / (1 - p)), first - second; before: largest, row of agreement, KL, what it gave to this answer
        [0.5, 0.0, 0.2],
        [0.6, 0.4054651, 0.4, 0.5, 1.0, 0.0282997, 0.5],  # .6 ln(.6/.5) + .2 ln(.2/.3) + .2 ln(.2/.2)
        [0.8, 1.3862944, 0.7, 0.6, 0.0, 0.8605447, 0.2],  # .1 ln(.1/.6) + .8 ln(.8/.2) + .1 ln(.1/.2)
    )


def test_the_score_is_the_chance_of_the_weighted_features() -> None:
    weights = ((0.5, 2.0, 0.0, -1.0), (-1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 0.0, -2.0), (3.0, *[0.0] * 7))
    # .5 + 2 (.5) - .2 = 1.3;  -1 + .4054651 + .5 + .5 - 1 = -.5945349;  3;  1 / (1 + exp(-x)) of these
    wanted = [pytest.approx(value, abs=1e-6) for value in (0.7858350, 0.3555956, 0.9525741)]
    for policy in (Consistency(weights), Gain(weights)):
        assert scores(policy, of_probabilities(*THREE)).flatten().tolist() == wanted
    assert replay(of_probabilities(*THREE), Consistency(weights), 0.7).exit_layers.tolist() == [1]
    assert replay(of_probabilities(*THREE), Consistency(weights), 0.8).exit_layers.tolist() == [3]


def test_of_several_labels_the_worst_is_judged_and_sets_agree() -> None:
    yes = torch.tensor([[[0.9, 0.4]], [[0.8, 0.7]], [[0.9, 0.6]]])
    found = seen(Trace((yes / (1 - yes)).log(), problem_type=MULTI_LABEL))
    kl = [
        0.0444030 + 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    ]  # (.8, .2) from (.9, .1), (.7, .3) from ...
    kl.append(0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2) + 0.6 * math.log(0.6 / 0.7) + 0.4 * math.log(4 / 3))
    assert found == approx(
        [0.6, 0.4054651, 0.2],
        [0.7, 0.8472979, 0.4, 0.6, 0.0, kl[0], 0.4],  # the second label changed; its exit gave it .4
        [0.6, 0.4054651, 0.2, 0.7, 1.0, kl[1], 0.7],
    )


def test_log_odds_and_divergences_end_where_rounding_begins() -> None:
    trace = Trace(torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]]))
    assert seen(trace) == approx([1.0, 20.0, 1.0], [1.0, 20.0, 1.0, 1.0, 0.0, 20.0, 0.0])


def test_what_values_are_judged_by_and_how_they_are_scored() -> None:
    trace = Trace(torch.tensor([[[1.0, 3.0]], [[2.0, 3.5]], [[2.0, 1.0]]]), problem_type=REGRESSION)
    assert seen(trace) == approx([2.0, 5.0], [2.75, 8.125, 1.0, 0.0], [1.5, 2.5, 2.5, 1.0])
    policy = Consistency(((-1.0, 0.5, 0.0), (0.0, 0.0, 0.0, -2.0, 1.0), (0.0,) * 5))
    assert scores(policy, trace).flatten().tolist() == [0.0, -2.0, 0.0]


# --- fitting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_where_confidence_tells_all_the_fit_is_sure(problem_type: str) -> None:
    """Whoever is sure at the first exit is right, whoever is not is wrong, and the last exit knows."""
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(2, (400,), generator=random)
    easy = torch.rand(400, generator=random) < 0.5
    sign = (2.0 * truth - 1).unsqueeze(-1) * (torch.tensor([-1.0, 1.0]) if problem_type == SINGLE_LABEL else 1.0)
    first = torch.where(easy.unsqueeze(-1), 4 * sign, -0.3 * sign)
    exits = torch.stack((first, 5 * sign)).expand(2, 400, -1)
    labels = truth if problem_type == SINGLE_LABEL else truth.unsqueeze(-1)
    trace = Trace(exits, labels, problem_type=problem_type)
    for name in ("consistency", "gain"):
        found = scores(fit_policy(name, trace), trace)
        assert found[0, easy].min() > 0.97
        assert found[0, ~easy].max() < 0.03
        assert found[1].min() > 0.99


def test_gain_spends_nothing_on_whom_the_last_exit_does_not_help() -> None:
    """Unsure at the first exit: the last one changes the answer, but is right as rarely as not."""
    unsure, sure = torch.tensor([0.1, -0.1]), torch.tensor([3.0, -3.0])
    first = torch.stack([unsure] * 100 + [sure] * 100)
    last = torch.stack([-sure] * 100 + [sure] * 100)
    trace = Trace(torch.stack((first, last)), torch.tensor([0] * 100 + [0] * 100))  # the change is always for the worse
    assert scores(fit_policy("consistency", trace), trace)[0, :100].max() < 0.05
    assert scores(fit_policy("gain", trace), trace)[0, :100].min() > 0.95


@pytest.mark.parametrize("exit", [0, 3])
def test_the_fit_is_scikit_learns(exit: int) -> None:
    """With Platt's soft targets: each row counts as a yes and as a no, in parts."""
    trace = random_trace(SINGLE_LABEL, samples=300)
    memory: Memory = ()
    for number in range(exit + 1):
        now, memory = features(trace.exit(number), memory)
    table = torch.stack(now, dim=-1).double()
    table = ((table - table.mean(0)) / table.std(0, correction=0)).numpy()
    same = (trace.logits[exit].argmax(-1) == trace.logits[-1].argmax(-1)).numpy()
    target = np.where(same, (same.sum() + 1) / (same.sum() + 2), 1 / ((~same).sum() + 2))
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000).fit(
        np.concatenate((table, table)), [1] * 300 + [0] * 300, np.concatenate((target, 1 - target))
    )
    found = scores(fit_policy("consistency", trace), trace)[exit]
    assert found.tolist() == pytest.approx(theirs.predict_proba(table)[:, 1], abs=1e-4)


def test_values_are_fitted_by_least_squares() -> None:
    trace = random_trace(REGRESSION, samples=300, outputs=1)
    memory: Memory = ()
    for number in range(3):
        now, memory = features(trace.exit(number), memory)
    table = torch.stack(now, dim=-1).double()
    table = ((table - table.mean(0)) / table.std(0, correction=0)).numpy()
    change = (trace.logits[2] - trace.logits[-1]).abs().squeeze(-1)
    theirs = Ridge(alpha=1.0).fit(table, -change.double().numpy())
    found = scores(fit_policy("consistency", trace), trace)[2]
    assert found.tolist() == pytest.approx(theirs.predict(table), abs=1e-4)


@EVERY_FITTED
def test_a_fit_does_not_depend_on_the_order_of_the_rows(name: str, problem_type: str) -> None:
    trace = random_trace(problem_type, samples=100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    one, other = fit_policy(name, trace), fit_policy(name, trace.take(order))
    torch.testing.assert_close(scores(one, trace), scores(other, trace), rtol=0, atol=1e-5)
    assert policy_to_dict(one)["fitted_on"] == policy_to_dict(other)["fitted_on"]


@EVERY_FITTED
def test_two_rows_and_constant_exits_can_be_fitted(name: str, problem_type: str) -> None:
    for trace in (random_trace(problem_type, samples=2), random_trace(problem_type)):
        still = Trace(trace.logits[:1].expand(6, -1, -1), trace.labels, problem_type=problem_type)
        found = scores(fit_policy(name, still), still)
        assert found.isfinite().all()
    if problem_type != REGRESSION:
        assert found.min() > 0.9  # all exits say the same


def test_labels_are_needed_for_gain_alone() -> None:
    bare = Trace(random_trace(SINGLE_LABEL).logits)
    assert scores(fit_policy("consistency", bare), bare).shape == (6, 50)
    with pytest.raises(InvalidInput, match="this needs labels, and the trace has none"):
        fit_policy("gain", bare)


def test_what_cannot_be_fitted_says_so() -> None:
    trace = random_trace(SINGLE_LABEL)
    with pytest.raises(InvalidInput, match="'entropy' is not fitted on a trace; those are: consistency, gain"):
        fit_policy("entropy", trace)
    with pytest.raises(NotApplicable, match="gain tells right from wrong, and a regression has neither"):
        fit_policy("gain", random_trace(REGRESSION))
    logits = trace.logits.clone()
    logits[2, 7, 0] = math.nan
    for fit in (lambda bad: fit_policy("consistency", bad), fit_temperatures):
        with pytest.raises(InvalidInput, match="1 of 50 samples have logits that are not finite"):
            fit(Trace(logits, trace.labels))


@pytest.mark.parametrize("name", ["consistency", "gain"])
def test_a_policy_without_its_numbers_says_how_to_get_them(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf'offramp.fit_policy\("{name}", trace\), or `offramp calibrate --policy'):
        load_policy(name)
    for wrong in (((0.0, math.nan),), ((),)):
        with pytest.raises(InvalidInput, match=f"the weights of {name} must be finite numbers"):
            load_policy(name, weights=wrong)


def test_a_policy_of_another_model_is_refused() -> None:
    policy = load_policy(fitted("consistency", exits=4))
    for exits in (3, 5):
        with pytest.raises(InvalidInput, match="fitted for 4 exits"):
            scores(policy, random_trace(SINGLE_LABEL, depth=exits))
        with pytest.raises(InvalidInput, match=f"temperatures for 4 exits, but the model has {exits} exits"):
            scores(TemperatureScaled(MaxProb(), (1.0,) * 4), random_trace(SINGLE_LABEL, depth=exits))
    with pytest.raises(NotApplicable, match="fitted for another kind of problem: exit 1 has 3 weights for 2 numbers"):
        scores(policy, random_trace(REGRESSION, depth=4))


# --- the rows that fitted -----------------------------------------------------------------------------------


def test_a_rows_hash_is_that_of_its_logits() -> None:
    trace = Trace(torch.tensor([[[1.00004, 2.0], [0.0, 0.5]], [[3.0, -1e-7], [0.0, 0.5]]]))
    wanted = hashlib.sha256(struct.pack("<4d", 1.0, 2.0, 3.0, 0.0)).hexdigest()[:16]  # to three decimals
    assert row_hashes(trace)[0] == wanted
    assert row_hashes(trace.take(torch.tensor([1, 0])))[1] == wanted
    assert len(set(row_hashes(random_trace(SINGLE_LABEL)))) == 50


def test_what_is_fitted_knows_its_rows() -> None:
    trace = random_trace(SINGLE_LABEL)
    ours, rest = trace.take(torch.arange(20)), trace.take(torch.arange(20, 50))
    for data in (policy_to_dict(fit_policy("gain", ours)), fit_temperatures(ours)):
        assert set(data["fitted_on"]) == set(row_hashes(ours))
        assert not set(data["fitted_on"]) & set(row_hashes(rest))


@EVERY_FITTED
def test_an_operating_point_keeps_what_was_fitted(name: str, problem_type: str, tmp_path: Path) -> None:
    trace = random_trace(problem_type, samples=200)
    policy = fit_policy(name, trace.take(torch.arange(100)))
    rest = trace.take(torch.arange(100, 200))
    point = calibrate(rest, policy, Target(speedup=1.5))
    save_points({"default": point}, tmp_path)
    again = read_points(tmp_path / POINTS_FILE)["default"]
    assert load_policy(again.policy) == policy
    assert policy_to_dict(load_policy(again.policy))["fitted_on"] == policy_to_dict(policy)["fitted_on"]
    assert replay(rest, again.policy, again.thresholds).exit_layers.double().mean() == point.measured.mean_exit


def test_fitted_policies_go_into_others_and_back() -> None:
    data = fitted("consistency")
    for policy in (
        PatientConfidence(load_policy(data), 2),
        Ensemble(load_policy(data)),
        load_policy(data, ensemble="all"),
    ):
        read = json.loads(json.dumps(policy_to_dict(policy)))
        assert load_policy(read) == policy
        assert policy_to_dict(load_policy(read)) == policy_to_dict(policy)


def test_people_are_not_shown_the_numbers() -> None:
    data = fitted("gain") | {"ensemble": "run"}
    assert summarize(data) == {"name": "gain", "ensemble": "run"}
    assert summarize({"name": "pcee", "measure": data}) == {"name": "pcee", "measure": summarize(data)}
    assert policy_text(data) == "gain (ensemble run)"
    assert policy_text({"name": "margin"}) == "margin"
    assert str(load_policy(fitted("gain"))) == "Gain()"


# --- temperatures -------------------------------------------------------------------------------------------


def test_temperatures_divide_what_the_policy_sees_and_what_it_answers() -> None:
    trace = of_probabilities([[0.9, 0.1]], [[0.64, 0.36]])  # square roots: 3 to 1 and 4 to 3
    policy = load_policy("max-prob", temperatures=(2.0, 2.0))
    assert scores(policy, trace).flatten().tolist() == pytest.approx([3 / 4, 4 / 7])
    answers = replay(trace, policy, 0.7)
    assert answers.logits.softmax(dim=-1).tolist() == [pytest.approx([3 / 4, 1 / 4])]


def test_an_ensemble_is_of_tempered_exits() -> None:
    trace = of_probabilities([[0.9, 0.1]], [[0.64, 0.36]])
    policy = load_policy("max-prob", temperatures=(2.0, 2.0), ensemble="all")
    assert policy == Ensemble(TemperatureScaled(MaxProb(), (2.0, 2.0)), "all")
    mean = (3 / 4 + 4 / 7) / 2
    assert replay(trace, policy, math.inf).logits.softmax(dim=-1).tolist() == [pytest.approx([mean, 1 - mean])]


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_fitted_temperatures_find_those_that_made_the_trace(problem_type: str) -> None:
    """Answers drawn from the exits' own probabilities; then the logits are stretched."""
    random = torch.Generator().manual_seed(0)
    honest = torch.randn(20000, 3, generator=random) * 1.5
    if problem_type == SINGLE_LABEL:
        labels = honest.softmax(dim=-1).multinomial(1, generator=random).squeeze(-1)
    else:
        labels = torch.bernoulli(honest.sigmoid(), generator=random).long()
    stretched = torch.stack((honest * 3, honest, honest / 2))
    trace = Trace(stretched, labels, problem_type=problem_type)
    found = fit_temperatures(trace)
    assert found["temperatures"] == pytest.approx([3.0, 1.0, 0.5], rel=0.05)
    tempered = Trace(run_policy(load_policy("margin", **found), trace)[1], labels, problem_type=problem_type)
    before, after = calibration_error(trace), calibration_error(tempered)
    assert after.max() < 0.015 < 0.08 < min(before[0], before[2])


def test_temperatures_have_ends() -> None:
    right = torch.eye(2)[torch.tensor([0, 1] * 20)] * 0.3
    trace = Trace(torch.stack((right, -right)), torch.tensor([0, 1] * 20))  # always right, always wrong
    assert fit_temperatures(trace)["temperatures"] == pytest.approx([0.05, 20], rel=1e-3)


@pytest.mark.parametrize("wrong", [(), (1.0, 0.0), (-1.0,), (math.nan,), (math.inf,)])
def test_temperatures_are_checked(wrong: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="temperatures must be above 0, one for each exit; got"):
        load_policy("margin", temperatures=wrong)


@pytest.mark.parametrize(
    "inside", [Ensemble(Entropy()), TemperatureScaled(Entropy(), (1.0,)), Consistency(((1.0,),)), "margin"]
)
def test_temperatures_go_around_plain_policies(inside: Any) -> None:
    with pytest.raises(InvalidInput, match="temperatures go around a policy that is neither fitted nor an ensemble"):
        TemperatureScaled(inside, (1.0,))


def test_a_regression_has_no_temperature() -> None:
    trace = random_trace(REGRESSION)
    with pytest.raises(NotApplicable, match="a regression has none"):
        scores(load_policy("certainty", temperatures=TEMPERATURES), trace)
    for ask in (fit_temperatures, calibration_error):
        with pytest.raises(NotApplicable, match="a regression has none"):
            ask(trace)


def test_the_calibration_error_is_the_mean_distance_of_confidence_from_being_right() -> None:
    # bins of a fifth: (.6, .8] has .7 wrong, .7 right: |1.4 - 1| / 4; (.8, 1] has .9 right, 1 wrong: |1.9 - 1| / 4
    trace = of_probabilities([[0.7, 0.3], [0.7, 0.3], [0.9, 0.1], [1 - 1e-7, 1e-7]], labels=torch.tensor([1, 0, 0, 1]))
    assert calibration_error(trace, bins=5).tolist() == pytest.approx([(0.4 + 0.9) / 4])
    edge = of_probabilities([[0.5, 0.5], [0.9, 0.1]], labels=torch.tensor([0, 1]))  # one half is in the lower bin
    assert calibration_error(edge, bins=2).tolist() == pytest.approx([(0.5 + 0.9) / 2])
    sure = Trace(torch.tensor([[[9e3, 0.0]], [[0.0, 9e3]]]), torch.tensor([0]))
    assert calibration_error(sure).tolist() == [0.0, 1.0]


def test_each_label_is_an_answer_to_be_calibrated() -> None:
    yes = torch.tensor([[[0.9, 0.3]]])  # yes, and no with .7
    trace = Trace((yes / (1 - yes)).log(), torch.tensor([[1, 1]]), problem_type=MULTI_LABEL)
    assert calibration_error(trace).tolist() == pytest.approx([(0.1 + 0.7) / 2])


# --- in a graph ---------------------------------------------------------------------------------------------


@pytest.fixture
def steps(data: dict[str, Any], problem_type: str) -> tuple[Any, Any]:
    """The calls and the functions of a policy in a model of three exits."""
    with one_registry():
        return export_steps(policy_key(policy_to_dict(load_policy(data))), (1, 2, 3), 3, problem_type, False)


@pytest.mark.parametrize(
    ("data", "problem_type"),
    [
        (fitted("consistency", SINGLE_LABEL, 3), SINGLE_LABEL),
        pytest.param(fitted("gain", MULTI_LABEL, 3), MULTI_LABEL, marks=pytest.mark.slow),
        pytest.param(fitted("consistency", REGRESSION, 3), REGRESSION, marks=pytest.mark.slow),
        pytest.param({"name": "entropy", "temperatures": [2.0, 0.5, 1.5]}, SINGLE_LABEL, marks=pytest.mark.slow),
    ],
    ids=["consistency", "gain", "values", "tempered"],
)
def test_an_exported_step_does_what_torch_does(data: dict[str, Any], problem_type: str, steps: tuple[Any, Any]) -> None:
    policy, trace = load_policy(data), random_trace(problem_type, depth=3)
    calls, functions = steps
    memory: dict[str, np.ndarray[Any, Any]] = {}
    expected = run_policy(policy, trace)
    for number, call in enumerate(calls[:-1]):
        limit = expected[0][number].median() + 1e-4
        given = {"logits": trace.logits[number].numpy(), "limit": np.full(50, limit, dtype=np.float32), **memory}
        writes = ["stays", *(["answer"] if call.answers else []), *(f"memory{i}" for i in range(len(call.memory)))]
        told = called(functions[str(call.function)], given, writes)
        assert torch.equal(told["stays"], expected[0][number] < limit)
        assert 0 < told["stays"].sum() < 50
        if call.answers:
            torch.testing.assert_close(told["answer"], expected[1][number], rtol=0, atol=1e-6)
        memory = {name: value.numpy() for name, value in told.items() if name.startswith("memory")}
    assert calls[-1].function is None or calls[-1].answers


def called(function: Any, given: dict[str, np.ndarray[Any, Any]], writes: list[str]) -> dict[str, Tensor]:
    """What a function of an ONNX file gives, in ONNX Runtime."""
    names = [f"new.{name}" for name in writes]
    node = helper.make_node(function.name, list(function.input), names, domain=DOMAIN)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in given.items()]
    kinds = [TensorProto.BOOL if name == "stays" else TensorProto.FLOAT for name in writes]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    model = helper.make_model(
        helper.make_graph([node], "step", inputs, outputs),
        functions=[function],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(writes, map(torch.from_numpy, session.run(names, given)), strict=True))


def test_a_graphs_key_does_not_hold_the_rows() -> None:
    data = fitted("consistency")
    for whole in (data, {"name": "pcee", "measure": data, "patience": 2}):
        assert "fitted_on" not in policy_key(whole)
        assert load_policy(json.loads(policy_key(whole))) == load_policy(whole)


# --- command line -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "model", tiny_model("bert", 3))
    random_trace(SINGLE_LABEL, depth=LAYERS, samples=201).save(tmp_path / "trace.safetensors")
    return tmp_path


def calibrated(folder: Path, *more: str) -> tuple[str, OperatingPoint]:
    command = ["calibrate", str(folder / "model"), "--trace", str(folder / "trace.safetensors"), "--speedup", "1.5"]
    result = CliRunner().invoke(main, [*command, *more])
    assert result.exit_code == 0, result.output
    return result.stderr, read_points(folder / "model" / POINTS_FILE)["default"]


@pytest.mark.parametrize("more", [("--policy", "consistency"), ("--policy", "gain"), ("--temperature",)])
def test_one_half_of_the_rows_fits_and_the_other_chooses(folder: Path, more: tuple[str, ...]) -> None:
    said, point = calibrated(folder, *more)
    what = more[1] if len(more) > 1 else "temperatures"
    assert f"{what} fitted on 101 rows, the threshold chosen on the other 100" in said
    hashes = row_hashes(Trace.load(folder / "trace.safetensors"))
    ours = set(point.policy["fitted_on"])
    assert len(ours) == 101
    assert ours <= set(hashes)
    assert point.measured is not None
    assert point.measured.rows == 100
    rest = torch.tensor([row for row, one in enumerate(hashes) if one not in ours])
    again = replay(Trace.load(folder / "trace.safetensors").take(rest), point.policy, point.thresholds)
    assert again.exit_layers.double().mean() == point.measured.mean_exit
    assert calibrated(folder, *more)[1] == point  # the same halves each time


def test_the_default_policy_of_a_regression_says_which_rows_fitted_it(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", tiny_model("bert", 1, problem_type=REGRESSION))
    random_trace(REGRESSION, depth=LAYERS, samples=200, outputs=1).save(tmp_path / "trace.safetensors")
    assert "consistency fitted on 100 rows, the threshold chosen on the other 100" in calibrated(tmp_path)[0]


def test_a_fitted_policy_takes_an_ensemble_and_no_temperature(folder: Path) -> None:
    _, point = calibrated(folder, "--policy", "gain", "--ensemble", "run")
    assert summarize(point.policy) == {"name": "gain", "ensemble": "run"}
    more = ["--trace", str(folder / "trace.safetensors"), "--policy", "gain", "--temperature", "--speedup", "2"]
    result = CliRunner().invoke(main, ["calibrate", str(folder / "model"), *more])
    assert result.exit_code == 2
    assert "--policy gain has a scale of its own; leave out --temperature" in result.stderr


def test_the_names_are_public() -> None:
    assert offramp.fit_policy is fit_policy
    assert offramp.fit_temperatures is fit_temperatures


def test_a_step_alone_needs_no_memory_of_another() -> None:
    """The last exit may be told from any other by its flag alone."""
    policy = load_policy(fitted("consistency", exits=1))
    out = ExitOutput(torch.zeros(2, 3), last=True)
    assert policy.step(0, out, ()).score.isfinite().all()
