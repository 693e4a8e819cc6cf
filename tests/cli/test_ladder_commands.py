"""`offramp calibrate --ladder`: the graph of the default point runs the ladder, and its certificates are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offramp.inference.predictor import Predictor
from offramp.model.card import write_card
from offramp.model.hub import load_config
from offramp.report.html.content import _certificates
from offramp.serving.ladder_folder import engine_of, read_rungs
from offramp.serving.settings import ModelSettings
from offramp.types.operating_point import OperatingPoint, read_points
from offramp.types.problem_types import SINGLE_LABEL
from support.command_line import offramp
from support.graphs import copied
from support.models import texts
from support.traces import random_trace

ALL_AT_ONCE = "all of these at once with {} confidence{}; `offramp serve --ladder` watches them"


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose default point and graph are of entropy at all exits; beside it texts with the model's answers."""
    folder = copied(exported, tmp_path_factory.mktemp("ladder") / "model")
    rows = texts(300, seed=8)
    answers = Predictor.load(folder, engine="onnx-int8", operating_point=None)(rows)
    lines = [{"text": text, "label": answer["label"]} for text, answer in zip(rows, answers, strict=True)]
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_card(folder, {}, load_config(folder))
    return folder


def calibrated(folder: Path, *options: str) -> tuple[list[str], dict[str, OperatingPoint]]:
    """Choose a ladder, and return what is printed on standard output, and the rungs."""
    data = ("--data", folder.parent / "rows.jsonl", "--engine", "onnx-int8")
    done = offramp("calibrate", folder, *data, "--ladder", *options)
    assert done.exit_code == 0, done.output
    assert "policy and exits of the point 'default': entropy" in done.stderr.splitlines()
    assert "cannot run it yet" not in done.stderr
    return done.stdout.splitlines(), read_rungs(str(folder))


def test_a_ladder_without_a_confidence_is_watched_and_bound_to_no_engine(folder: Path) -> None:
    printed, rungs = calibrated(folder)
    assert printed[-1] == ALL_AT_ONCE.format(0.95, "")
    assert len(rungs) > 1
    certified = {name: point.agreement for name, point in rungs.items() if point.agreement is not None}
    assert certified
    assert [point.certificate for point in rungs.values()] == [None] * len(rungs)
    for name, agreement in certified.items():
        assert (agreement.engine, agreement.delta) == ("onnx-int8", 0.05)
        assert f"{name}: {agreement.describe()}" in printed
        Predictor.load(folder, engine="torch", operating_point=name)  # agreement binds to no engine
    assert engine_of(ModelSettings(str(folder)), rungs).engine == "onnx-int8"
    # it is there wherever points are shown
    name, shown = next(iter(certified.items()))
    assert shown.describe() in (folder / "README.md").read_text()
    assert shown.describe() in offramp("info", folder).stdout
    data = json.loads(offramp("info", folder, "--json").stdout)["operating_points"]
    assert data[name]["agreement"]["level"] == shown.level
    trace = replace(random_trace(SINGLE_LABEL), provenance={"weights": str(shown.weights), "engine": "onnx-int8"})
    assert _certificates(trace, rungs)[f"{name}, agreement"].startswith("With 95% confidence, at most ")


def test_with_a_confidence_there_are_two_families(folder: Path) -> None:
    default = read_points(folder / "operating_points.json")["default"]
    printed, rungs = calibrated(folder, "--confidence", "0.5")
    certified = [name for name, point in rungs.items() if point.certificate is not None]
    assert certified
    if len(certified) > 1:
        assert "all of these at once with 0.5 confidence" in printed
    assert printed[-1] == ALL_AT_ONCE.format(0.5, ", apart from those above")
    assert {point.agreement.delta for point in rungs.values() if point.agreement} == {0.5}
    assert read_points(folder / "operating_points.json")["default"] == default
