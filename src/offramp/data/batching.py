"""Texts -> token rows -> padded batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.data.file_tokenizer import FileTokenizer
from offramp.data.padding import padded
from offramp.data.rows import Text
from offramp.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Tokens = dict[str, list[int]]
"""One text as the tokenizer returns it: `input_ids`, `attention_mask`, perhaps `token_type_ids`."""

log = logging.getLogger("offramp")

COUNTED_FROM_PAD = ("roberta", "xlm-roberta", "camembert")
"""Families that count positions from pad_token_id + 1."""
NO_LIMIT = 10**9  # tokenizers without a limit have 10^30
MANY = 32  # texts; fewer are encoded one by one, since waking up the threads of `tokenizers` takes longer
LONGEST_FIRST = "longest_first"  # of a pair the longer text is cut first, as transformers does


def token_limit(tokenizer: PreTrainedTokenizerBase | FileTokenizer, config: PreTrainedConfig) -> int:
    """Return how many tokens a text may have: the least of the tokenizer's limit and the encoder's positions.

    Args:
        tokenizer: its `model_max_length` counts if it has one.
        config: the encoder's.

    Raises:
        InvalidInput: an encoder of images.
    """
    positions, longest = position_limit(config), tokenizer.model_max_length
    return positions if longest > NO_LIMIT else min(positions, int(longest))


def position_limit(config: PreTrainedConfig) -> int:
    """Return how many tokens an encoder has positions for.

    Raises:
        InvalidInput: an encoder of images.
    """
    if not hasattr(config, "max_position_embeddings"):
        raise InvalidInput(f"a {config.model_type} encoder reads images, not texts")
    # MPNet counts positions from 2, whatever its pad token is
    family = config.model_type
    reserved = config.pad_token_id + 1 if family in COUNTED_FROM_PAD else 2 if family == "mpnet" else 0
    positions: int = config.max_position_embeddings - reserved
    return positions


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
        """Log how many texts were cut, if any was; within another count it is added there."""
        outer = _COUNTING.get()
        if outer is not None:
            outer.add(self.cut, self.texts, self.limit)
        elif self.cut:
            verb = "text was" if self.texts == 1 else "texts was" if self.cut == 1 else "texts were"
            log.warning("%d of %d %s cut to %d tokens", self.cut, self.texts, verb, self.limit)


_COUNTING: ContextVar[Cuts | None] = ContextVar("offramp_cuts", default=None)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase | FileTokenizer, config: PreTrainedConfig) -> None:
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


def refuse_unknown_ids(least: int, most: int, rows: int) -> None:
    """Refuse token ids, from the least to the most of a batch, without a row in the embedding.

    Raises:
        InvalidInput: an id below 0 or beyond the last row.
    """
    for extreme in (least, most):
        if not 0 <= extreme < rows:
            raise InvalidInput(f"there is no token {extreme}: the encoder's embedding has {rows} rows, from 0")


def encode(tokenizer: PreTrainedTokenizerBase | FileTokenizer, texts: Sequence[Text], max_length: int) -> list[Tokens]:
    """Tokenize texts and pairs, each cut to `max_length` tokens, unpadded; log how many were cut (see `Cuts`)."""
    if not texts:
        return []
    run = _encode_in_rust if _runs_in_rust(tokenizer) else _encode_in_python
    rows, cut = run(tokenizer, texts, max_length)
    active = _COUNTING.get()
    cuts = Cuts() if active is None else active
    cuts.add(cut, len(texts), max_length)
    if active is None:
        cuts.log()
    return rows


def _runs_in_rust(tokenizer: PreTrainedTokenizerBase | FileTokenizer) -> bool:
    """Return whether the `tokenizers` library does all that calling a tokenizer does."""
    kind = type(tokenizer)
    if kind is FileTokenizer:
        return True
    from transformers import PreTrainedTokenizerFast

    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
        and not hasattr(kind, "_switch_to_input_mode")
    )


def _encode_in_rust(
    tokenizer: PreTrainedTokenizerBase | FileTokenizer, texts: Sequence[Text], max_length: int
) -> tuple[list[Tokens], int]:
    """Return tokens, and how many texts were cut; half the time of calling the tokenizer with one text."""
    backend, special = tokenizer.backend_tokenizer, tokenizer.split_special_tokens
    target: dict[str, Any] = {
        "max_length": max_length,
        "stride": 0,
        "strategy": LONGEST_FIRST,
        "direction": tokenizer.truncation_side,
    }
    if backend.truncation != target:
        backend.enable_truncation(**target)
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != special:
        backend.encode_special_tokens = special
    named = tokenizer.model_input_names
    types, mask = "token_type_ids" in named, "attention_mask" in named
    items = [(text, None) if isinstance(text, str) else tuple(text) for text in texts]
    if len(items) < MANY:
        encodings = [backend.encode(*item) for item in items]
    else:
        encodings = backend.encode_batch_fast([item[0] if item[1] is None else item for item in items])
    rows: list[Tokens] = []
    cut = 0
    for encoding in encodings:
        row = {"input_ids": encoding.ids}
        if types:
            row["token_type_ids"] = encoding.type_ids
        if mask:
            row["attention_mask"] = encoding.attention_mask
        cut += len(row["input_ids"]) >= max_length and bool(encoding.overflowing)
        rows.append(row)
    return rows, cut


def _encode_in_python(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> tuple[list[Tokens], int]:
    """Return tokens, and how many texts were cut: a tokenizer keeps nothing of these, so it is run again on them."""
    rows: list[Tokens] = [{} for _ in texts]
    cut = 0
    for paired in (False, True):  # a tokenizer takes either texts or pairs
        chosen = [number for number, text in enumerate(texts) if isinstance(text, str) != paired]
        if not chosen:
            continue
        parts = [(texts[number],) if isinstance(texts[number], str) else tuple(texts[number]) for number in chosen]
        sides = [list(side) for side in zip(*parts, strict=True)]
        encoded = tokenizer(*sides, truncation=True, max_length=max_length)
        for index, number in enumerate(chosen):
            rows[number] = {name: values[index] for name, values in encoded.items()}
            if len(rows[number]["input_ids"]) >= max_length:  # the others are whole
                cut += len(tokenizer(*parts[index], verbose=False)["input_ids"]) > max_length
    return rows, cut


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int | None) -> dict[str, Tensor]:
    """Pad token rows on the right to the longest of them, stack images; `labels` become one tensor.

    Args:
        rows: tokens, or images of one size under "pixel_values"; each perhaps with a number or a list under "labels".
        pad_token_id: fills `input_ids`; everything else is filled with 0. The mask hides it, so where the
            configuration has none (None, or -1) it is 0. Images need none.
    """
    import torch  # an exported graph needs none

    if "pixel_values" in rows[0]:
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    tokens = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    batch = {name: torch.from_numpy(value) for name, value in padded(tokens, pad_token_id).items()}
    if "labels" in rows[0]:
        batch["labels"] = torch.as_tensor([row["labels"] for row in rows])
    return batch


def length_sorted(rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[list[int]]:
    """Return row numbers in batches of similar length, longest first: little padding, and memory peaks at the start.

    Images, which have no length, keep their order.
    """
    lengths = [-len(row.get("input_ids", ())) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
