"""Texts -> token rows -> padded batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from offramp.data.rows import Text
from offramp.errors import InvalidInput

Tokens = dict[str, list[int]]
"""One text as the tokenizer returns it: `input_ids`, `attention_mask`, perhaps `token_type_ids`."""

log = logging.getLogger("offramp")

COUNTED_FROM_PAD = ("roberta", "xlm-roberta", "camembert")
"""Families that count positions from pad_token_id + 1."""
NO_LIMIT = 10**9  # tokenizers without a limit have 10^30


def token_limit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Return how many tokens a text may have: the least of the tokenizer's limit and the encoder's positions.

    Args:
        tokenizer: its `model_max_length` counts if it has one.
        config: the encoder's.

    Raises:
        InvalidInput: an encoder of images.
    """
    if not hasattr(config, "max_position_embeddings"):
        raise InvalidInput(f"a {config.model_type} encoder reads images, not texts")
    # MPNet counts positions from 2, whatever its pad token is
    reserved = config.pad_token_id + 1 if config.model_type in COUNTED_FROM_PAD else 0
    reserved = 2 if config.model_type == "mpnet" else reserved
    positions: int = config.max_position_embeddings - reserved
    return positions if tokenizer.model_max_length > NO_LIMIT else min(positions, tokenizer.model_max_length)


@dataclass
class Cuts:
    """Counts the texts that are cut, for one message on several calls of `encode`.

    Attributes:
        limit: of tokens.
        cut: texts that had more tokens, or pairs.
        texts: all texts.
    """

    limit: int = 0
    cut: int = 0
    texts: int = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count here, in this thread, what `encode` would log itself."""
        token = _COUNTING.set(self)
        try:
            yield
        finally:
            _COUNTING.reset(token)

    def add(self, cut: int, texts: int, limit: int) -> None:
        """Add the counts of one call."""
        self.limit, self.cut, self.texts = limit, self.cut + cut, self.texts + texts

    def log(self) -> None:
        """Log how many texts were cut, if any was."""
        if self.cut:
            verb = "text was" if self.texts == 1 else "texts was" if self.cut == 1 else "texts were"
            log.warning("%d of %d %s cut to %d tokens", self.cut, self.texts, verb, self.limit)


_COUNTING: ContextVar[Cuts | None] = ContextVar("offramp_cuts", default=None)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer that has ids beyond the encoder's embedding; fewer tokens than rows are fine.

    Args:
        tokenizer: of the model's texts.
        config: the encoder's.

    Raises:
        InvalidInput: tokens without a row.
    """
    rows: int = config.vocab_size
    known = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    if known > rows:
        raise InvalidInput(
            f"the tokenizer has {known} tokens, the encoder's embedding has {rows} rows: take the tokenizer of this"
            f" encoder, or add rows before training (model.resize_token_embeddings({known}))"
        )


def check_token_ids(ids: Tensor, rows: int) -> None:
    """Refuse token ids without a row in the embedding; only on the CPU, since a GPU would have to wait.

    Raises:
        InvalidInput: an id below 0 or beyond the last row.
    """
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    for extreme in torch.aminmax(ids):
        if not 0 <= extreme < rows:
            raise InvalidInput(f"there is no token {int(extreme)}: the encoder's embedding has {rows} rows, from 0")


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int) -> list[Tokens]:
    """Tokenize texts and pairs, each cut to `max_length` tokens, unpadded; log how many were cut (see `Cuts`)."""
    if not texts:
        return []
    firsts = [text if isinstance(text, str) else text[0] for text in texts]
    seconds = [None if isinstance(text, str) else text[1] for text in texts]
    rows: list[Tokens] = [{} for _ in texts]
    cut = 0
    for paired in (False, True):  # a tokenizer takes either texts or pairs
        chosen = [number for number, second in enumerate(seconds) if (second is not None) == paired]
        if not chosen:
            continue
        pair = [seconds[number] for number in chosen] if paired else None
        encoded = tokenizer([firsts[number] for number in chosen], pair, truncation=True, max_length=max_length)
        for index, number in enumerate(chosen):
            rows[number] = {name: values[index] for name, values in encoded.items()}
            if len(rows[number]["input_ids"]) >= max_length:  # the others are whole
                cut += _is_cut(tokenizer, encoded, index, texts[number], max_length)
    active = _COUNTING.get()
    cuts = Cuts() if active is None else active
    cuts.add(cut, len(texts), max_length)
    if active is None:
        cuts.log()
    return rows


def _is_cut(
    tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, index: int, text: Text, max_length: int
) -> bool:
    """Return whether a text of `max_length` tokens had more: a tokenizer in Rust keeps those, else it is run again."""
    if encoded.encodings is not None:
        return bool(encoded.encodings[index].overflowing)
    pair = () if isinstance(text, str) else (text[1],)
    return len(tokenizer(text if isinstance(text, str) else text[0], *pair, verbose=False)["input_ids"]) > max_length


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int | None) -> dict[str, Tensor]:
    """Pad token rows on the right to the longest of them, stack images; `labels` become one tensor.

    Args:
        rows: tokens, or images of one size under "pixel_values"; each perhaps with a number or a list under "labels".
        pad_token_id: fills `input_ids`; everything else is filled with 0. The mask hides it, so where the
            configuration has none (None, or -1) it is 0. Images need none.
    """
    if "pixel_values" in rows[0]:
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        if name == "labels":
            batch[name] = torch.as_tensor([row[name] for row in rows])
            continue
        filler = max(pad_token_id or 0, 0) if name == "input_ids" else 0
        padded = [[*row[name], *[filler] * (longest - len(row[name]))] for row in rows]
        batch[name] = torch.tensor(padded, dtype=torch.long)
    if "attention_mask" not in batch:
        real = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        batch["attention_mask"] = torch.tensor(real)
    return batch


def length_sorted(rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[list[int]]:
    """Return row numbers in batches of similar length, longest first: little padding, and memory peaks at the start.

    Images, which have no length, keep their order.
    """
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].get("input_ids", ())))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
