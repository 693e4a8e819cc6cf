"""`offramp train` on a model with exits, and on an adapter of PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from offramp.model.modeling import MultiExitModel
from support.command_line import offramp
from support.models import encoder_config, padded, save_folder, text_rows, texts, tiny_model, tiny_tokenizer

IN_OTHER_ORDER = {0: "good", 1: "bad"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [{"text": text, "label": "good" if "good" in text else "bad"} for text in texts(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train(place: Path, start: Path, output: str, *more: Any) -> Result:
    files = ("--train", place / "rows.jsonl", "--validation", place / "rows.jsonl", "--epochs", 1, "--batch-size", 8)
    return offramp("train", *files, "--backbone", start, "-o", place / output, *more)


def test_the_same_labels_go_on_in_the_models_order(place: Path) -> None:
    start = save_folder(place / "start", tiny_model(id2label=IN_OTHER_ORDER, pooling="mean"))
    result = train(place, start, "more")
    assert result.exit_code == 0, result.output
    assert "the exits go on from their weights\n" in result.stderr
    assert MultiExitModel.from_pretrained(place / "more").config.id2label == IN_OTHER_ORDER


@pytest.mark.slow
def test_other_labels_keep_the_encoder(place: Path) -> None:
    start = save_folder(place / "start", tiny_model(id2label={0: "x", 1: "y"}, pooling="mean"))
    for more in ((), ("--layers", 2)):
        result = train(place, start, f"other{len(more)}", *more)
        assert result.exit_code == 0, result.output
        assert "left out" in result.stderr
        assert "every exit starts anew" in result.stderr


def test_a_frozen_model_with_exits_keeps_its_last_answer(place: Path) -> None:
    model = tiny_model(id2label=IN_OTHER_ORDER, pooling="mean")
    start = save_folder(place / "start", model)
    freeze = ("--objective", "two-stage", "--freeze")
    result = train(place, start, "frozen", *freeze)
    assert result.exit_code == 0, result.output
    batch = padded(model, text_rows(8))
    found, before = MultiExitModel.from_pretrained(place / "frozen")(**batch), model(**batch)
    assert torch.equal(found.logits, before.logits)
    assert not torch.allclose(found.logits_by_exit[:, 0], before.logits_by_exit[:, 0])
    other = train(place, start, "form", *freeze, "--head", "pooler")
    assert other.exit_code == 2
    assert "keeps the last exit of" in other.output
    assert "needs --head linear --pooling mean" in " ".join(other.output.split())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_an_adapter_is_a_backbone(place: Path) -> None:
    torch.manual_seed(4)
    names = {"id2label": IN_OTHER_ORDER, "label2id": {"good": 0, "bad": 1}}
    AutoModelForSequenceClassification.from_config(encoder_config(**names)).save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    base = AutoModelForSequenceClassification.from_pretrained(place / "base")
    adapter = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False))
    adapter.save_pretrained(place / "adapter")
    result = train(place, place / "adapter", "exits", "--objective", "two-stage", "--freeze")
    assert result.exit_code == 0, result.output
    model = MultiExitModel.from_pretrained(place / "exits")
    batch = padded(model, text_rows(8))
    assert torch.allclose(model(**batch).logits, adapter.eval()(**batch).logits, atol=1e-5)
