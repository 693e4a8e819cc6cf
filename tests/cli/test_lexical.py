"""The lexical exit on the command line: what is printed of layer 0, and which traces go with a model that has it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.model.card import save_points
from offramp.model.lexical.config import LexicalExit
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, fixed_depth_point, read_points
from support.command_line import offramp
from support.models import save_folder, tiny_model
from support.traces import random_trace

LAYERS = (0, 1, 2, 3, 4)
POINTS = {
    "default": OperatingPoint({"name": "margin"}, (0.5, 0.5, 0.25, 0.5), exit_layers=LAYERS),
    "without-lexical": OperatingPoint({"name": "margin"}, (0.5, 0.25, 0.5)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a lexical exit of random numbers, which its default point reads."""
    folder = save_folder(
        tmp_path / "model", tiny_model(id2label={0: "bad", 1: "good"}, lexical=LexicalExit(buckets=97))
    )
    save_points(POINTS, folder)
    return folder


def saved_trace(path: Path, layers: Any = LAYERS) -> Path:
    trace = random_trace("single_label_classification", depth=5, samples=300, outputs=2, layers=torch.arange(5))
    trace.select(layers).save(path)
    return path


def test_info_and_the_card_know_the_lexical_exit_and_the_points_that_read_it(folder: Path) -> None:
    sizes = {"ngrams": 2, "buckets": 97, "rank": 2, "fitted_rows": 3}
    assert json.loads(offramp("info", folder, "--json").stdout)["lexical"] == {**sizes, "read_by": ["default"]}
    lines = offramp("info", folder).stdout.splitlines()
    words = "exit at layer 0: 1- and 2-grams of tokens, 97 buckets, rank 2, fitted on 3 different rows; read by default"
    assert f"lexical       {words}" in lines
    assert lines[-1] == "  it reads the exits at layers 1, 2, 3, 4 and skips 0 (lexical)"
    card = (folder / "README.md").read_text()
    assert "4 layers, exits at layers 0 (lexical), 1, 2, 3, 4 (head `linear`" in card
    assert "Layer 0 is the lexical exit: " in card
    assert "\n- without-lexical: reads the exits at layers 1, 2, 3, 4 alone\n" in card
    assert offramp("info", folder, "--verify").exit_code == 0


def test_a_row_that_leaves_before_the_first_layer_has_exit_layer_0(folder: Path) -> None:
    save_points({"default": fixed_depth_point(0, LAYERS)}, folder)
    answers = offramp("predict", folder, given="a good cat\nthe dog\n").stdout.splitlines()
    assert [json.loads(answer)["exit_layer"] for answer in answers] == [0, 0]
    answers = offramp("predict", folder, "--operating-point", "full", given="a good cat\n").stdout.splitlines()
    assert [json.loads(answer)["exit_layer"] for answer in answers] == [4]


def test_a_trace_with_or_without_layer_0_goes_with_the_model(folder: Path, tmp_path: Path) -> None:
    whole, rest = saved_trace(tmp_path / "whole"), saved_trace(tmp_path / "rest", LAYERS[1:])
    told = json.loads(offramp("evaluate", folder, "--trace", whole, "--json").stdout)
    assert told["layers"] == list(LAYERS)
    leaving = {name: point["measured"]["leaving"] for name, point in told["points"].items()}
    assert leaving["default"]["0"] > 0 == leaving["without-lexical"]["0"]
    assert [sum(counts.values()) for counts in leaving.values()] == [300, 300]
    printed = offramp("evaluate", folder, "--trace", whole, "--slice-by", "label").stdout
    assert printed.startswith("accuracy of every exit, on 300 rows")
    assert printed.splitlines()[1].startswith("before layer 1 (lexical)  layer 1  layer 2")
    assert "without-lexical reads the exits at layers 1, 2, 3, 4 and skips 0 (lexical)" in printed.splitlines()

    without = offramp("evaluate", folder, "--trace", rest, "--json")
    assert json.loads(without.stdout)["layers"] == [1, 2, 3, 4]
    assert list(json.loads(without.stdout)["points"]) == ["without-lexical"]
    assert "the operating point 'default' is left out: the point reads the exits at layers [0, 1, " in without.stderr

    assert offramp("calibrate", folder, "--trace", rest, "--agreement", 0.9, "--name", "encoder").exit_code == 0
    assert read_points(folder / POINTS_FILE)["encoder"].exit_layers == (1, 2, 3, 4)


def test_a_trace_with_layer_0_does_not_go_with_a_model_without_it(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", tiny_model(num_labels=2))
    result = offramp("evaluate", folder, "--trace", saved_trace(tmp_path / "whole"))
    assert result.exit_code == 1
    line = "whole has exits at layers 0 (lexical), 1, 2, 3, 4, the model at layers 1, 2, 3, 4"
    assert result.stderr.splitlines()[-1].endswith(line)
