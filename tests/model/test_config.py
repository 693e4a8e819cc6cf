"""The format number of a model folder: what is read, what is refused, what it means."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertForSequenceClassification

from offramp.errors import InvalidInput
from offramp.model.config import MultiExitConfig
from offramp.model.hub import load_config
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from support.models import encoder_config, padded, tiny_model, token_rows


def with_format(folder: Path, number: Any) -> Path:
    """Save a model to a folder with this format in its config.json; None = without one."""
    tiny_model(exit_layers=[2, 4]).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    assert values.pop("format") == 1
    (folder / "config.json").write_text(json.dumps(values if number is None else {**values, "format": number}))
    return folder


def test_a_folder_without_a_format_is_read_and_saved_with_one(tmp_path: Path) -> None:
    model = MultiExitModel.from_pretrained(with_format(tmp_path / "old", None))
    assert model.layers == [2, 4]
    assert model.config.format == 1
    model.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["format"] == 1


@pytest.mark.parametrize("load", [MultiExitModel.from_pretrained, MultiExitConfig.from_pretrained, load_model])
@pytest.mark.parametrize("number", [3, "next"])
def test_a_later_format_is_refused_in_one_line(load: Any, number: Any, tmp_path: Path) -> None:
    folder = with_format(tmp_path, number)
    with pytest.raises(InvalidInput) as caught:
        load(folder)
    message = str(caught.value)
    file = folder / "config.json"
    assert f"{file}: format {number!r}; this version of offramp reads up to 2; a newer offramp reads it" in message
    assert "\n" not in message


@pytest.mark.parametrize("load", [AutoConfig.from_pretrained, load_config])
def test_auto_classes_refuse_it_too(load: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json: format 3"):
        load(with_format(tmp_path, 3))


def test_an_attention_head_without_a_format_keeps_its_one_tanh(tmp_path: Path) -> None:
    """FastBERT's first tanh came with format 2; a head that was trained without it answers as it did."""
    model = tiny_model(head="attention", num_labels=3)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("format") == 2
    batch = padded(model, token_rows(6))
    new = model(**batch).logits_by_exit
    for number in ({}, {"format": 1}):
        (tmp_path / "config.json").write_text(json.dumps(values | number))
        for load in (MultiExitModel.from_pretrained, load_model):
            old = load(tmp_path)
            assert [each.first_tanh for each in old.heads.attentions] == [False] * 4
            assert not torch.allclose(old(**batch).logits_by_exit, new, atol=1e-3)
        old.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["format"] == 1


@pytest.mark.parametrize("names", [(1, 2), (0.5, 1.0), (True, False), (None, "a")])
def test_names_of_classes_are_text_from_the_start(names: tuple[Any, Any], tmp_path: Path) -> None:
    expected = {0: str(names[0]), 1: str(names[1])}
    fine_tuned = BertForSequenceClassification(encoder_config(id2label=dict(enumerate(names))))
    for model in (
        tiny_model(id2label=dict(enumerate(names))),
        tiny_model(id2label={"0": names[0], "1": names[1]}),  # as JSON has it
        MultiExitModel.from_backbone(fine_tuned),  # keeps the names and the head
        MultiExitModel.from_backbone(fine_tuned, id2label=dict(enumerate(names))),
    ):
        model.save_pretrained(tmp_path)
        assert model.config.id2label == MultiExitConfig.from_pretrained(tmp_path).id2label == expected
        assert model.config.label2id == {name: number for number, name in expected.items()}
    assert model.config.own_head is not None


def test_two_classes_of_one_name_are_refused() -> None:
    fine_tuned = BertForSequenceClassification(encoder_config(id2label={0: 1, 1: "1"}))
    for build in (lambda: tiny_model(id2label={0: "1", 1: 1}), lambda: MultiExitModel.from_backbone(fine_tuned)):
        with pytest.raises(InvalidInput, match="two classes are named '1'"):
            build()
