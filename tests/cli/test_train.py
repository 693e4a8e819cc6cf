"""`offramp train`: runs that were killed, at whatever moment, are resumed and finished."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from transformers import BertModel

from offramp.training.checkpoints import fault_of
from offramp.types.operating_point import POINTS_FILE
from support.command_line import offramp
from support.models import encoder_config, texts, tiny_tokenizer

KILL = """
import os, shutil
import offramp.cli.train, offramp.training.fit, transformers
from offramp.cli.main import main
calls = 0
def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os._exit(137)
    return real(*args, **kwargs)
real = {name}
{name} = dying
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, data, and a model that was trained without a break."""
    folder = tmp_path_factory.mktemp("place")
    BertModel(encoder_config()).save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    for name, count, seed in (("train", 64, 1), ("validation", 32, 2)):
        rows = [{"text": text, "label": "good" if "good" in text else "bad"} for text in texts(count, seed=seed)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert offramp("train", *options(folder, "model")).exit_code == 0
    return folder


def options(folder: Path, output: str, *more: Any) -> list[str]:
    files = ("--train", folder / "train.jsonl", "--validation", folder / "validation.jsonl")
    all_of_them = (*files, "--backbone", folder / "encoder", "-o", folder / output, "--epochs", 2, *more)
    return [str(option) for option in all_of_them]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def train(folder: Path, output: str, *more: Any) -> Result:
    return offramp("train", *options(folder, output, *more))


def kill(folder: Path, output: str, name: str, call: int = 1) -> None:
    """Train in a process that ends, without any cleaning up, at a call of a function."""
    command = [sys.executable, "-c", KILL.format(name=name, call=call), "train", *options(folder, output)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 137


@pytest.mark.parametrize(
    ("moment", "name", "call"),
    [
        pytest.param("before the first checkpoint", "transformers.Trainer.training_step", 1, marks=pytest.mark.slow),
        ("while the second checkpoint is written", "transformers.Trainer._save_optimizer_and_scheduler", 2),
        pytest.param(
            "before the final weights",
            "offramp.model.modeling.MultiExitModel.save_pretrained",
            3,
            marks=pytest.mark.slow,
        ),
        pytest.param("before the operating point", "offramp.cli.train._add_default_point", 1, marks=pytest.mark.slow),
        pytest.param("while checkpoints are removed", "shutil.rmtree", 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_finished_with_resume_and_ends_like_one_that_was_not(
    moment: str, name: str, call: int, place: Path
) -> None:
    output = moment.replace(" ", "-")
    kill(place, output, name, call)
    if moment == "while the second checkpoint is written":
        assert [fault_of(path) for path in sorted((place / output / "checkpoints").iterdir())] == [
            None,
            "optimizer.pt is missing",
        ]
    result = train(place, output, "--resume")
    assert result.exit_code == 0, result.output
    assert names(place / output) == names(place / "model")
    for file in ("model.safetensors", POINTS_FILE):
        assert (place / output / file).read_bytes() == (place / "model" / file).read_bytes()


def test_a_run_that_ends_before_its_operating_point_is_saved_gets_one_with_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("offramp.cli.train._add_default_point", full)
    assert train(place, "pointless").exit_code == 1
    monkeypatch.undo()
    assert train(place, "pointless", "--resume").exit_code == 0
    assert names(place / "pointless") == names(place / "model")
    assert (place / "pointless" / POINTS_FILE).read_bytes() == (place / "model" / POINTS_FILE).read_bytes()


def test_a_finished_model_with_resume_is_left_alone(place: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (place / "model").iterdir()}
    result = train(place, "model", "--resume")
    assert result.exit_code == 0
    assert result.stderr.strip() == f"{place / 'model'}: nothing to resume, training is finished"
    assert {path.name: path.stat().st_mtime_ns for path in (place / "model").iterdir()} == before


def test_resume_without_a_run_trains_and_says_so(place: Path) -> None:
    result = train(place, "fresh", "--resume")
    assert result.exit_code == 0
    assert "fresh: nothing to resume, there is no unfinished run, training starts from the beginning" in result.stderr
    assert (place / "fresh" / "model.safetensors").read_bytes() == (place / "model" / "model.safetensors").read_bytes()


def test_an_unfinished_run_is_not_overwritten(place: Path) -> None:
    (place / "stopped" / "checkpoints").mkdir(parents=True)
    shutil.copy(place / "model" / "config.json", place / "stopped")
    result = train(place, "stopped")
    assert result.exit_code == 1
    assert "an unfinished run lies there; resume it by --resume" in result.stderr


def test_balanced_class_weights_are_logged_and_refused_for_a_regression(place: Path) -> None:
    result = train(place, "balanced", "--class-weights", "balanced")
    labels = [json.loads(line)["label"] for line in (place / "train.jsonl").read_text().splitlines()]
    by_hand = [f"{name} {64 / (2 * labels.count(name)):.4g}" for name in ("bad", "good")]
    assert f"class weights: {', '.join(by_hand)}" in result.stderr.splitlines()
    (place / "numbers.jsonl").write_text("".join(f'{{"text": "cat {n}", "label": {n}}}\n' for n in range(8)))
    numbers = ("--train", place / "numbers.jsonl", "--validation", place / "numbers.jsonl", "--task", "regression")
    result = train(place, "refused", *numbers, "--class-weights", "balanced")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: class weights are for classes, and a regression has none"
    assert not (place / "refused").exists()
