"""Rows that go to a process: a batch -> its message, the answers to it -> results. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp.data.batching import Tokens
from offramp.data.padding import Array, padded
from offramp.serving.audit import AuditRow
from offramp.serving.frames import AnswersFrame, ArrayFrame, BatchFrame
from offramp.serving.request import Refusal, RowResult
from offramp.serving.running import Running
from offramp.serving.served import Served


@final
@dataclass(frozen=True, eq=False)
class BatchRow:
    """A row that waits for a process, or is with one: its request, its number there, its tokens."""

    running: Running
    number: int
    tokens: Tokens


def frame_of(rows: Sequence[BatchRow], points: Sequence[str], served: Served) -> BatchFrame:
    """Return the message of a batch whose rows run at points of these names."""
    inputs = padded([row.tokens for row in rows], served.config.pad_token_id)
    depths = [served.max_depth(row.running.request.options) for row in rows]
    plans = list(zip(points, depths, strict=True))
    by_exit = any(row.running.request.options.details for row in rows)
    return BatchFrame({name: ArrayFrame.of(value) for name, value in inputs.items()}, plans, by_exit)


def results_of(rows: Sequence[BatchRow], points: Sequence[str], answers: AnswersFrame) -> list[RowResult]:
    """Return the results of a batch's rows, which ran at points of these names."""
    logits = answers.logits.array()
    by_exit = None if answers.logits_by_exit is None else answers.logits_by_exit.array()
    results = []
    for index, row in enumerate(rows):
        tokens, layer = len(row.tokens["input_ids"]), answers.exit_layers[index]
        if index in answers.errors:
            results.append(RowResult.refused(Refusal("failed", answers.errors[index]), tokens=tokens))
            continue
        passed: dict[int, Array] = {}
        if by_exit is not None and row.running.request.options.details:
            exits = zip(answers.layers, by_exit[index], strict=True)
            passed = {number: values for number, values in exits if not np.isnan(values).any()}
        results.append(row_result(logits[index], layer, tokens, points[index], passed))
    return results


def row_result(logits: Array, layer: int, tokens: int, point: str, by_exit: Mapping[int, Array]) -> RowResult:
    """Return the result of a row; logits that are not finite are no answer."""
    if not np.isfinite(logits).all():
        return RowResult.refused(Refusal("failed", "the model's logits are not finite"), layer, tokens)
    return RowResult(logits, layer, tokens, logits_by_exit=dict(by_exit), point=point)


def audit_frames(row: AuditRow, points: Sequence[str], served: Served, by_exit: bool) -> list[BatchFrame]:
    """Return the messages of an audited row, once for each name of a point, full depth first.

    Args:
        row: that is audited.
        points: their names.
        served: whose limit of a batch's tokens holds, but for a row that is alone above it.
        by_exit: whether the logits of full depth are wanted at every exit.
    """
    inputs = padded([row.tokens], served.config.pad_token_id)
    size = max(served.limits.max_batch_tokens // len(row.tokens["input_ids"]), 1)
    frames = []
    for start in range(0, len(points), size):
        plans: list[tuple[str, int | None]] = [(name, None) for name in points[start : start + size]]
        repeated = {name: ArrayFrame.of(value.repeat(len(plans), axis=0)) for name, value in inputs.items()}
        frames.append(BatchFrame(repeated, plans, by_exit and start == 0))
    return frames
