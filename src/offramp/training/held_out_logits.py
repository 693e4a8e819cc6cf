"""Logits of the lexical exit on rows that it was not fitted on: what is fitted on its own rows trusts it too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel
from offramp.training.lexical import fit_lexical

BATCH = 256


@torch.no_grad()
def held_out_logits(
    model: MultiExitModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, held_out: Examples
) -> Tensor:
    """Fit the lexical exit anew without some rows, and return its logits of these, (K, C).

    Args:
        model: with a lexical exit, which is changed in place: the model is not to be saved.
        tokenizer: the encoder's.
        examples: the rows that fitted the exit.
        held_out: K of them; rows with their texts fit nothing.

    Raises:
        InvalidInput: no other rows.
    """
    texts = set(held_out.texts)
    others = [row for row, text in enumerate(examples.texts) if text not in texts]
    if model.lexical_exit is None or not others:
        raise InvalidInput("no rows are left to fit the lexical exit on")
    labels: Any = [examples.labels[row] for row in others]
    fit_lexical(
        model, tokenizer, replace(examples, texts=[examples.texts[row] for row in others], labels=labels, rows=None)
    )
    rows = encode(tokenizer, held_out.texts, token_limit(tokenizer, model.config.backbone))
    logits, lexical = torch.empty(len(rows), model.config.num_labels), model.lexical_exit.cpu()
    for numbers in length_sorted(rows, BATCH):
        batch = collate([rows[number] for number in numbers], model.config.pad_token_id)
        logits[numbers] = lexical(batch["input_ids"], batch["attention_mask"])
    return logits
