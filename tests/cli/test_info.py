"""`offramp info`: what a folder holds, and whether its files belong together."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offramp.model.card import save_points
from offramp.model.modeling import MultiExitModel
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, read_points, write_points
from support.command_line import offramp
from support.models import save_folder, tiny_model

POINT = OperatingPoint({"name": "entropy"}, (0.5, 0.5, 0.5))
SAVED = Path(__file__).parents[1] / "inference" / "folder_of_0.1.0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = save_folder(tmp_path / "model", tiny_model())
    save_points({"default": POINT}, folder)
    return folder


def verified(folder: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    result = offramp("info", folder, "--verify", "--json")
    found = json.loads(result.stdout)["verify"]
    return result.exit_code, {each["file"]: (each["state"], each["note"]) for each in found}


def test_a_whole_folder_is_ok(folder: Path) -> None:
    code, states = verified(folder)
    assert code == 0
    assert {name: state for name, (state, _) in states.items()} == {
        "model.safetensors": "ok", f"{POINTS_FILE}: default": "ok", "README.md": "ok"
    }  # fmt: skip
    lines = offramp("info", folder, "--verify").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model.safetensors", f"{POINTS_FILE}:", "README.md"]


@pytest.mark.parametrize(
    ("name", "file"), [("tokenizer.json", "tokenizer"), ("lines.json", "lines.json"), ("costs.json", "costs.json")]
)
def test_a_file_cut_on_the_way_is_stale(folder: Path, name: str, file: str) -> None:
    (folder / name).write_text('{"cut')
    code, states = verified(folder)
    assert code == 1
    assert states[file][0] == "stale"
    assert states["model.safetensors"][0] == "ok"


def test_graphs_are_verified_with_their_data(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAVED, tmp_path / "model"))
    (folder / "README.md").unlink()  # it lists no points, and there are some
    code, states = verified(folder)
    assert code == 1
    assert states["model.onnx"] == ("ok", "of this model, with model.onnx.data")
    command = f"`offramp export {folder} --int8 --data FILE` makes it anew"
    reason = f"{folder / 'model.int8.onnx'}: made by an earlier version, its answers depend on the batch"
    assert states["model.int8.onnx"] == ("stale", f"{reason}; {command}")
    (folder / "model.onnx.data").unlink()
    code, states = verified(folder)
    assert code == 1
    assert states["model.onnx"] == (
        "stale",
        f"there is no model.onnx.data; `offramp export {folder}` makes it anew",
    )


def changed_number(folder: Path) -> str:
    """Change a number that the sample of a large tensor does not hold."""
    model = tiny_model(num_labels=3000)
    save_folder(folder, model)
    save_points({"default": POINT}, folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-40_000] ^= 1
    path.write_bytes(content)
    return f"{POINTS_FILE}: default"


def cut(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return "model.safetensors"


def broken_points(folder: Path) -> str:
    (folder / POINTS_FILE).write_text("{")
    return POINTS_FILE


def other_points(folder: Path) -> str:
    points = read_points(folder / POINTS_FILE)
    write_points({**points, "more": points["default"]}, folder / POINTS_FILE)
    return "README.md"


@pytest.mark.parametrize(
    "change", [changed_number, cut, broken_points, other_points], ids=lambda change: change.__name__
)
def test_what_is_stale_is_named_and_the_exit_code_is_1(change: Any, folder: Path) -> None:
    name = change(folder)
    code, states = verified(folder)
    assert code == 1
    assert states[name][0] == "stale"
    result = offramp("info", folder, "--verify")
    assert result.exit_code == 1
    assert any(line.startswith(name) and " stale " in line for line in result.stdout.splitlines())


def test_what_says_nothing_of_its_weights_is_unknown(folder: Path) -> None:
    write_points({"default": POINT}, folder / POINTS_FILE)
    (folder / "README.md").write_text("Somebody's own card.\n")
    code, states = verified(folder)
    assert code == 0
    assert states[f"{POINTS_FILE}: default"][0] == states["README.md"][0] == "unknown"


def test_info_marks_what_is_stale_and_loads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultiExitModel, "from_pretrained", None)
    facts = json.loads(offramp("info", folder, "--json").stdout)
    assert facts["parameters"] == tiny_model().num_parameters()
    assert "stale" not in facts["operating_points"]["default"]
    other = save_folder(folder.parent / "other", tiny_model(seed=3))
    shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")
    facts = json.loads(offramp("info", folder, "--json").stdout)
    assert facts["operating_points"]["default"]["stale"] == "chosen for other weights"
    line = "  stale: chosen for other weights; `offramp calibrate` chooses it anew"
    assert line in offramp("info", folder).stdout.splitlines()


def test_info_runs_in_a_process_of_its_own(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "offramp", "info", folder, "--verify"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("family", ["albert", "cifar_resnet", "vit"])
def test_parameters_are_counted_from_the_heads_of_the_files(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert json.loads(offramp("info", tmp_path, "--json").stdout)["parameters"] == model.num_parameters()
