"""Tokens, rows of the embedding and pad tokens: what does not fit is refused before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, RobertaTokenizer

from offramp.data.batching import check_vocabulary, collate
from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.inference.export import export
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.model import hub
from offramp.model.hub import load_encoder
from offramp.model.loading import load_folder
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import fit
from offramp.types.problem_types import SINGLE_LABEL
from support.models import (
    TEXTS,
    VOCABULARY,
    encoder_config,
    padded,
    save_folder,
    texts,
    tiny_model,
    tiny_tokenizer,
    token_rows,
)

MORE = [f"new{number}" for number in range(VOCABULARY)]
ROWS = Examples(texts(8), [0, 1] * 4, ("no", "yes"), SINGLE_LABEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer got more tokens after training."""
    path = save_folder(tmp_path_factory.mktemp("model"), tiny_model(id2label={0: "no", 1: "yes"}))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(MORE)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "use",
    [
        Predictor.load,
        load_folder,
        lambda folder: record(folder, ROWS),
        export,
        lambda folder: fit(MultiExitModel.from_pretrained(folder), load_tokenizer(folder), folder / "run", ROWS),
    ],
    ids=["Predictor.load", "load_folder", "record", "export", "fit"],
)
def test_a_tokenizer_with_more_tokens_than_rows_is_refused(use: Callable[[Path], Any], folder: Path) -> None:
    known = len(load_tokenizer(folder))
    with pytest.raises(InvalidInput) as caught:
        use(folder)
    message = str(caught.value)
    assert f"the tokenizer has {known} tokens, the encoder's embedding has 40 rows" in message
    assert f"model.resize_token_embeddings({known})" in message
    assert "\n" not in message
    assert not (folder / "run").exists()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_the_largest_id_counts_and_fewer_tokens_are_fine() -> None:
    class Gaps:
        def __len__(self) -> int:
            return 3

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "c": 40}

    with pytest.raises(InvalidInput, match="the tokenizer has 41 tokens"):
        check_vocabulary(Gaps(), encoder_config(vocab_size=40))  # type: ignore[arg-type]
    check_vocabulary(Gaps(), encoder_config(vocab_size=41))  # type: ignore[arg-type]
    check_vocabulary(tiny_tokenizer(), encoder_config(vocab_size=4096))


@pytest.mark.parametrize("family", TEXTS)
def test_new_rows_are_saved_and_change_no_answer(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    batch = padded(model, token_rows(4))
    before = model(**batch).logits_by_exit
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    assert torch.equal(model(**batch).logits_by_exit, before)
    batch["input_ids"][0, 0] = VOCABULARY + 2
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    back = MultiExitModel.from_pretrained(tmp_path)
    assert values["backbone"]["vocab_size"] == back.config.vocab_size == VOCABULARY + 3
    assert "vocab_size" not in values
    assert torch.equal(back(**batch).logits_by_exit, model(**batch).logits_by_exit)


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_a_token_without_a_row_is_refused_on_the_cpu(token: int) -> None:
    model = tiny_model()
    with pytest.raises(InvalidInput, match=f"there is no token {token}: the encoder's embedding has 40 rows, from 0"):
        model(input_ids=torch.tensor([[2, token]]))


@pytest.mark.parametrize("pad", [None, -1, 7])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "deberta-v2", "modernbert"])
def test_any_pad_token_does_under_a_mask(family: str, pad: int | None, tmp_path: Path) -> None:
    """Also none, -1, and another one than the tokenizer's; RoBERTa's positions are those of the plain encoder."""
    model = MultiExitModel.from_backbone(encoder_config(family, pad_token_id=pad), 2, pooling="mean").eval()
    save_folder(tmp_path, model)
    predictor = Predictor.load(tmp_path, engine="torch", operating_point=None)
    together = predictor(texts(6))
    alone = [predictor([text])[0] for text in texts(6)]
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    rows = [{"input_ids": [5, 6, 8]}, {"input_ids": [9]}]
    assert collate(rows, pad)["input_ids"].tolist() == [[5, 6, 8], [9, pad, pad] if pad == 7 else [9, 0, 0]]
    plain = AutoModel.from_config(model.config.backbone).eval()
    plain.load_state_dict(model.backbone.state_dict(), strict=False)
    unpadded = torch.tensor([[5, 6, 8]])
    expected = plain(unpadded, attention_mask=torch.ones_like(unpadded)).last_hidden_state
    found = model(input_ids=unpadded, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("kept", "pad"), [(True, 2), (False, 1)])
def test_roberta_without_a_pad_token_counts_positions_from_the_tokenizers(kept: bool, pad: int, tmp_path: Path) -> None:
    """Else from its family's, which is 1 in all published checkpoints."""
    model = AutoModel.from_config(encoder_config("roberta", pad_token_id=pad)).eval()
    model.save_pretrained(tmp_path)
    if kept:
        vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", "<unk>", "<mask>", "a"])}
        RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "pad_token_id": None}))
    exits = MultiExitModel.from_backbone(tmp_path, 2).eval()
    ids = torch.tensor([[5, 6, 8]])
    assert exits.config.pad_token_id == exits.config.backbone.pad_token_id == pad
    found = exits(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(found, model(ids).last_hidden_state, atol=1e-5)


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    """transformers makes a tokenizer of five special tokens, to which every word is unknown."""
    AutoModel.from_config(encoder_config()).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"no tokenizer can be loaded from there \(none of .*tokenizer\.json"):
        hub.load_tokenizer(tmp_path)


def test_a_pad_token_without_a_row_is_refused(tmp_path: Path) -> None:
    AutoModel.from_config(encoder_config()).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "pad_token_id": 40}))
    for load in (load_encoder, lambda _: MultiExitModel.from_backbone(encoder_config(pad_token_id=40), 2)):
        with pytest.raises(InvalidInput, match="pad_token_id is 40, but its embedding has 40 rows, from 0"):
            load(tmp_path)
