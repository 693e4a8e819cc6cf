"""Targets, operating points and their file; modules that a graph is served with load no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.errors import InvalidInput
from offramp.types.operating_point import Measured, OperatingPoint, Target, read_points, write_points

FOLDER = Path(__file__).parents[1] / "inference" / "folder_of_0.1.0"
POINT = OperatingPoint(
    {"name": "margin"},
    (0.5, float("inf")),
    {"max_drop": 0.01},
    Measured("accuracy", 0.9, 0.91, 0.98, 2.5, 3, 100, {"engine": "torch-float32"}),
)


@pytest.mark.parametrize("module", ["operating_point", "cost_table", "problem_types"])
def test_types_that_a_graph_is_served_with_load_no_torch(module: str) -> None:
    program = f"import sys, offramp.types.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("kind", "value"), [("max_drop", 0.0), ("speedup", 2.0), ("agreement", 0.99), ("latency_ms", 10.0)]
)
def test_a_target_has_a_kind_and_a_value(kind: str, value: float) -> None:
    target = Target(**{kind: value})
    assert (target.kind, target.value) == (kind, value)


def test_provenance_is_about_in_json() -> None:
    data = POINT.to_json()
    assert list(data) == ["policy", "thresholds", "target", "measured", "certificate"]
    keys = ["metric", "score", "full_score", "agreement", "mean_exit", "depth", "rows", "about", "expected_ms"]
    assert list(data["measured"]) == keys
    assert data["measured"]["about"] == {"engine": "torch-float32"}
    assert OperatingPoint.from_json(json.loads(json.dumps(data))) == POINT


def test_the_file_has_a_format_number(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    write_points({"default": POINT}, path)
    assert json.loads(path.read_text()) == {"format": 1, "points": {"default": POINT.to_json()}}
    assert read_points(path) == {"default": POINT}


def test_a_newer_format_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text('{"format": 2, "points": [], "more": {}}')
    expected = r"points\.json: format 2; this version of offramp reads up to 1; a newer offramp reads it$"
    with pytest.raises(InvalidInput, match=expected) as caught:
        read_points(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["default", "format", "points"])
def test_a_file_without_a_format_number_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps({name: POINT.to_json()}))
    assert read_points(path) == {name: POINT}


def test_a_saved_folder_without_a_format_number_is_read() -> None:
    data = json.loads((FOLDER / "operating_points.json").read_text())
    assert "format" not in data
    points = read_points(FOLDER / "operating_points.json")
    assert {name: json.loads(json.dumps(point.to_json())) for name, point in points.items()} == data
