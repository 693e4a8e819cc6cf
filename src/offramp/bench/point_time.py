"""Measure texts at an operating point, to compare with what a cost table expects of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from offramp.bench.timer import time_interleaved
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.rows import Text
from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.types.cost_table import CostTable
from offramp.types.point_times import PointTimes


def time_point(predictor: Predictor, texts: Sequence[Text], table: CostTable, *, rounds: int = 5) -> PointTimes:
    """Run texts at a predictor's point, and at full depth, on this machine, which should do nothing else meanwhile.

    The runs take turns, round by round. Batches are those of the cost table: of its size, texts of similar length
    together.

    Args:
        predictor: with an operating point and one worker, so that one batch runs at a time, as for the table.
        texts: best those that were timed for the table.
        table: of the predictor's engine, at all its exits.
        rounds: that count.

    Raises:
        InvalidInput: no texts, no point, or several workers.
    """
    engine, point, size = predictor.engine, predictor.point, table.batch_size
    if point is None or predictor.workers != 1 or not texts:
        workers = f"{predictor.workers} workers"
        raise InvalidInput(f"timing a point takes a point, one worker and texts, got {point}, {workers}, {len(texts)}")
    limit, pad = token_limit(predictor.tokenizer, engine.config.backbone), engine.config.pad_token_id
    rows = encode(predictor.tokenizer, texts, limit)
    batches = [collate([rows[number] for number in numbers], pad) for numbers in length_sorted(rows, size)]
    never = replace(point, thresholds=(math.inf,) * len(point.thresholds))
    runs: dict[str, Callable[[int], object]] = {
        "full": lambda _: [engine.answer(batch, never) for batch in batches],
        "batches": lambda _: [engine.answer(batch, point) for batch in batches],
        "call": lambda _: predictor(texts, size),
        "tokenizer": lambda _: [encode(predictor.tokenizer, [text], limit) for text in texts],
    }
    exits = [engine.answer(batch, point).exit_layers for batch in batches]
    read = table.select(point.layers_read(engine.layers))
    seconds = time_interleaved(runs, rounds)
    ms = {name: tuple(1000 * duration / len(texts) for duration in times) for name, times in seconds.items()}
    left = torch.cat(exits)
    rows_a_layer, tokens_a_layer = _work(exits, [batch["attention_mask"].sum(dim=-1) for batch in batches])
    return PointTimes(
        texts=len(texts),
        batch_size=size,
        mean_exit=left.double().mean().item(),
        rows_a_layer=rows_a_layer,
        tokens_a_layer=tokens_a_layer,
        tokens=table.tokens,
        expected=read.mean_ms(left),
        expected_full=read.ms[-1],
        full=ms["full"],
        batches=ms["batches"],
        call=ms["call"],
        tokenizer=ms["tokenizer"],
    )


def _work(exits: Sequence[Tensor], tokens: Sequence[Tensor]) -> tuple[float, float] | tuple[None, None]:
    """Return the mean rows of a batch on which a layer ran, and the mean tokens of a row, from (B,) of each batch."""
    runs = sum(int(layers.max()) for layers in exits)
    rows = sum(int(layers.sum()) for layers in exits)
    if not runs:
        return None, None
    weighted = sum(int((layers * lengths).sum()) for layers, lengths in zip(exits, tokens, strict=True))
    return rows / runs, weighted / rows
