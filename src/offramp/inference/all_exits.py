"""Run every exit on all rows, in one process or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from offramp.data.batching import collate, length_sorted
from offramp.inference.engine import Engine
from offramp.inference.workers import WorkerPool, shared


def all_exits(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    workers: int,
    group: distributed.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return logits (L, N, C) and certainty (L, N), in the order of the rows.

    Args:
        engine: runs the model.
        rows: N inputs of the model.
        batch_size: rows at once.
        workers: that compute batches at the same time.
        group: processes that share the batches, which are those of one process; each returns the outputs of all rows.
    """
    config = engine.config
    logits = torch.empty(len(engine.layers), len(rows), config.num_labels)
    certainty = torch.empty(logits.shape[:2]) if config.certainty else None

    def run(numbers: list[int]) -> None:
        out = engine.all_exits(collate([rows[number] for number in numbers], config.pad_token_id))
        logits[:, numbers] = out.logits
        if certainty is not None and out.certainty is not None:
            certainty[:, numbers] = out.certainty

    batches = shared(length_sorted(rows, batch_size), [len(row.get("input_ids", ())) for row in rows], workers)
    own = batches if group is None else batches[group.rank() :: group.size()]
    WorkerPool(workers).map(run, tqdm(own, desc="record", unit="batch", disable=None, leave=False))
    if group is not None:
        numbers = [number for batch in own for number in batch]
        for outputs in (logits,) if certainty is None else (logits, certainty):
            _exchange(outputs, numbers, group)
    return logits, certainty


def _exchange(outputs: Tensor, numbers: list[int], group: distributed.ProcessGroup) -> None:
    """Fill in the rows of outputs (L, N, ...) that other processes have; `numbers` are this one's."""
    parts: list[Any] = [None] * group.size()
    distributed.all_gather_object(parts, (numbers, outputs[:, numbers]), group=group)
    for others, values in parts:
        outputs[:, others] = values
