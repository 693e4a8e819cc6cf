"""Logits of the lexical exit on rows that were held out of its fit."""

import copy

import pytest
import torch

from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.model.lexical.config import LexicalExit
from offramp.training.held_out_logits import held_out_logits
from offramp.training.lexical import fit_lexical
from offramp.types.problem_types import SINGLE_LABEL
from support.models import padded, texts, tiny_model, tiny_tokenizer


def test_the_rows_that_are_held_out_fit_nothing() -> None:
    model, tokenizer = tiny_model(lexical=LexicalExit()), tiny_tokenizer()
    every = [*dict.fromkeys(texts(60))]
    labels = [number % 3 for number in range(len(every))]
    own, other = copy.deepcopy(model), copy.deepcopy(model)
    examples, held_out, others = (
        Examples(chosen, numbers, ("x", "y", "z"), SINGLE_LABEL)
        for chosen, numbers in (
            ([*every, every[0]], [*labels, labels[0]]),
            (every[:6], labels[:6]),
            (every[6:], labels[6:]),
        )
    )

    logits = held_out_logits(own, tokenizer, examples, held_out)

    fit_lexical(other, tokenizer, others)  # without the text that comes twice
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in every[:6]]
    expected = torch.cat([other.lexical(padded(other, [row])).logits for row in rows])
    assert torch.equal(logits, expected)
    assert logits.abs().sum() > 0
    with pytest.raises(InvalidInput, match="no rows are left"):
        held_out_logits(own, tokenizer, held_out, held_out)
