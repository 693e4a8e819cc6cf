"""`offramp train` and the exit before the first layer: with it, without it, and onto a finished model."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from offramp.model.card import save_points
from offramp.model.loading import load_model
from offramp.model.points import load_points
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import Certificate, OperatingPoint
from support.command_line import offramp
from support.models import padded, save_folder, text_rows, texts, tiny_model

ALONE = ("--freeze", "--lexical")
NAMES = {0: "good", 1: "bad"}
POINTS = {
    "default": OperatingPoint({"name": "entropy"}, (0.2, math.inf, 0.5)),
    "fast": OperatingPoint({"name": "margin"}, (-math.inf,) * 3),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for split, seed in (("train", 1), ("validation", 2)):
        rows = [{"text": text, "label": "good" if "good" in text else "bad"} for text in texts(40, seed=seed)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_folder(tmp_path / "start", tiny_model(id2label=NAMES, pooling="mean"))
    digest = ModelContent(tmp_path / "start").file_digest
    certificate = Certificate("agreement", 0.05, 0.05, 0.05, 0.03, 500, "binomial", None, "ab12", digest)
    sure = replace(POINTS["fast"], thresholds=(math.inf,) * 3, certificate=certificate)
    save_points({**POINTS, "sure": sure}, tmp_path / "start")
    return tmp_path


def train(place: Path, start: str, output: str, *more: Any) -> Result:
    data = [part for split in ("train", "validation") for part in (f"--{split}", place / f"{split}.jsonl")]
    return offramp("train", *data, "--backbone", place / start, "-o", place / output, *more)


@torch.no_grad()
def test_onto_a_finished_model_everything_else_stays_as_it_is(place: Path) -> None:
    result = train(place, "start", "more", *ALONE, "--json")
    assert result.exit_code == 0, result.output
    assert "the operating point 'default' is kept as 'without-lexical'\n" in result.stderr
    before, after = load_model(place / "start"), load_model(place / "more")
    batch = padded(before, text_rows(16))
    out = after(**batch)
    assert torch.equal(out.exit_logits[1:], before(**batch).exit_logits)
    assert out.exit_logits[0].argmax(-1).unique().tolist() == [0, 1]
    weights = {name: value for name, value in after.state_dict().items() if not name.startswith("lexical_exit.")}
    assert weights.keys() == before.state_dict().keys()
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in weights.items())
    # its points are those of its encoder still
    points = load_points(place / "more")
    for name, kept in (("without-lexical", POINTS["default"]), ("fast", POINTS["fast"])):
        assert (points[name].policy, points[name].thresholds) == (kept.policy, kept.thresholds)
        assert points[name].layers_read(after.layers) == (1, 2, 3, 4)
    assert set(points) == {"default", "without-lexical", "fast", "sure"}
    assert points["sure"].certificate.weights == ModelContent(place / "more").file_digest
    verified = offramp("info", place / "more", "--verify")
    assert verified.exit_code == 0, verified.output
    assert "stale" not in verified.stdout
    assert not (place / "more" / "checkpoints").exists()
    # once more, onto the model that has one
    again = train(place, "more", "again", *ALONE)
    assert again.exit_code == 0, again.output
    assert "the exit before the first layer is fitted anew\n" in again.stderr
    assert "is kept as" not in again.stderr
    assert load_points(place / "again")["without-lexical"] == points["without-lexical"]


def test_training_fits_it_unless_it_is_refused(place: Path) -> None:
    fast = ("--epochs", 1, "--batch-size", 40)
    weights = []
    for output, more in (("with", ()), ("without", ("--no-lexical",))):
        result = train(place, "start", output, *fast, *more)
        assert result.exit_code == 0, result.output
        model = load_model(place / output)
        assert (model.lexical_exit is None) is (output == "without")
        weights.append({name: it for name, it in model.state_dict().items() if not name.startswith("lexical_exit.")})
        assert ModelContent(place / output).parameters == model.num_parameters()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert len(load_model(place / "with").lexical_exit.fitted_rows) > 20


def test_rows_that_fitted_it_choose_a_point_with_a_warning_and_cut_texts_are_counted_once(place: Path) -> None:
    short = ("--epochs", 1, "--batch-size", 40, "--max-length", 4)
    result = train(place, "start", "same", *short, "--validation", place / "train.jsonl")
    assert result.exit_code == 0, result.output
    words = "40 of 40 rows fitted the exit before the first layer, which answers them better than others: "
    assert any(line.startswith(words) for line in result.stderr.splitlines())
    assert result.stderr.count(" were cut to 4 tokens\n") == 3  # rows to train on, to validate on, and to choose on


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--objective", "joint"), "--freeze --lexical keeps all of a model with exits; leave out --objective"),
        (("--exit-layers", "2,4"), "leave out --exit-layers"),
        (("--max-length", "12"), "leave out --max-length"),
    ],
)
def test_what_would_change_a_finished_model_is_refused(more: tuple[str, ...], line: str, place: Path) -> None:
    result = train(place, "start", "more", *ALONE, *more)
    assert result.exit_code == 2
    assert line in " ".join(result.output.split())
    assert not (place / "more").exists()


def test_an_encoder_of_images_is_refused_in_one_line(place: Path) -> None:
    tiny_model("vit").save_pretrained(place / "images")
    for more, line in (((), "a lexical exit reads tokens, and a vit encoder has none"), (ALONE, "a model of images")):
        result = train(place, "images", "new", *more)
        assert result.exit_code == 1
        assert line in result.stderr.splitlines()[-1]
