import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

import offramp
from offramp.calibration.calibrate import calibrate
from offramp.calibration.certify import certify
from offramp.cli.main import main
from offramp.errors import CannotReach, InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.confidence import Margin, MaxProb
from offramp.policies.ensemble import Ensemble
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.fitting import fit_lines
from offramp.policies.registry import POLICIES, load_policy, policy_to_dict
from offramp.policies.replay import replay, scores
from offramp.registry import load
from offramp.types.operating_point import POINTS_FILE, Target, read_points
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, row_hashes
from support.models import LAYERS, save_folder, tiny_model
from support.traces import LINES, has_meaning, random_trace


def of_margins(*exits: list[float]) -> Trace:
    """A trace of two classes with these margins, (L, N): the probabilities are (1 + m) / 2 and (1 - m) / 2."""
    margin = torch.tensor(exits)
    return Trace(torch.stack(((1 + margin) / 2, (1 - margin) / 2), dim=-1).log())


def test_a_line_goes_over_the_log_odds_of_the_score() -> None:
    trace = of_margins([0.75, 0.5], [0.9, 0.2])  # odds 3 and 1; 9 and 1/4
    policy = load_policy("margin", lines=((1.0, 2.0), (-1.0, 0.5)))
    wanted = [[1 + 2 * math.log(3), 1.0], [-1 + math.log(9) / 2, -1 + math.log(1 / 4) / 2]]
    for row, told in zip(scores(policy, trace).tolist(), wanted, strict=True):
        assert row == pytest.approx(told, abs=1e-5)


def test_a_threshold_on_the_lines_is_one_for_each_exit_on_the_score() -> None:
    policy = ExitScaled(Margin(), ((1.0, 2.0), (-1.0, 0.5), (0.0, 1.0)))
    odds = [math.exp((2 - 1) / 2), math.exp((2 + 1) / 0.5)]
    assert policy.thresholds(2.0) == pytest.approx([each / (1 + each) for each in odds])
    assert policy.thresholds(math.inf) == (math.inf, math.inf)
    assert policy.thresholds(-math.inf) == (-math.inf, -math.inf)
    assert policy.thresholds(30.0) == (math.inf, math.inf)  # beyond what a score can say


@pytest.mark.parametrize("name", ["entropy", "margin", "max-prob", "certainty"])
@pytest.mark.parametrize("target", [{"speedup": 1.5}, {"speedup": 3.0}, {"agreement": 0.9}, {"max_drop": 0.2}])
def test_a_point_runs_as_the_policy_inside_and_leaves_as_the_lines_do(name: str, target: dict[str, float]) -> None:
    trace = random_trace(SINGLE_LABEL, samples=400)
    policy = load_policy(name, lines=LINES)
    try:
        point = calibrate(trace, policy, Target(**target))
    except CannotReach:
        pytest.skip("not on this trace")
    assert point.policy == {"name": name}
    back = [
        constant + slope * math.log(each / (1 - each))
        for each, (constant, slope) in zip(point.thresholds, LINES[:-1], strict=True)
        if 0 < each < 1
    ]
    assert back == pytest.approx([back[0]] * len(back), abs=1e-6)  # one number on the lines
    answers = replay(trace, name, point.thresholds)
    assert torch.equal(replay(trace, policy, back[0]).exit_layers, answers.exit_layers)
    assert point.measured is not None
    assert point.measured.mean_exit == answers.exit_layers.double().mean()


def test_an_ensemble_keeps_its_members() -> None:
    policy = load_policy("max-prob", lines=LINES, ensemble="run")
    assert policy == Ensemble(ExitScaled(MaxProb(), LINES), "run")
    point = calibrate(random_trace(SINGLE_LABEL), policy, Target(speedup=1.5))
    assert point.policy == {"name": "max-prob", "ensemble": "run"}
    assert len(set(point.thresholds)) == 5


def test_fitted_lines_are_those_of_a_logistic_regression() -> None:
    trace = random_trace(SINGLE_LABEL, samples=600)
    lines = fit_lines("margin", trace)["lines"]
    score = scores(Margin(), trace).double()
    odds = (score / (1 - score)).log().numpy()
    given = trace.logits.argmax(dim=-1)
    for number in range(trace.depth - 1):
        spread = odds[number].std()
        told = LogisticRegression(C=1.0, tol=1e-8).fit((odds[number] / spread)[:, None], given[number] == given[-1])
        constant, slope = lines[number]
        assert slope == pytest.approx(max(told.coef_[0, 0] / spread, 1e-3), rel=0.05, abs=2e-3)  # Platt's targets
        assert constant == pytest.approx(told.intercept_[0], abs=0.05)


def test_a_deep_exit_that_agrees_more_has_a_lower_threshold() -> None:
    """The same scores at both exits; the second one's answers are the last one's, the first one's are by chance."""
    random = torch.Generator().manual_seed(0)
    last = torch.randn(500, 2, generator=random)
    trace = Trace(torch.stack((last[torch.randperm(500, generator=random)], last, last)))
    policy = load_policy("margin", **fit_lines("margin", trace))
    assert isinstance(policy, ExitScaled)
    first, second = policy.thresholds(1.0)
    assert first > 0.99
    assert second < 0.01


@pytest.mark.parametrize("lines", [(), ((1.0, 0.0),), ((1.0, -1.0),), ((math.nan, 1.0),), ((1.0,),)])
def test_lines_are_checked(lines: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(InvalidInput, match="a finite constant and a slope above 0 for each exit; got"):
        load_policy("margin", lines=lines)


def test_other_scores_and_other_exits_are_refused() -> None:
    with pytest.raises(InvalidInput, match="around certainty, entropy, margin and max-prob, not around Patience"):
        fit_lines("patience", random_trace(SINGLE_LABEL))
    with pytest.raises(NotApplicable, match="a regression has none"):
        fit_lines("certainty", random_trace(REGRESSION))
    with pytest.raises(InvalidInput, match="lines for 2 exits, but the model has at least 3 exits"):
        scores(load_policy("margin", lines=LINES[:2]), random_trace(SINGLE_LABEL))


@final
@dataclass(frozen=True)
class LeastProb(Policy):
    """A score that no module of offramp names: 1 minus the smallest probability."""

    unit_interval: ClassVar[bool] = True

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        return Step(1 - out.logits.softmax(dim=-1).amin(dim=-1), out.logits)


def test_a_new_score_in_the_unit_interval_takes_lines() -> None:
    trace = random_trace(SINGLE_LABEL)
    policy = ExitScaled(LeastProb(), **fit_lines(LeastProb(), trace))
    assert scores(policy, trace).isfinite().all()


@pytest.mark.parametrize("name", [name for name in POLICIES if load(POLICIES, name).unit_interval])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_scores_of_the_unit_interval_stay_in_it(name: str, problem_type: str) -> None:
    trace = random_trace(problem_type)
    trace = replace(trace, logits=trace.logits * 100)
    if has_meaning(load_policy(name), problem_type):
        values = scores(load_policy(name), trace)
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6


def test_rows_that_fitted_lines_certify_nothing() -> None:
    trace = random_trace(SINGLE_LABEL)
    fitted = fit_lines("margin", trace)
    assert set(fitted["fitted_on"]) == set(row_hashes(trace))
    policy = load_policy("margin", **fitted)
    assert load_policy(policy_to_dict(policy)) == policy
    with pytest.raises(InvalidInput, match="was fitted on"):
        certify(trace, policy, "agreement", 0.1)


def test_the_command_saves_a_threshold_for_each_exit(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", tiny_model("bert", 3))
    trace = random_trace(SINGLE_LABEL, depth=LAYERS, samples=201)
    trace.save(tmp_path / "trace.safetensors")

    def calibrated(*more: str) -> str:
        told = ["--trace", str(tmp_path / "trace.safetensors"), "--speedup", "1.5", "--per-exit", *more]
        result = CliRunner().invoke(main, ["calibrate", str(tmp_path / "model"), *told])
        return result.output if result.exit_code else ""

    assert calibrated() == ""
    point = read_points(tmp_path / "model" / POINTS_FILE)["default"]
    wanted = calibrate(trace, load_policy("margin", **fit_lines("margin", trace)), Target(speedup=1.5))
    assert point == wanted
    assert len(set(point.thresholds)) == LAYERS - 1
    assert "both change what a probability means; choose one" in calibrated("--temperature")
    assert "has a scale of its own" in calibrated("--policy", "gain")
    assert offramp.fit_lines is fit_lines
