"""Texts -> padded batches -> logits, for contestants without `Predictor`.

Tokenizer, padding and workers are the predictor's. The logits are the answer: no labels, no dicts are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from offramp.bench.contestant import Contestant, Kind, TextAnswers, TextRun
from offramp.data.batching import Tokens, collate, encode, length_sorted, token_limit
from offramp.data.padding import Array
from offramp.data.rows import Text
from offramp.inference.workers import WorkerPool, shared
from offramp.model.config import MultiExitConfig

Batch = dict[str, Array]
"""`input_ids`, `attention_mask` and, where the encoder has them, `token_type_ids`, (B, T) int64 each."""
BatchRun = Callable[[Batch], Array]
"""Batch -> logits (B, C) float32; called by as many threads at once as it was loaded for workers."""


@dataclass(frozen=True)
class TextEncoder:
    """Texts -> tokens -> batches.

    Attributes:
        tokenizer: the model's.
        config: the model's.
    """

    tokenizer: PreTrainedTokenizerBase
    config: MultiExitConfig

    def encode(self, texts: Sequence[Text]) -> list[Tokens]:
        """Tokenize texts and pairs, cut to what the encoder takes."""
        return encode(self.tokenizer, texts, token_limit(self.tokenizer, self.config.backbone))

    def batch(self, rows: Sequence[Tokens]) -> Batch:
        """Pad rows on the right; token types are zeros where the tokenizer returns none."""
        batch = {name: values.numpy() for name, values in collate(rows, self.config.pad_token_id).items()}
        if getattr(self.config.backbone, "type_vocab_size", 0) > 1:
            return {"token_type_ids": np.zeros_like(batch["input_ids"]), **batch}
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


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


def answer_rows(
    encoder: TextEncoder, rows: Sequence[Tokens], run: BatchRun, batch_size: int, pool: WorkerPool
) -> Array:
    """Return the logits (N, C) of rows, in their order; rows of similar length make a batch, longest first.

    Workers share the batches as in `Predictor`.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    batches = shared(length_sorted(rows, batch_size), lengths, pool.workers)
    answered = pool.map(lambda numbers: run(encoder.batch([rows[number] for number in numbers])), batches)
    logits = np.empty((len(rows), answered[0].shape[-1]), np.float32)
    for numbers, values in zip(batches, answered, strict=True):
        logits[numbers] = values
    return logits
