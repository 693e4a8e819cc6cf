"""A tokenizer that is read from its file alone gives what transformers' gives, or transformers loads it."""

import json
import pickle
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DistilBertTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from offramp.data.batching import encode, token_limit
from offramp.data.file_tokenizer import FileTokenizer
from offramp.model.default_encoder import PACKAGE, default_encoder
from support.models import SPECIAL, WORDS, encoder_config, tiny_tokenizer

LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-éüß東京"]
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
OF_MPNET = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
TEXTS: list[str | tuple[str, str]] = [
    "the cat sat on the mat",
    "The CAT, sat?!",
    "été façade Über straße ÉTÉ",
    "東京 is 大きい",
    "★ ☂ ✈ a ➜ b",
    "a\u0301 n\u0303 \u200bzero\u00a0width\tand\ttabs",
    "[CLS] the [SEP] cat [MASK] [PAD] <s> </s> <mask> <pad>",
    "x" * 150,
    "dog " * 90,
    " ",
    ("the cat", "a dog"),
    ("the cat " * 40, "a dog"),
    ("under", "[SEP] the tree " * 30),
]


def vocabulary(special: tuple[str, ...]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys((*special, *WORDS, *PIECES)))}


def words_alone() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel(vocabulary(SPECIAL), unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A [SEP] $B:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


READ: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "tiny": tiny_tokenizer,
    "bert": lambda: BertTokenizer(vocab=vocabulary(SPECIAL), model_max_length=100),
    "bert, cased": lambda: BertTokenizer(vocab=vocabulary(SPECIAL), do_lower_case=False, strip_accents=True),
    "bert, cut on the left": lambda: BertTokenizer(
        vocab=vocabulary(SPECIAL), truncation_side="left", tokenize_chinese_chars=False, model_max_length=24
    ),
    "bert, special tokens split": lambda: BertTokenizer(vocab=vocabulary(SPECIAL), split_special_tokens=True),
    "distilbert": lambda: DistilBertTokenizer(vocab=vocabulary(SPECIAL)),
    "mpnet": lambda: MPNetTokenizer(vocab=vocabulary(OF_MPNET), model_max_length=64),
    "words": words_alone,
}


def saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    encoder_config().save_pretrained(folder)
    return folder


def assert_same(folder: Path) -> None:
    ours, theirs = FileTokenizer.read(folder), AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    for limit in (8, 40, 128):
        rows = encode(ours, TEXTS, limit)
        assert rows == encode(theirs, TEXTS, limit)
        for text, row in zip(TEXTS, rows, strict=True):
            parts = (text,) if isinstance(text, str) else text
            assert row == dict(theirs(*parts, truncation=True, max_length=limit))
    assert encode(ours, TEXTS * 4, 40) == encode(theirs, TEXTS * 4, 40)  # many at once go another way
    assert (len(ours), ours.get_vocab()) == (len(theirs), theirs.get_vocab())
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    config = encoder_config(max_position_embeddings=512)
    assert token_limit(ours, config) == token_limit(theirs, config)


@pytest.mark.parametrize("name", READ)
def test_a_file_alone_gives_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    assert_same(saved(READ[name](), tmp_path))


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="the default encoder is not installed")
def test_so_does_the_default_encoders(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_encoder())
    assert_same(saved(tokenizer, tmp_path))


def test_all_else_is_transformers_own(tmp_path: Path) -> None:
    ours = pickle.loads(pickle.dumps(FileTokenizer.read(saved(tiny_tokenizer(), tmp_path))))
    assert ours is not None
    assert ours("the cat") == tiny_tokenizer()("the cat")
    assert ours.convert_tokens_to_ids("cat") == tiny_tokenizer().convert_tokens_to_ids("cat")
    assert ours.decode([7]) == "cat"


def in_file(*path: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        *above, last = path
        data = json.loads((folder / "tokenizer.json").read_text())
        inner = data
        for key in above:
            inner = inner[key]
        inner[last] = value
        (folder / "tokenizer.json").write_text(json.dumps(data))

    return change


def in_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        in_file("normalizer", "lowercase", value=False),
        in_file("pre_tokenizer", value={"type": "Whitespace"}),
        in_file("post_processor", value=None),
        in_file("model", "max_input_chars_per_word", value=7),
        in_file("model", "continuing_subword_prefix", value="@@"),
        in_file("added_tokens", value=[]),
        in_config(do_lower_case=False),
        in_config(tokenizer_class="ElectraTokenizer"),
        in_config(tokenizer_class="MPNetTokenizer"),
        in_config(sep_token="cat"),
        in_config(unk_token="[PAD]"),
        in_config(extra_special_tokens=["cat"]),
        in_config(never_split=["cat"]),
        in_config(added_tokens_decoder={"7": {"content": "cat", "special": True}}),
        in_config(some_token="cat"),
        in_config(truncation_side="middle"),
        in_config(truncation_side=None),
        in_config(model_max_length="long"),
        in_config(model_input_names=None),
        in_config(do_lower_case=None),
        lambda folder: (folder / "special_tokens_map.json").write_text("{}"),
        lambda folder: (folder / "added_tokens.json").write_text("{}"),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        shutil.rmtree,
    ],
)
def test_a_file_that_transformers_would_read_otherwise_is_left_to_it(
    change: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = saved(tiny_tokenizer(), tmp_path / "model")
    change(folder)
    assert FileTokenizer.read(folder) is None


@pytest.mark.parametrize("more", [RobertaTokenizer(vocab=vocabulary(OF_MPNET), merges=[]), tiny_tokenizer()])
def test_so_are_other_classes_and_tokens_that_were_added(more: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    more.add_tokens(["parcel"])
    assert FileTokenizer.read(saved(more, tmp_path)) is None
