from pathlib import Path

import pytest

import offramp.cli.demo as story
from offramp.cli.demo import COLUMNS, FULL, loss_text, main_job
from offramp.data.examples import read_examples
from offramp.data.readers import SAMPLE
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.types.operating_point import POINTS_FILE, Measured, read_points
from support.models import LAYERS, balanced, save_folder, tiny_model


def test_the_story_is_told_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the training, on a tiny model of random weights."""

    def untrained(folder: Path, seed: int, epochs: float) -> MultiExitModel:
        names = dict(enumerate(read_examples(SAMPLE, COLUMNS, split="train").label_names))
        model = balanced(tiny_model(id2label=names, lexical=LexicalExit()))
        return MultiExitModel.from_pretrained(save_folder(folder, model))

    monkeypatch.setattr(story, "train", untrained)
    monkeypatch.setattr(story, "CALLS", {1: 2, 32: 1})
    monkeypatch.setattr(story, "ROUNDS", 1)
    told = main_job(tmp_path, 0, 1)
    assert told["layers"] == [0, 1, 2, 3, 4]
    assert len(told["layerwise"]) == 1 + LAYERS
    without = {"without-lexical", "twice-as-fast-without-lexical"}
    assert set(told["points"]) == set(told["milliseconds"][32]) == {FULL, "default", "twice-as-fast"} | without
    assert told["points"][FULL]["mean_exit"] == LAYERS
    assert told["points"]["twice-as-fast"]["mean_exit"] <= 1.2 * LAYERS / 2  # chosen on other rows
    points = read_points(tmp_path / POINTS_FILE)
    assert set(points) == set(told["points"])
    assert {points[name].exit_layers for name in without} == {(1, 2, 3, 4)}
    said = capsys.readouterr().out
    for title in ("lose at most 1 %", "twice as fast"):
        assert f"\n{title}  " in said
        assert f"\n{title}, no lexical exit  " in said
    assert said.count("  layer ") >= 6
    assert said.count("before layer 1 (lexical)") == 1  # the exit's column
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("score", "score_without", "words"),
    [
        (0.796, 0.8, "lost 0.5 % of the full score, and without the lexical exit 0.0 %."),
        (0.784, 0.81, "lost 2.0 % (more than asked) of the full score, and without the lexical exit 0.0 %."),
        (0.792, 0.788, "lost 1.0 % of the full score, and without the lexical exit 1.5 % (more than asked)."),
    ],
)
def test_the_demo_says_whether_more_was_lost_than_asked(score: float, score_without: float, words: str) -> None:
    with_exit, without = (Measured("accuracy", value, 0.8, 0.9, 2.0, 6, 435) for value in (score, score_without))
    text = loss_text({"default": with_exit, "without-lexical": without}, 449)
    assert words in text
    assert text.endswith("449 validation messages cannot promise that others lose no more than 1 %.")
