"""examples/web: an exported file leaves in WebAssembly where it leaves in Python."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from support.models import LAYERS, balanced, save_folder, tiny_model, tiny_tokenizer
from support.traces import threshold_between

pytest.importorskip("onnxruntime")

from offramp.data.batching import encode
from offramp.data.examples import read_rows
from offramp.data.readers import SAMPLE
from offramp.inference.export import export
from offramp.inference.load_engine import load_engine
from offramp.inference.record import record
from offramp.model.card import save_points
from offramp.model.lexical.config import LexicalExit
from offramp.policies.registry import load_policy
from offramp.policies.replay import scores
from offramp.types.graph_file import GRAPHS
from offramp.types.operating_point import OperatingPoint

READ = (0, 2, 3, 4)
EXAMPLE = Path(__file__).parent.parent / "examples" / "web"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not (EXAMPLE / "node_modules").is_dir(), reason="`npm ci` has not run in examples/web"),
]


@pytest.fixture(scope="module", params=GRAPHS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model's file, and what `rows.py` writes of it; about half of the rows leave at every exit that is read."""
    folder = save_folder(tmp_path_factory.mktemp("model"), balanced(tiny_model(lexical=LexicalExit())))
    never = OperatingPoint({"name": "margin"}, (math.inf,) * LAYERS, exit_layers=tuple(range(LAYERS + 1)))
    save_points({"default": replace(never, thresholds=never.thresholds[1:], exit_layers=READ), "all": never}, folder)
    path = export(folder, int8=request.param == "onnx-int8").path
    texts = [row.text for row in islice(read_rows(SAMPLE, split="test"), 50)]
    trace = record(load_engine(folder, request.param), encode(tiny_tokenizer(), texts, 32)).select(READ)
    limits = tuple(threshold_between(score, 0.5) for score in scores(load_policy("margin"), trace)[:-1])
    save_points({"default": OperatingPoint({"name": "margin"}, limits, exit_layers=READ)}, folder)
    rows = folder / "rows.json"
    subprocess.run([sys.executable, EXAMPLE / "rows.py", folder, rows, "--engine", request.param], check=True)
    return path.with_name(f"web.{path.name}"), rows


def run(model: Path, told: dict[str, Any], rows: Path) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    rows.write_text(json.dumps(told))
    return subprocess.run([NODE, EXAMPLE / "run.mjs", model, rows], capture_output=True, text=True)


def test_webassembly_leaves_where_python_leaves(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model, rows = exported
    told = json.loads(rows.read_text())

    done = run(model, told, tmp_path / "rows.json")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("50 of 50 rows leave where they leave in Python") == 2
    assert {0} < set(told["alone"]["exit_layers"]) <= set(READ)
    assert told["thresholds"][1] == "never"


def test_rows_that_leave_elsewhere_are_told(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model, rows = exported
    told = json.loads(rows.read_text())
    layers = told["alone"]["exit_layers"]
    told["alone"]["exit_layers"] = [layer + 1 for layer in layers[:3]] + layers[3:]

    done = run(model, told, tmp_path / "rows.json")

    assert done.returncode == 1
    assert f"row 2: layer {layers[2]}, in Python {layers[2] + 1}" in done.stdout


def test_never_is_a_threshold(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model, rows = exported
    told = json.loads(rows.read_text())
    deepest = [LAYERS] * 50
    told["thresholds"] = ["never"] * len(told["thresholds"])
    told["alone"]["exit_layers"] = told["together"]["exit_layers"] = deepest

    done = run(model, told, tmp_path / "rows.json")

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    assert lock["packages"][""]["dependencies"] == json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    assert not any("resolved" in package for package in lock["packages"].values())
