"""A folder that is damaged, or whose files do not go together, is refused in one line, and never answers by chance."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from offramp.errors import InvalidInput
from offramp.model.card import save_points
from offramp.model.loading import load_folder
from offramp.types.operating_point import OperatingPoint
from support.models import WIDTH, save_folder, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "model", tiny_model())


def encoder(**changes: Any) -> Callable[[Path], None]:
    """Return a change of the encoder's configuration."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["backbone"].update(changes)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def fewer_exits(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "exit_layers": [1, 2, 4]}), encoding="utf-8")


def content(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return change


def one_exit_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["heads.classifiers.1.weight"], weights["heads.classifiers.1.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def index_without_metadata(folder: Path) -> None:
    os.rename(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    content("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')(folder)


def without(name: str) -> Callable[[Path], None]:
    """Return a change that leaves out a key of the configuration, in a folder with a point."""

    def change(folder: Path) -> None:
        save_points({"default": OperatingPoint({"name": "entropy"}, (0.5, 0.5, 0.5))}, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del config[name]
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


DAMAGES = {
    "no encoder": (without("backbone"), "config.json has no backbone"),
    "no exits": (without("exit_layers"), "config.json: no exit_layers"),
    "exit": (one_exit_missing, "its weights have no heads.classifiers.1.bias and 1 more"),
    "fewer exits": (fewer_exits, "its weights have heads.classifiers.3.bias, and config.json means a model without it"),
    "width": (encoder(intermediate_size=8), f"has the shape [{2 * WIDTH}], and config.json means [8]"),
    "more layers": (encoder(num_hidden_layers=5), "exit_layers must rise from 1 or more to the last layer, 5"),
    "activation": (encoder(hidden_act="none"), "no model can be loaded from there (KeyError('none'))"),
    "text for a number": (encoder(hidden_size="16"), "expected int, got str"),
    "index": (index_without_metadata, "no model can be loaded from there (KeyError('metadata'))"),
    "tokenizer": (content("tokenizer.json", "{}"), "no tokenizer can be loaded from there"),
    "tokenizer's settings": (content("tokenizer_config.json", "[]"), "no tokenizer can be loaded from there"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(damage: str, folder: Path) -> None:
    change, reason = DAMAGES[damage]
    change(folder)
    with pytest.raises(InvalidInput) as refused:
        load_folder(folder)
    assert str(refused.value).startswith(f"{folder}: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
