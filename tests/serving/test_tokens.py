"""Texts of requests become the tokens that transformers' tokenizer makes, or a fault of their own."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from transformers import DistilBertTokenizer

from offramp.data.file_tokenizer import FileTokenizer
from offramp.inference.inputs import encode_texts
from offramp.serving.request import Options, TokenIds
from offramp.serving.tokens import RequestTokenizer
from support.graphs import gated
from support.models import SPECIAL, WORDS, texts, tiny_tokenizer

LIMIT = 8
LONG = " ".join(WORDS[:12])  # 14 tokens with [CLS] and [SEP]
FITS = " ".join(WORDS[:6])  # just LIMIT tokens
PAIR = (LONG, "a dog")


@pytest.fixture(scope="module", params=["file", "transformers"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RequestTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    kept: Any = FileTokenizer.read(folder) if request.param == "file" else tiny_tokenizer()
    assert kept is not None
    return RequestTokenizer(str(folder), gated().config, kept, LIMIT, True)


def ids(tokenizer: RequestTokenizer, item: Any, **options: Any) -> list[int]:
    rows, faults = tokenizer.encode([item], Options(**options))
    assert not faults
    assert rows[0]["attention_mask"] == [1] * len(rows[0]["input_ids"])
    return rows[0]["input_ids"]


def fault(tokenizer: RequestTokenizer, item: Any, **options: Any) -> tuple[str, str]:
    rows, faults = tokenizer.encode([item], Options(**options))
    assert not rows
    return faults[0].kind, str(faults[0])


def of_transformers(item: Any, limit: int, side: str = "right") -> list[int]:
    own = tiny_tokenizer()
    own.truncation_side = side
    parts = (item,) if isinstance(item, str) else item
    found: list[int] = own(*parts, truncation="longest_first", max_length=limit)["input_ids"]
    return found


@pytest.mark.parametrize("side", [None, "right", "left"])
@pytest.mark.parametrize("item", [LONG, FITS, PAIR, ("a", LONG), "the [MASK] cat"], ids=str)
def test_tokens_are_those_of_transformers_on_either_side(
    tokenizer: RequestTokenizer, item: Any, side: str | None
) -> None:
    assert ids(tokenizer, item, truncation_side=side) == of_transformers(item, LIMIT, side or "right")
    assert ids(tokenizer, item, truncation_side=side, max_tokens=5) == of_transformers(item, 5, side or "right")
    assert ids(tokenizer, item, max_tokens=500) == of_transformers(item, LIMIT)  # the side before is forgotten


def test_tokens_are_the_predictors(tokenizer: RequestTokenizer) -> None:
    items = [*texts(20), PAIR, LONG]
    rows, faults = tokenizer.encode(items, Options())
    expected, _ = encode_texts(tiny_tokenizer(), items, LIMIT, 40)
    assert not faults
    assert {number: dict(row) for number, row in rows.items()} == {n: dict(row) for n, row in expected.items()}


def test_a_text_that_is_not_to_be_cut_is_refused_and_one_that_just_fits_is_not(tokenizer: RequestTokenizer) -> None:
    rows, faults = tokenizer.encode([LONG, FITS, "a cat", PAIR, TokenIds([7] * 9)], Options(truncate=False))
    assert (list(rows), list(faults)) == ([1, 2], [0, 3, 4])
    assert {(one.kind, str(one)) for one in faults.values()} == {
        ("validation", f"a text has more than {LIMIT} tokens, and is not to be truncated")
    }
    strict = RequestTokenizer(tokenizer.folder, tokenizer.config, tokenizer.tokenizer, LIMIT, auto_truncate=False)
    assert fault(strict, LONG)[0] == "validation"
    assert fault(strict, FITS, max_tokens=4) == (
        "validation",
        "a text has more than 4 tokens, and is not to be truncated",
    )
    assert len(ids(strict, LONG, truncate=True)) == LIMIT
    assert len(ids(strict, FITS)) == LIMIT


def test_token_ids_are_taken_as_they_are(tokenizer: RequestTokenizer) -> None:
    rows, faults = tokenizer.encode([TokenIds([2, 7, 3]), "a cat", TokenIds([39] * 12)], Options())
    assert not faults
    assert [rows[number]["input_ids"] for number in (0, 2)] == [[2, 7, 3], [39] * LIMIT]
    assert set(rows[0]) == set(rows[1])  # so that they make one batch
    assert rows[0]["token_type_ids"] == [0, 0, 0]
    assert fault(tokenizer, TokenIds([])) == ("empty", "the list of token ids is empty")
    for wrong in (-1, 40, 10**12):
        assert fault(tokenizer, TokenIds([7, wrong])) == (
            "validation",
            f"there is no token {wrong}: the model has 40, from 0",
        )


def test_token_ids_have_the_inputs_that_texts_have() -> None:
    """DistilBERT has no types, and a tokenizer may make no mask."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    for names in (["input_ids", "attention_mask"], ["input_ids"]):
        own = DistilBertTokenizer(vocab=vocabulary, model_max_length=32, model_input_names=names)
        own.model_input_names = names
        rows, _ = RequestTokenizer("", gated().config, own, LIMIT, True).encode([TokenIds([7]), "a cat"], Options())
        assert set(rows[0]) == set(rows[1]) == set(names)


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        ("", "empty", "the text is blank"),
        (" \t\n\u2003", "empty", "the text is blank"),
        (("a cat", " "), "empty", "one text of the pair is blank"),
        ("a \ud83d cat", "validation", "not a Unicode text: half of a character (a lone surrogate) at position 2"),
        ("\u200b", "validation", "the text has no tokens"),
    ],
    ids=["empty", "blank", "half a pair", "surrogate", "no tokens"],
)
def test_a_text_that_no_model_takes_has_a_fault_of_its_own(
    tokenizer: RequestTokenizer, item: Any, kind: str, message: str
) -> None:
    rows, faults = tokenizer.encode(["the cat", item, "a dog"], Options())
    assert list(rows) == [0, 2]
    assert (faults[1].kind, str(faults[1])) == (kind, message)


@pytest.mark.parametrize("limit", [1, 2])
def test_no_room_for_a_token_is_a_fault_and_no_error(tokenizer: RequestTokenizer, limit: int) -> None:
    kind, message = fault(tokenizer, LONG, max_tokens=limit)
    assert kind == "validation"
    assert "\n" not in message


def test_a_copy_in_another_thread_changes_nothing_here(tokenizer: RequestTokenizer) -> None:
    other, wrong = tokenizer.copy(), list[Any]()
    expected = {side: of_transformers(LONG, LIMIT, side) for side in ("left", "right")}

    def work(one: RequestTokenizer, side: str) -> None:
        for _ in range(200):
            if (found := ids(one, LONG, truncation_side=side)) != expected[side]:
                wrong.append(found)

    thread = threading.Thread(target=work, args=(other, "left"))
    thread.start()
    work(tokenizer, "right")
    thread.join()
    assert wrong == []
