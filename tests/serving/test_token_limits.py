"""Bounds of tokens that a request sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from offramp.data.file_tokenizer import FileTokenizer
from offramp.serving.request import Item, Options, TokenIds
from offramp.serving.tokens import RequestTokenizer
from support.models import tiny_tokenizer
from support.served import served_model


@pytest.fixture(scope="module", params=["transformers", "file"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RequestTokenizer:
    inner: Any = tiny_tokenizer()
    if request.param == "file":
        folder = tmp_path_factory.mktemp("tokenizer")
        inner.save_pretrained(folder)
        inner = FileTokenizer.read(folder)
    return RequestTokenizer("", served_model().config, inner, 32, True)


@pytest.mark.parametrize("item", ["a cat sat", ("a cat", "a dog")])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_bound_below_the_special_tokens_refuses_the_text(tokenizer: RequestTokenizer, item: Item, limit: int) -> None:
    rows, faults = tokenizer.encode([item], Options(truncate=True, max_tokens=limit))
    assert not rows
    assert faults[0].kind == "validation"


@pytest.mark.parametrize(("side", "expected"), [(None, [2, 6, 7]), ("right", [2, 6, 7]), ("left", [7, 8, 3])])
def test_token_ids_are_cut_on_the_side_that_is_asked_for(
    tokenizer: RequestTokenizer, side: Any, expected: Sequence[int]
) -> None:
    options = Options(truncate=True, max_tokens=3, truncation_side=side)
    rows, _ = tokenizer.encode([TokenIds([2, 6, 7, 8, 3])], options)
    assert rows[0]["input_ids"] == expected
