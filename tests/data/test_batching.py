from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding, PreTrainedTokenizerFast

from offramp.data.batching import NO_LIMIT, Cuts, collate, encode, length_sorted, token_limit
from offramp.errors import InvalidInput
from support.models import IMAGES, POSITIONS, TEXTS, encoder_config, tiny_model, tiny_tokenizer

RESERVED = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
RELATIVE = ("deberta", "deberta-v2", "modernbert")  # the limit is what they were trained for; they run on beyond it


def test_collate_pads_on_the_right_to_the_longest_row() -> None:
    batch = collate(
        [
            {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "token_type_ids": [0, 1, 1]},
            {"input_ids": [8], "attention_mask": [1], "token_type_ids": [1]},
        ],
        pad_token_id=4,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 4, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_collate_makes_the_mask_where_rows_have_none() -> None:
    batch = collate([{"input_ids": [5, 4]}, {"input_ids": [8]}], pad_token_id=4)
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "dtype"), [([2, 0], torch.int64), ([0.5, 2.0], torch.float32), ([[1.0, 0.0], [0.0, 1.0]], torch.float32)]
)
def test_collate_makes_one_tensor_of_labels(labels: list[object], dtype: torch.dtype) -> None:
    batch = collate([{"input_ids": [5], "labels": label} for label in labels], pad_token_id=0)
    assert batch["labels"].tolist() == labels
    assert batch["labels"].dtype == dtype


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 9))
def test_length_sorted_takes_every_row_once_longest_first(lengths: list[int], batch_size: int) -> None:
    batches = length_sorted([{"input_ids": [0] * length} for length in lengths], batch_size)
    order = [number for batch in batches for number in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[number] for number in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_length_sorted_keeps_the_order_of_rows_of_one_length() -> None:
    assert length_sorted([{"input_ids": [0]}] * 5, 2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("family", TEXTS)
def test_the_limit_is_what_the_encoder_has_positions_for(family: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = NO_LIMIT * 10
    model = tiny_model(family)
    config = model.config.backbone

    limit = token_limit(tokenizer, config)

    assert limit == POSITIONS - RESERVED.get(config.model_type, 0)
    model(input_ids=torch.full((1, limit), 7))  # fits
    if family in RELATIVE:
        return
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))


@pytest.mark.parametrize("family", IMAGES)
def test_an_encoder_of_images_has_no_limit_of_tokens(family: str) -> None:
    with pytest.raises(InvalidInput, match=f"a {family} encoder reads images, not texts"):
        token_limit(tiny_tokenizer(), encoder_config(family))


def test_images_are_stacked_with_their_labels() -> None:
    images = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    rows = [{"pixel_values": images[0], "labels": 4}, {"pixel_values": images[1].numpy(), "labels": 1}]
    batch = collate(rows, None)
    assert torch.equal(batch["pixel_values"], images)
    assert batch["labels"].tolist() == [4, 1]
    assert length_sorted(rows, 1) == [[0], [1]]


def test_the_limit_is_the_tokenizers_where_that_is_lower() -> None:
    tokenizer = tiny_tokenizer()
    assert token_limit(tokenizer, encoder_config()) == 32
    tokenizer.model_max_length = 1000
    assert token_limit(tokenizer, encoder_config()) == POSITIONS


def test_encode_cuts_texts_and_pairs_to_the_limit() -> None:
    tokenizer = tiny_tokenizer()
    long = "the cat sat on the mat and the dog ran"
    single, pair = encode(tokenizer, [long, (long, "a dog")], max_length=8)
    assert tokenizer.decode(single["input_ids"]) == "[CLS] the cat sat on the mat [SEP]"
    assert tokenizer.decode(pair["input_ids"]) == "[CLS] the cat sat [SEP] a dog [SEP]"
    assert pair["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]


class SlowTokenizer:
    """A tokenizer in Python: it keeps nothing of what it cuts."""

    def __call__(self, texts: list[str] | str, pair: Any = None, **how: Any) -> BatchEncoding:
        encoded = tiny_tokenizer()(texts, pair, **how)
        return BatchEncoding(dict(encoded))


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), SlowTokenizer()], ids=["fast", "slow"])
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["the cat sat on the mat", "a dog"], []),  # 6 words and two special tokens: just so
        (["the cat sat on the mat", "the cat sat on the mat ran"], ["1 of 2 texts was cut to 8 tokens"]),
        (["the cat sat on the mat", "the cat sat on the mat ran"] * 20, ["20 of 40 texts were cut to 8 tokens"]),
        (
            [("the cat sat", "a dog"), ("the cat sat on", "a dog"), *["a dog ran " * 9] * 2],
            ["3 of 4 texts were cut to 8 tokens"],
        ),
        ([("a dog", "the cat sat on the mat")], ["1 of 1 text was cut to 8 tokens"]),
        ([("a dog", "ran on the")], []),
    ],
)
def test_encode_logs_how_many_texts_it_cut(
    caplog: pytest.LogCaptureFixture, tokenizer: Any, texts: list[Any], message: list[str]
) -> None:
    encode(tokenizer, texts, max_length=8)
    assert caplog.messages == message


def test_several_calls_are_counted_for_one_message(caplog: pytest.LogCaptureFixture) -> None:
    cuts = Cuts()
    for _ in range(2):
        with cuts.counted():
            encode(tiny_tokenizer(), ["the cat sat on the mat ran", "a"], max_length=8)
    assert caplog.messages == []
    cuts.log()
    assert caplog.messages == ["2 of 4 texts were cut to 8 tokens"]


def test_encode_keeps_the_order_of_texts_and_pairs_mixed() -> None:
    tokenizer = tiny_tokenizer()
    mixed = [("a", "cat"), "dog", ["the", "mat"], "tree", ""]
    decoded = [tokenizer.decode(row["input_ids"]) for row in encode(tokenizer, mixed, max_length=8)]
    assert decoded == [
        "[CLS] a [SEP] cat [SEP]",
        "[CLS] dog [SEP]",
        "[CLS] the [SEP] mat [SEP]",
        "[CLS] tree [SEP]",
        "[CLS] [SEP]",
    ]


def test_encode_does_not_pad() -> None:
    rows = encode(tiny_tokenizer(), ["a", "a dog ran"], max_length=8)
    assert [len(row["input_ids"]) for row in rows] == [3, 5]
    assert all(set(row["attention_mask"]) == {1} for row in rows)


def test_encode_of_nothing_is_nothing() -> None:
    assert encode(tiny_tokenizer(), [], max_length=8) == []


@pytest.mark.parametrize("length", [5, 8, 64])
def test_encode_returns_what_the_tokenizer_returns_whatever_state_it_is_in(length: int) -> None:
    tokenizer, other = tiny_tokenizer(), tiny_tokenizer()
    tokenizer.truncation_side = other.truncation_side = "left"
    mixed = ["the cat sat on the mat", "[CLS] a dog", ("the cat sat on", "a dog ran on the mat"), ""]
    for names in (["input_ids", "token_type_ids", "attention_mask"], ["attention_mask", "input_ids"], ["input_ids"]):
        tokenizer.model_input_names = other.model_input_names = names
        tokenizer.backend_tokenizer.enable_padding(length=20)
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.encode_special_tokens = True
        parts = [(text,) if isinstance(text, str) else text for text in mixed]
        expected = [dict(other(*part, truncation=True, max_length=length)) for part in parts]
        assert encode(tokenizer, mixed, max_length=length) == expected
        assert encode(tokenizer, mixed * 8, max_length=length) == expected * 8


def test_encode_calls_a_tokenizer_of_its_own_kind() -> None:
    class Shouted(PreTrainedTokenizerFast):
        def __call__(self, text: list[str], *pair: Any, **how: Any) -> BatchEncoding:
            return super().__call__([each.lower() for each in text], *pair, **how)

    tokenizer = Shouted(tokenizer_object=tiny_tokenizer().backend_tokenizer, unk_token="[UNK]")
    (row,), (expected,) = encode(tokenizer, ["THE CAT"], 8), encode(tiny_tokenizer(), ["the cat"], 8)
    assert row["input_ids"] == expected["input_ids"]
