"""Texts -> padded batches -> logits, for contestants without `Predictor`: the tokenizer in Rust, numpy, workers.

The tokenizer library is called directly, and the logits are the answer: neither labels nor dicts are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from offramp.bench.contestant import Contestant, Kind, TextAnswers, TextRun
from offramp.data.batching import encode, token_limit
from offramp.data.rows import Text
from offramp.inference.workers import WorkerPool, shared

Array = np.ndarray[Any, Any]
Batch = dict[str, Array]
"""`input_ids`, `attention_mask` and, where the encoder has them, `token_type_ids`, (B, T) int64 each."""
BatchRun = Callable[[Batch], Array]
"""Batch -> logits (B, C) float32; called by as many threads at once as it was loaded for workers."""


@dataclass(frozen=True)
class Row:
    """A text's tokens; `types` is None for zeros."""

    ids: Sequence[int]
    types: Sequence[int] | None = None


@dataclass(frozen=True)
class TextEncoder:
    """Texts -> tokens -> batches.

    Attributes:
        tokenizer: the model's.
        fast: the same in Rust, set up; None where the tokenizer has none, or that one answers otherwise.
        limit: of tokens, to which a text is cut.
        pad: the token that fills a batch.
        typed: whether the encoder has token types.
    """

    tokenizer: PreTrainedTokenizerBase
    fast: Tokenizer | None
    limit: int
    pad: int
    typed: bool

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, pad: int | None, texts: Sequence[Text]
    ) -> TextEncoder:
        """Set up a tokenizer; `texts` are examples, on which both ways must agree."""
        limit = token_limit(tokenizer, config)
        typed = getattr(config, "type_vocab_size", 0) > 1
        slow = cls(tokenizer, None, limit, max(pad or 0, 0), typed)
        if not tokenizer.is_fast:
            return slow
        fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        fast.no_padding()
        fast.enable_truncation(limit)
        quick = cls(tokenizer, fast, limit, slow.pad, typed)
        same = [list(row.ids) for row in quick.encode(texts)] == [list(row.ids) for row in slow.encode(texts)]
        return quick if same else slow

    def encode(self, texts: Sequence[Text]) -> list[Row]:
        """Tokenize texts and pairs."""
        paired = self.typed and any(not isinstance(text, str) for text in texts)
        if self.fast is None:
            rows = encode(self.tokenizer, texts, self.limit)
            return [Row(row["input_ids"], row.get("token_type_ids") if paired else None) for row in rows]
        encoded = self.fast.encode_batch_fast(list(texts))
        return [Row(row.ids, row.type_ids if paired else None) for row in encoded]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Pad rows on the right."""
        shape = (len(rows), max(len(row.ids) for row in rows))
        ids, mask = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        types = np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            length = len(row.ids)
            ids[index, :length], mask[index, :length] = row.ids, 1
            if row.types is not None:
                types[index, :length] = row.types
        inputs = {"input_ids": ids, "attention_mask": mask}
        return {**inputs, "token_type_ids": types} if self.typed else inputs


@dataclass(frozen=True)
class PlainModel:
    """Tokens -> logits at one layer, in one runtime.

    Attributes:
        name, kind, engine: of the contestant.
        layer: at which it answers.
        load: threads and workers -> the run, as in `Contestant`.
    """

    name: str
    kind: Kind
    engine: str
    layer: int
    load: Callable[[int, int], BatchRun]

    def contestant(self, encoder: TextEncoder) -> Contestant:
        """Return the contestant that answers texts."""

        def load(threads: int, workers: int) -> TextRun:
            answer, pool = self.load(threads, workers), WorkerPool(workers)

            def run(texts: Sequence[Text], batch_size: int) -> TextAnswers:
                logits = answer_rows(encoder, encoder.encode(texts), answer, batch_size, pool)
                return TextAnswers(torch.from_numpy(logits), torch.full((len(texts),), self.layer))

            return run

        return Contestant(self.name, self.kind, self.engine, load)


def answer_rows(encoder: TextEncoder, rows: Sequence[Row], run: BatchRun, batch_size: int, pool: WorkerPool) -> Array:
    """Return the logits (N, C) of rows, in their order; rows of similar length make a batch, longest first.

    Workers share the batches as in `Predictor`.
    """
    lengths = [len(row.ids) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: -lengths[number])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = shared(batches, lengths, pool.workers)
    answered = pool.map(lambda numbers: run(encoder.batch([rows[number] for number in numbers])), batches)
    logits = np.empty((len(rows), answered[0].shape[-1]), np.float32)
    for numbers, values in zip(batches, answered, strict=True):
        logits[numbers] = values
    return logits
