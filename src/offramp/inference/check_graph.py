"""Check an exported graph against a trace: rows leave where a replay says, with the same logits.

Rows leave alone where they leave in batches. In float32 the graph must leave where the torch loop leaves, with the same
logits to TOLERANCE; in int8 it is held to its own trace, and logits alone and in batches must be equal to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offramp.data.batching import collate
from offramp.errors import OfframpError
from offramp.inference.onnx_engine import GraphEngine
from offramp.inference.record import record
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers
from offramp.types.trace import Trace

TOLERANCE = 1e-3  # of logits, in units of the largest one
NOISE = 1e-5  # scores this near to a threshold may fall on either side
ALONE = 16  # rows that are checked one by one
QUANTILES = (0.3, 0.7)  # of the scores: thresholds at which some leave early and some do not
Rows = list[dict[str, Any]]


class ExportMismatch(OfframpError):
    """An exported file does not do what the model does."""


def check(exported: GraphEngine, rows: Rows, reference: Trace) -> None:
    """Compare a graph with a trace: each row must leave at the exit of a replay, with the same logits.

    Args:
        exported: the graph.
        rows: token rows, or images.
        reference: torch's outputs for them at full depth; an int8 graph is held to its own trace, row by row, instead.

    Raises:
        ExportMismatch: it does not.
    """
    metadata = exported.graph.metadata
    exact = metadata.precision == "int8"
    alone = rows[:ALONE]
    name = f"the graph ({metadata.precision}, policy {dict(metadata.policy)})"
    if exact:
        own = record(exported, rows, batch_size=1)
        if (own.logits.isnan() & reference.select(metadata.layers).logits.isfinite()).any():  # NaN: after a row's exit
            raise ExportMismatch(f"{name}: rows leave elsewhere than they should, at the threshold inf")
        reference = own
    rule, reference = load_policy(metadata.policy), reference.select(metadata.layers_read)
    score = scores(rule, reference)[:-1].double()  # (L-1, N)
    tolerance = TOLERANCE * max(1.0, reference.logits.abs().max().item())
    for quantile in QUANTILES:
        threshold = _between(score, quantile)
        wanted = replay(reference, rule, threshold)
        clear = ((score - threshold).abs() >= NOISE).all(dim=0)  # (N,)
        runs = [(batch, _answers(exported, batch, threshold, size)) for size, batch in ((1, alone), (len(rows), rows))]
        for batch, answers in runs:
            clear_rows = clear[: len(batch)].nonzero().squeeze(1)
            if not torch.equal(answers.exit_layers[clear_rows], wanted.exit_layers[clear_rows]):
                raise ExportMismatch(f"{name}: rows leave elsewhere than they should, at the threshold {threshold:g}")
            apart = (answers.logits[clear_rows] - wanted.logits[clear_rows]).abs()
            if not (apart <= tolerance).all():
                raise ExportMismatch(f"{name}: logits are off by {apart.max():.2g}; {tolerance:.2g} would be in order")
        one_by_one, together = (answers.logits[: len(alone)] for _, answers in runs)
        if exact and not torch.equal(one_by_one, together):
            apart = (one_by_one - together).abs()
            raise ExportMismatch(f"{name}: logits are off by {apart.max():.2g} between a row alone and in a batch")


def _answers(exported: GraphEngine, rows: Rows, threshold: float, size: int) -> Answers:
    """Answer rows, in batches of `size` in their order."""
    metadata = exported.graph.metadata
    read = metadata.layers_read
    point = OperatingPoint(metadata.policy, (threshold,) * (len(read) - 1), exit_layers=read)
    parts = []
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], exported.config.pad_token_id)
        parts.append(exported.answer({name: value for name, value in batch.items() if name != "labels"}, point))
    return Answers(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.exit_layers for part in parts]),
        torch.cat([part.failed for part in parts]),
    )


def _between(score: Tensor, quantile: float) -> float:
    """Return a threshold between two neighbouring scores, near a quantile of the finite ones."""
    finite: list[float] = sorted(set(score[score.isfinite()].tolist()))
    if len(finite) < 2:
        return finite[0] - 0.5 if finite else 0.0
    index = min(int(quantile * (len(finite) - 1)), len(finite) - 2)
    return (finite[index] + finite[index + 1]) / 2
