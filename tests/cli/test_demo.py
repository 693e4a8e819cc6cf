from pathlib import Path

import pytest

import offramp.cli.demo as story
from offramp.cli.demo import COLUMNS, FULL, main_job
from offramp.data.examples import read_examples
from offramp.data.readers import SAMPLE
from offramp.model.modeling import MultiExitModel
from offramp.types.operating_point import POINTS_FILE, read_points
from support.models import LAYERS, balanced, save_folder, tiny_model


def test_the_story_is_told_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the training, on a tiny model of random weights."""

    def untrained(folder: Path, seed: int, epochs: float) -> MultiExitModel:
        names = dict(enumerate(read_examples(SAMPLE, COLUMNS, split="train").label_names))
        return MultiExitModel.from_pretrained(save_folder(folder, balanced(tiny_model(id2label=names))))

    monkeypatch.setattr(story, "train", untrained)
    monkeypatch.setattr(story, "CALLS", {1: 2, 32: 1})
    told = main_job(tmp_path, 0, 1)
    assert len(told["layerwise"]) == LAYERS
    assert set(told["points"]) == set(told["milliseconds"][32]) == {FULL, "default", "twice-as-fast"}
    assert told["points"][FULL]["mean_exit"] == LAYERS
    assert told["points"]["twice-as-fast"]["mean_exit"] <= 1.2 * LAYERS / 2  # chosen on other rows
    assert set(read_points(tmp_path / POINTS_FILE)) == set(told["points"])
    said = capsys.readouterr().out
    assert said.count("  layer ") >= 6
    assert "lose at most 1 %" in said
    assert (tmp_path / "curve.png").stat().st_size > 10_000
