"""What answers depend on: any file that an engine or the tokenizer reads."""

import json
from pathlib import Path

import pytest

from offramp.inference.folder_job.identity import model_digest
from support.models import save_folder, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "model", tiny_model())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_each_file_that_answers_depend_on_is_part_of_the_digest(name: str, folder: Path) -> None:
    before = model_digest(folder, "torch")
    data = bytearray((folder / name).read_bytes())
    if name == "tokenizer_config.json":  # to how many tokens a text is cut
        data = bytearray(json.dumps({**json.loads(data), "model_max_length": 16}).encode())
    else:
        data[-3] ^= 1
    (folder / name).write_bytes(data)
    assert model_digest(folder, "torch") != before


def test_the_digest_is_that_of_the_content_wherever_it_lies(folder: Path) -> None:
    before = model_digest(folder, "torch")
    moved = folder.rename(folder.with_name("moved"))
    (moved / "notes.md").write_text("other files do not count")
    assert model_digest(moved, "torch") == before
