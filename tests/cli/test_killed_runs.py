"""`kill -9` at any moment: each file is the old one or the new one, and the command run again finishes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from offramp.model.modeling import MultiExitModel
from support.killed import contents, moments, run_killed, unfinished
from support.models import encoder_config, save_folder, texts, tiny_tokenizer


def rows(path: Path, count: int, seed: int) -> Path:
    lines = [
        f'{{"text": "{text}", "label": "{"good" if "good" in text else "bad"}"}}' for text in texts(count, seed=seed)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, an encoder, a model, and older answers."""
    folder = tmp_path_factory.mktemp("killed")
    BertModel(encoder_config()).save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    rows(folder / "train.jsonl", 64, seed=1)
    rows(folder / "validation.jsonl", 32, seed=2)
    (folder / "answers.jsonl").write_text("older answers\n")
    model = MultiExitModel.from_backbone(BertModel(encoder_config()), id2label={0: "bad", 1: "good"}, pooling="mean")
    save_folder(folder / "model", model)
    return folder


def command(name: str, folder: Path) -> list[Any]:
    """Return a command whose files lie in a folder."""
    data = folder / "validation.jsonl"
    files = ("--train", folder / "train.jsonl", "--validation", data, "--backbone", folder / "encoder")
    return {
        "train": ["train", *files, "-o", folder / "new", "--epochs", 2, "--resume"],
        "lexical": ["train", *files[:-1], folder / "model", "-o", folder / "new", "--freeze", "--lexical", "--resume"],
        "calibrate": ["calibrate", folder / "model", "--data", data, "--speedup", 2],
        "export": ["export", folder / "model"],
        "switch": ["export", folder / "model", "--policy", "entropy"],
        "predict": ["predict", folder / "model", folder / "train.jsonl", "-o", folder / "answers.jsonl"],
    }[name]


def killed_everywhere(name: str, start: Path, folder: Path, count: int) -> None:
    def begin() -> dict[str, str]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        return contents(folder)

    old = begin()
    code, seconds = run_killed(command(name, folder))
    assert code == 0
    new = contents(folder)
    assert new != old
    kills: list[dict[str, Any]] = [{"after": moment} for moment in moments(seconds, count, seed=0)]
    kills += [{"at_write": number} for number in range(count)]
    for kill in kills:
        begin()
        run_killed(command(name, folder), **kill)
        unfinished_run = (folder / "new" / "checkpoints").exists()
        for file, content in contents(folder).items():
            if unfinished_run and file == "new/README.md":  # of the model, whose default point is still to come
                continue
            assert content in (old.get(file), new.get(file)), f"{file} is neither the old nor the new one, {kill}"
        assert run_killed(command(name, folder))[0] == 0, kill
        assert contents(folder).keys() == new.keys(), kill
        assert not [path for path in folder.rglob("*") if unfinished(path) or path.name == "checkpoints"], kill


@pytest.mark.parametrize("name", [pytest.param("calibrate", marks=pytest.mark.slow), "predict"])
def test_killed_at_a_few_moments(name: str, start: Path, tmp_path: Path) -> None:
    killed_everywhere(name, start, tmp_path / "run", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "lexical", "calibrate", "export", "predict"])
def test_killed_at_thirty_moments(name: str, start: Path, tmp_path: Path) -> None:
    killed_everywhere(name, start, tmp_path / "run", 30)


@pytest.mark.slow
def test_killed_while_a_graph_gets_another_policy(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "start")
    assert run_killed(command("export", tmp_path / "start"))[0] == 0
    killed_everywhere("switch", tmp_path / "start", tmp_path / "run", 30)
