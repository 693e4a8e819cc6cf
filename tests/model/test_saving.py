"""Saving makes true what lies beside the weights, before anything is uploaded; loading refuses what is of others."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

from offramp.cli.main import main
from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.model.card import save_points
from offramp.model.modeling import MultiExitModel
from offramp.model.points import load_points
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, read_points, write_points
from offramp.types.trace import Trace
from support.files import file_limit
from support.models import LAYERS, save_folder, texts, tiny_model

POINT = OperatingPoint({"name": "entropy"}, (-math.inf, 0.5, math.inf))
POINTS = {"default": POINT, "fast": replace(POINT, thresholds=(-math.inf,) * 3)}
OLD_POINTS = {"format": 1, "points": {name: point.to_json() for name, point in POINTS.items()}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with two points."""
    folder = save_folder(tmp_path / "model", tiny_model())
    save_points(POINTS, folder)
    return folder


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of this test."""
    messages: list[str] = []
    for module in ("points", "saving"):
        monkeypatch.setattr(
            f"offramp.model.{module}.logger.warning", lambda text, *values: messages.append(text % values)
        )
    return messages


@torch.no_grad()
def trained(model: MultiExitModel, name: str = "heads.classifiers.0.bias") -> MultiExitModel:
    model.get_parameter(name).view(-1)[0] += 1
    return model


def with_other_weights(folder: Path) -> Path:
    other = folder.parent / "other"
    model = trained(MultiExitModel.from_pretrained(folder))
    model.operating_points = {}
    model.save_pretrained(other)
    shutil.copy2(other / "model.safetensors", folder / "model.safetensors")
    return folder


# Loading.


def test_whoever_reads_the_configuration_reads_the_weights(folder: Path) -> None:
    """Safetensors from 0.8 on writes files for their owner alone."""
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_points_of_these_weights_are_loaded_without_a_word(folder: Path, lines: list[str]) -> None:
    assert load_points(folder) == MultiExitModel.from_pretrained(folder).operating_points == POINTS
    assert Predictor.load(folder, "torch", "fast").point == POINTS["fast"]
    assert lines == []


def test_points_of_other_weights_are_left_out_with_one_line(folder: Path, lines: list[str]) -> None:
    assert load_points(with_other_weights(folder)) == {}
    assert lines == [
        f"{folder}: operating points 'default', 'fast' were chosen for other weights and are not used; "
        "`offramp calibrate` chooses them anew; answers run at full depth"
    ]
    assert MultiExitModel.from_pretrained(folder).operating_points == {}


def test_a_stale_default_point_means_full_depth_and_another_one_is_refused(folder: Path, lines: list[str]) -> None:
    with_other_weights(folder)
    predictor = Predictor.load(folder, "torch")
    assert predictor.point is None
    assert {answer["exit_layer"] for answer in predictor(texts(4))} == {LAYERS}
    (line,) = lines
    assert line.endswith("; answers run at full depth")
    with pytest.raises(InvalidInput, match="operating point 'fast' was chosen for other weights; `offramp"):
        Predictor.load(folder, "torch", "fast")


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, False),
        ({"transformers_version": "99", "exit_dropout": 0.9}, False),
        ({"pooling": "mean"}, True),
    ],
)
def test_names_of_classes_do_not_matter_to_a_point_and_pooling_does(
    changes: dict[str, Any], stale: bool, folder: Path, lines: list[str]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert load_points(folder) == ({} if stale else POINTS)
    assert len(lines) == (1 if stale else 0)


def test_an_exit_that_is_added_later_leaves_a_point_valid_and_a_changed_one_does_not(
    tmp_path: Path, lines: list[str]
) -> None:
    before = tiny_model(exit_layers=[2, 4])
    save_points({"default": OperatingPoint({"name": "entropy"}, (0.5,))}, save_folder(tmp_path / "model", before))
    point = read_points(tmp_path / "model" / POINTS_FILE)["default"]
    for change, expected in ((None, 1), ("heads.classifiers.0.bias", 1), ("heads.classifiers.1.bias", 0)):
        after = tiny_model(exit_layers=[1, 2, 4])  # its exits are numbered anew: 0 is after layer 1
        after.backbone.load_state_dict(before.backbone.state_dict())
        for old, new in ((0, 1), (1, 2)):
            after.heads.classifiers[new].load_state_dict(before.heads.classifiers[old].state_dict())
        if change is not None:
            trained(after, change)
        folder = save_folder(tmp_path / str(change), after)
        write_points({"default": point}, folder / POINTS_FILE)
        assert len(load_points(folder)) == expected


@pytest.mark.parametrize(
    ("point", "line"),
    [
        ({"policy": {"name": "entropie"}, "thresholds": [1, 1, 1]}, "policy: unknown name 'entropie'; did you mean"),
        ({"policy": {"name": "entropy", "patience": 2}, "thresholds": [1, 1, 1]}, "policy: "),
        ({"policy": {"name": "pcee", "patience": "two"}, "thresholds": [1, 1, 1]}, "policy: "),
        (
            {"policy": {"name": "entropy"}, "thresholds": [1, 1]},
            "thresholds: 4 exits take 1 or 3 thresholds",
        ),
    ],
)
def test_a_point_that_the_model_cannot_run_is_refused_by_name(point: Any, line: str, folder: Path) -> None:
    (folder / POINTS_FILE).write_text(json.dumps({"format": 1, "points": {"mine": point}}))
    with pytest.raises(InvalidInput) as refused:
        Predictor.load(folder, "torch")
    assert str(refused.value).startswith(f"{folder / POINTS_FILE}: point 'mine': {line}")
    assert "\n" not in str(refused.value)


def test_points_of_an_earlier_version_are_read_as_before(folder: Path, lines: list[str]) -> None:
    (with_other_weights(folder) / POINTS_FILE).write_text(json.dumps(OLD_POINTS))
    assert load_points(folder) == POINTS
    assert lines == []


# Saving.


def test_training_in_memory_makes_points_stale_and_saving_says_so(folder: Path, lines: list[str]) -> None:
    model = trained(MultiExitModel.from_pretrained(folder))
    model.save_pretrained(folder)
    assert lines == [
        f"{folder}: operating points 'default', 'fast' were chosen for other weights and are left out; "
        "`offramp calibrate` chooses them anew",
        f"{folder / POINTS_FILE}: removed, the model has no operating points",
    ]
    assert not (folder / POINTS_FILE).exists()
    assert model.operating_points == {}
    assert "None yet; `offramp calibrate` makes them." in (folder / "README.md").read_text()


def test_a_point_is_not_set_on_weights_that_changed_since_it_was_loaded(folder: Path) -> None:
    model = MultiExitModel.from_pretrained(folder)
    model.set_operating_point("fast")
    model.bfloat16().set_operating_point("default")  # another precision is not another model
    model = trained(MultiExitModel.from_pretrained(folder), "backbone.embeddings.word_embeddings.weight")
    with pytest.raises(InvalidInput, match="the weights have changed since operating point 'fast' was loaded"):
        model.set_operating_point("fast")
    model.operating_points["fast"] = POINT  # chosen anew
    model.set_operating_point("fast")


def test_so_are_points_of_an_earlier_version_that_were_loaded_before_training(folder: Path, lines: list[str]) -> None:
    (folder / POINTS_FILE).write_text(json.dumps(OLD_POINTS))
    model = MultiExitModel.from_pretrained(folder)
    model.save_pretrained(folder.parent / "same")
    assert load_points(folder.parent / "same") == POINTS
    trained(model).save_pretrained(folder.parent / "trained")
    assert not (folder.parent / "trained" / POINTS_FILE).exists()
    assert len(lines) == 1


def test_one_number_deep_in_a_large_tensor_counts_when_a_model_is_saved(tmp_path: Path, lines: list[str]) -> None:
    from offramp.types.fingerprint import sampled

    model = tiny_model(num_labels=3000)  # 3000 x 16 numbers an exit, of which a sample is read at start
    folder = save_folder(tmp_path / "model", model)
    save_points({"default": POINT}, folder)
    model = MultiExitModel.from_pretrained(folder)
    weight = model.heads.classifiers[0].weight
    pieces = sampled(weight.numel() * 4)
    between = (pieces[0][1] + pieces[1][0]) // 8  # a number that no piece holds
    with torch.no_grad():
        weight.view(-1)[between] += 1
    model.save_pretrained(folder)
    assert not (folder / POINTS_FILE).exists()


def test_a_model_without_points_keeps_those_of_the_folder_if_they_are_of_its_weights(
    folder: Path, lines: list[str]
) -> None:
    model = MultiExitModel.from_pretrained(folder)
    model.operating_points = {}
    model.save_pretrained(folder)
    assert load_points(folder) == POINTS
    model.operating_points = {}
    trained(model).save_pretrained(folder)
    assert not (folder / POINTS_FILE).exists()


def test_other_shards_are_the_same_weights(folder: Path, lines: list[str]) -> None:
    model = MultiExitModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert load_points(folder) == POINTS
    assert lines == []


def test_shards_replace_the_one_file_of_the_weights_before(folder: Path, lines: list[str]) -> None:
    other = tiny_model(seed=5)
    other.save_pretrained(folder, max_shard_size="20KB")
    weights = MultiExitModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
    assert load_points(folder) == {}


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    model = tiny_model()
    with file_limit(10_000), pytest.raises(InvalidInput) as error:
        model.save_pretrained(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: the weights cannot be written (")
    trace = Trace(torch.zeros(4, 1000, 3))
    with file_limit(10_000), pytest.raises(InvalidInput, match="it cannot be written"):
        trace.save(tmp_path / "trace.safetensors")
    assert not list(tmp_path.glob("*trace*"))


def test_a_card_that_is_not_utf_8_stays_and_hinders_nothing(folder: Path) -> None:
    card = "Mod\xe8le".encode("latin-1")
    (folder / "README.md").write_bytes(card)
    MultiExitModel.from_pretrained(folder).save_pretrained(folder)
    save_points(POINTS, folder)
    result = CliRunner().invoke(main, ["info", str(folder), "--verify"])
    assert result.exit_code == 0
    assert "somebody's own card" in result.output
    assert (folder / "README.md").read_bytes() == card


def test_only_the_main_process_writes(folder: Path, tmp_path: Path) -> None:
    MultiExitModel.from_pretrained(folder).save_pretrained(tmp_path / "rank 1", is_main_process=False)
    MultiExitModel.from_pretrained(folder).save_pretrained(tmp_path / "rank 2", False)
    assert list((tmp_path / "rank 1").iterdir()) == list((tmp_path / "rank 2").iterdir()) == []


def test_the_card_follows_the_model_and_keeps_what_somebody_wrote(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text("My model.\n\n" + card.read_text() + "\n## Licence\n\nMIT\n")
    assert "| fast | entropy | not measured" in card.read_text()
    tiny_model(exit_layers=[1, 4], id2label={0: "no", 1: "yes"}).save_pretrained(folder)
    text = card.read_text()
    assert text.startswith("My model.\n")
    assert text.endswith("\n## Licence\n\nMIT\n")
    assert "4 layers, a classifier after layers 1, 4 (head" in text
    assert "Outputs: no, yes\n" in text
    assert "None yet" in text
    assert "fast" not in text
    card.write_text("Somebody's own card.\n")
    tiny_model().save_pretrained(folder)
    assert card.read_text() == "Somebody's own card.\n"


# Uploading.


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The text files of each upload, by name; nothing is sent."""
    sent: list[dict[str, str]] = []

    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def create_commit(self, operations: list[Any], **_: Any) -> None:
            sent.append({each.path_in_repo: content(each.path_or_fileobj) for each in operations})

    def content(path: str) -> str:
        return "" if path.endswith(".safetensors") else Path(path).read_text()

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.modeling_utils.hf_api", Hub)
    for module in ("utils.hub", "modeling_utils"):
        monkeypatch.setattr(f"transformers.{module}.create_and_tag_model_card", lambda *_, **__: ModelCard(EMPTY))
    monkeypatch.setattr(
        "transformers.utils.hub.CommitOperationAdd",
        lambda path_or_fileobj, path_in_repo: type(
            "Add", (), {"path_or_fileobj": path_or_fileobj, "path_in_repo": path_in_repo}
        ),
    )
    return sent


@pytest.mark.parametrize("again", [False, True])
def test_points_and_card_are_written_before_anything_is_uploaded(
    again: bool, folder: Path, tmp_path: Path, uploads: list[dict[str, str]]
) -> None:
    model = MultiExitModel.from_pretrained(folder)
    to = folder if again else tmp_path / "new"
    model.save_pretrained(to, push_to_hub=True)
    (files,) = uploads
    assert {"model.safetensors", "config.json", POINTS_FILE, "README.md"} <= set(files)
    assert set(json.loads(files[POINTS_FILE])["points"]) == set(POINTS)
    assert "| fast | entropy |" in files["README.md"]


def test_points_that_are_no_longer_true_are_not_left_on_the_hub(folder: Path, uploads: list[dict[str, str]]) -> None:
    trained(MultiExitModel.from_pretrained(folder)).save_pretrained(folder, push_to_hub=True)
    assert json.loads(uploads[0][POINTS_FILE]) == {"format": 1, "points": {}}
    assert "None yet" in uploads[0]["README.md"]


EMPTY = """---
library_name: transformers
tags: [mine]
---
This model card has been automatically generated.
"""
OWN = """---
license: mit
---
Somebody's own card.
"""


@pytest.mark.parametrize(("on_hub", "ours"), [(EMPTY, True), (OWN, False)])
def test_push_to_hub_sends_our_card_in_place_of_an_empty_one(
    on_hub: str, ours: bool, folder: Path, uploads: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("utils.hub", "modeling_utils"):
        monkeypatch.setattr(f"transformers.{module}.create_and_tag_model_card", lambda *_, **__: ModelCard(on_hub))
    model = MultiExitModel.from_pretrained(folder)
    model.push_to_hub("me/model")
    model.save_pretrained(folder, push_to_hub=True)
    for files in uploads:
        assert set(json.loads(files[POINTS_FILE])["points"]) == set(POINTS)
        assert ("| fast | entropy |" in files["README.md"]) == ours
        assert ("library_name: offramp" in files["README.md"]) == ours
        assert ("- mine" in files["README.md"]) == ours
        assert ("Somebody's own card" in files["README.md"]) != ours
    assert len(uploads) == 2


def test_the_warnings_reach_the_user(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_points(with_other_weights(folder))
    assert caplog.text.count("`offramp calibrate` chooses them anew") == 1
