"""Commands under a launcher: which run, and which process prints."""

import json
from pathlib import Path

import pytest

from offramp.cli.main import COMMANDS
from offramp.cli.processes import process_count
from offramp.cli.processes import rank as rank_of_process
from support.command_line import offramp


@pytest.fixture(params=[0, 1])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, value in {"RANK": request.param, "LOCAL_RANK": request.param, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("offramp.cli.processes.HEAD_START_S", 0.0)
    number: int = request.param
    return number


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"record", "train"}))
def test_a_command_that_is_not_made_for_several_processes_is_refused_in_one_line(command: str, rank: int) -> None:
    result = offramp(command, "model")
    assert result.exit_code == 1
    prefix = "process 1: " if rank else ""
    assert (
        result.output
        == f"Error: {prefix}{command} takes one process, and 2 were started; record and train run in several\n"
    )


def test_an_error_that_all_processes_have_is_one_line_of_each_and_notes_are_of_the_first(
    rank: int, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps({"text": f"text {number}", "label": number % 2}) + "\n" for number in range(4)))
    bad.write_text('{"text": "a", "label": 1}\n{"text": 3')
    result = offramp(
        "train", "--train", good, "--validation", bad, "--backbone", tiny(tmp_path), "-o", tmp_path / "out"
    )
    assert result.exit_code == 1
    *notes, error = result.output.splitlines()
    assert error.startswith("Error: process 1: " if rank else f"Error: {bad}, line 2")
    assert f"{bad}, line 2: not JSON" in error
    assert (notes == []) == (rank == 1)


def tiny(folder: Path) -> Path:
    from transformers import BertModel

    from support.models import encoder_config, tiny_tokenizer

    BertModel(encoder_config()).save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    return folder / "encoder"


def test_wrong_usage_in_another_process_is_one_line(rank: int) -> None:
    result = offramp("record", "--bogus")
    assert "No such option" in result.output
    assert (result.output.count("\n") == 1) == (rank == 1)


def test_a_process_that_no_launcher_started_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers set WORLD_SIZE and RANK for jobs of one process a machine as well."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (process_count(), rank_of_process()) == (1, 0)
    assert offramp("record", "model", "--data", "x.csv", "-o", "-").output.startswith("Error: -: not a file")
