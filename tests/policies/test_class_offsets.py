import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from offramp.calibration.certify import certify
from offramp.cli.main import main
from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.class_offsets import ClassOffsets
from offramp.policies.confidence import MaxProb
from offramp.policies.ensemble import Ensemble
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import POINTS_FILE, read_points
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.models import LAYERS, save_folder, tiny_model
from support.traces import random_trace


def test_a_class_that_is_held_back_needs_a_higher_score() -> None:
    said = torch.tensor([[[0.75, 0.25], [0.25, 0.75]], [[0.875, 0.125], [0.125, 0.875]]]).log()
    policy = load_policy("max-prob", offsets=(0.25, 0.0))
    assert policy == ClassOffsets(MaxProb(), (0.25, 0.0))
    assert scores(policy, Trace(said)).tolist() == [pytest.approx([0.5, 0.75]), pytest.approx([0.625, 0.875])]
    assert replay(Trace(said), policy, 0.7).exit_layers.tolist() == [
        2,
        1,
    ]  # the first at the last exit, whatever it says


def test_it_goes_around_all_but_an_ensemble_and_comes_back_from_data() -> None:
    policy = load_policy("pcee", patience=2, offsets=(0.1, 0.0, 0.0), ensemble="run")
    assert isinstance(policy, Ensemble)
    assert load_policy(policy_to_dict(policy)) == policy
    with pytest.raises(InvalidInput, match="a policy that has no offsets and is no ensemble"):
        ClassOffsets(Ensemble(MaxProb()), (0.0,))


@pytest.mark.parametrize("numbers", [(), (float("inf"), 0.0), (float("nan"),)])
def test_numbers_are_checked(numbers: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="finite numbers, one for each class"):
        load_policy("margin", offsets=numbers)


def test_other_answers_and_other_classes_are_refused() -> None:
    for problem_type in (MULTI_LABEL, REGRESSION):
        with pytest.raises(NotApplicable, match="where the answer is one class"):
            scores(load_policy("certainty", offsets=(0.0, 0.0, 0.0)), random_trace(problem_type))
    with pytest.raises(InvalidInput, match="2 offsets for a model with 3 classes"):
        scores(load_policy("margin", offsets=(0.0, 0.0)), random_trace(SINGLE_LABEL))


def test_a_certificate_is_for_the_policy_as_it_holds_back() -> None:
    trace = random_trace(SINGLE_LABEL, samples=400)
    policy = load_policy("margin", offsets=(0.0, 2.0, 0.0))
    point = certify(trace, policy, "agreement", 0.4, 0.1)
    assert point.policy["offsets"] == (0.0, 2.0, 0.0)
    left = replay(trace, point.policy, point.thresholds)
    early = left.exit_layers < 6
    assert early.any()
    assert not (left.logits.argmax(dim=-1)[early] == 1).any()  # a margin is at most 1


def test_the_command_takes_names_of_classes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_folder(model, tiny_model("bert", 3))
    config = json.loads((model / "config.json").read_text())
    first = config["id2label"]["0"]
    random_trace(SINGLE_LABEL, depth=LAYERS, samples=100).save(tmp_path / "trace.safetensors")

    def calibrate(told: str) -> str:
        more = ["--trace", str(tmp_path / "trace.safetensors"), "--speedup", "1.2", "--hold-back", told]
        result = CliRunner().invoke(main, ["calibrate", str(model), *more])
        return result.output if result.exit_code else ""

    assert calibrate(f"{first}:0.3") == ""
    assert tuple(read_points(model / POINTS_FILE)["default"].policy["offsets"]) == (0.3, 0.0, 0.0)
    assert "takes classes and numbers such as safe:0.2" in calibrate("0.3")
    assert "the model has no class 'nobody'; it has:" in calibrate("nobody:0.3")
