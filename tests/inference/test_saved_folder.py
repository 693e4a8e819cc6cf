"""A folder that an earlier version saved loads, and answers as it did then.

`folder_of_0.1.0` was written before folders had a format number: a tiny BERT with a head of its own, bypasses, a
gate and exit memory, points of eight kinds, both graphs, and in `answers.json` what each engine answered at each point.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import offramp
from offramp.errors import InvalidInput
from offramp.inference.onnx.assemble import switch_policy
from offramp.inference.onnx.metadata import weights_digest
from offramp.types.operating_point import read_points

FOLDER = Path(__file__).parent / "folder_of_0.1.0"
SAVED: dict[str, Any] = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", sorted(case for case in SAVED["answers"] if not case.startswith("onnx-int8")))
def test_it_answers_as_it_did(case: str, tmp_path: Path) -> None:
    engine, name = case.split(", ")
    folder = Path(shutil.copytree(FOLDER, tmp_path / "folder"))
    policy = dict(read_points(folder / "operating_points.json")[name].policy) if name != "full depth" else {}
    if engine == "onnx" and name not in ("full depth", "default"):  # the file runs the policy of "default" at first
        policy.pop("fitted_on", None)
        assert switch_policy(folder / "model.onnx", weights_digest(folder), json.loads(json.dumps(policy)))

    point = None if name == "full depth" else name
    predictor = offramp.Predictor.load(folder, engine, point, allow_other_engine=True)  # "certified" is torch's
    answers = predictor(SAVED["texts"], batch_size=1)

    labels, scores, layers = zip(*SAVED["answers"][case], strict=True)
    assert [answer["label"] for answer in answers] == list(labels)
    assert [answer["exit_layer"] for answer in answers] == list(layers)
    assert [answer["score"] for answer in answers] == pytest.approx(list(scores), abs=2e-5)


def test_its_int8_graph_whose_answers_depend_on_the_batch_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "folder"))
    with pytest.raises(InvalidInput) as refused:
        offramp.Predictor.load(folder, engine="onnx-int8", operating_point=None)
    file, command = folder / "model.int8.onnx", f"`offramp export {folder} --int8 --data FILE` makes it anew"
    assert str(refused.value) == f"{file}: made by an earlier version, its answers depend on the batch; {command}"


def test_its_points_are_read_whole() -> None:
    points = read_points(FOLDER / "operating_points.json")
    assert len(points) == 8
    assert points["certified"].certificate is not None
    assert points["certified"].certificate.bound == 0.3
    assert points["by-hand"].thresholds == (1.0, 2.0, float("inf"))
    assert points["tempered"].policy["temperatures"] == [19.9997, 1.9134, 2.9896, 19.9999]
    assert points["default"].measured is not None
    assert points["default"].measured.rows == 200
