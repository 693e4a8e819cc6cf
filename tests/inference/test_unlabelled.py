"""Data without labels: recorded, calibrated where no label is needed, and refused in words where one is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.errors import DataError
from offramp.inference.record import record
from offramp.types.trace import Trace
from support.command_line import offramp
from support.models import balanced, save_folder, texts, tiny_model

NAMES = {0: "neg", 1: "neutral", 2: "pos"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("model"), balanced(tiny_model(id2label=NAMES)))


def write(path: Path, **labels: Any) -> Path:
    """Write 60 texts, with labels by their numbers, "_3" and so on; "every" is for the others."""
    rows = []
    for number, text in enumerate(texts(60, seed=3)):
        label = labels.get(f"_{number}", labels.get("every"))
        rows.append(json.dumps({"text": text} if label is None else {"text": text, "label": label}) + "\n")
    path.write_text("".join(rows))
    return path


def test_labels_are_kept_if_every_row_has_one(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = record(folder, write(tmp_path / "whole.jsonl", every="pos"))
    assert whole.labels is not None
    assert whole.labels.tolist() == [2] * 60
    for name, labels in {"none.jsonl": {}, "some.jsonl": {"every": "pos", "_3": "", "_4": " "}}.items():
        trace = record(folder, write(tmp_path / name, **labels))
        assert trace.labels is None
        assert torch.equal(trace.logits, whole.logits)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{tmp_path / 'some.jsonl'}: 2 of 60 rows have no label, so no label is used"]
    assert torch.equal(record(folder, texts(60, seed=3)).logits, whole.logits)


@pytest.mark.parametrize("target", [("--agreement", "0.9"), ("--speedup", "1.5"), ("--latency-ms", "1000")])
@pytest.mark.parametrize("name", ["none.csv", "blank.csv"])
def test_targets_that_need_no_labels_are_calibrated_without(
    folder: Path, tmp_path: Path, target: tuple[str, str], name: str
) -> None:
    rows = texts(40, seed=4)
    header, end = ("text,label\n", ",\n") if name == "blank.csv" else ("id,text\n", "\n")
    start = "" if name == "blank.csv" else "7,"
    (tmp_path / name).write_text(header + "".join(f"{start}{text}{end}" for text in rows))
    copy = save_folder(tmp_path / "model", balanced(tiny_model(id2label=NAMES)))
    result = offramp("calibrate", copy, "--data", tmp_path / name, *target, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads((copy / "operating_points.json").read_text())["points"]["default"]


@pytest.mark.parametrize(
    "target", [("--max-drop", "0.1"), ("--ladder",), ("--agreement", "0.9", "--metric", "macro-f1")]
)
def test_targets_of_a_score_are_refused_without_labels(folder: Path, tmp_path: Path, target: tuple[str, ...]) -> None:
    source = write(tmp_path / "a.jsonl")
    result = offramp("calibrate", folder, "--data", source, *target)
    assert result.exit_code == 1
    assert "no column looks like the label, choose it with --label-column (several times for" in result.stderr


def test_a_column_of_nothing_but_minus_one_holds_no_labels(folder: Path, tmp_path: Path) -> None:
    assert record(folder, write(tmp_path / "a.jsonl", every=-1)).labels is None


def test_record_says_that_it_has_no_labels(folder: Path, tmp_path: Path) -> None:
    result = offramp("record", folder, "--data", write(tmp_path / "a.jsonl"), "-o", tmp_path / "t.safetensors")
    assert result.stdout == f"{tmp_path / 't.safetensors'}: 60 rows x 4 exits, without labels\n"
    assert Trace.load(tmp_path / "t.safetensors").labels is None


def test_a_pipe_is_read_once(folder: Path, tmp_path: Path) -> None:
    copy = save_folder(tmp_path / "model", balanced(tiny_model(id2label=NAMES)))
    lines = "".join(f"{text}\n" for text in texts(30, seed=5))
    result = offramp("calibrate", copy, "--data", "-", "--latency-ms", "1000", given=lines)
    assert result.exit_code == 0, result.output
    assert "standard input: read as text lines; --format says otherwise" in result.stderr


def test_a_label_of_another_model_is_still_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown label 'warm'"):
        record(folder, write(tmp_path / "a.jsonl", every="warm"))
