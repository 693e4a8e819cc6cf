"""The reference pages name all there is: public names, files and fields; their examples are real files."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import offramp
from offramp.calibration.saved_lines import LINES_FILE
from offramp.types.cost_table import CostTable
from offramp.types.costs_file import COSTS_FILE
from offramp.types.graph_file import GRAPHS, RANGES_FILE
from offramp.types.operating_point import POINTS_FILE, RISKS, Certificate, Measured, OperatingPoint, Target
from offramp.types.trace import Trace

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
RENAMED = {"provenance"}  # "about" in files


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def test_every_public_name_is_documented_once() -> None:
    assert sorted(re.findall(r"^\.\. auto\w+:: offramp\.(\w+)$", page("python.md"), re.MULTILINE)) == offramp.__all__


def test_the_table_of_public_names_is_whole() -> None:
    table, _, _ = page("python.md").partition("\n## ")
    assert set(offramp.__all__) <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("of", [OperatingPoint, Measured, Certificate, Target, CostTable, Trace])
def test_every_field_of_a_file_is_explained(of: Any) -> None:
    named = set(re.findall(r"`(\w+)`", page("model-folder.md")))
    assert {field.name for field in fields(of)} - named - RENAMED == set()


def test_every_file_and_every_risk_is_explained() -> None:
    text = page("model-folder.md")
    graphs = [name.replace("openvino/", "") for name in GRAPHS.values()]
    assert [
        name for name in (POINTS_FILE, LINES_FILE, RANGES_FILE, COSTS_FILE, *graphs, *RISKS) if f"`{name}`" not in text
    ] == []


def test_the_examples_of_files_are_read() -> None:
    point, costs = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", page("model-folder.md"), re.DOTALL))
    for data in point["points"].values():
        assert json.loads(json.dumps(OperatingPoint.from_json(data).to_json())) == data
    assert [CostTable(**table).layers for table in costs["tables"]]
