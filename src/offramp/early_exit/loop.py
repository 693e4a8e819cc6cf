"""The adaptive loop: one batch, advanced exit by exit until every row has left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from offramp.early_exit.in_flight import ExitedRows, InFlight, Segments, start
from offramp.policies.base import Policy
from offramp.policies.decision import thresholds_per_exit
from offramp.types.outputs import Answers


def run(
    segments: Segments,
    policy: Policy,
    thresholds: float | Sequence[float] | Tensor,
    inputs: Mapping[str, Tensor],
    *,
    exit_layers: Sequence[int] | None = None,
    sync_exits: Collection[int] | None = None,
) -> Answers:
    """Answer a batch; each row leaves at the first exit where its score reaches the threshold.

    The answers do not depend on the batch: alone or with others, in any order, a row leaves at the same layer. Nor do
    they depend on `sync_exits`.

    Args:
        segments: the model.
        policy: scores each exit.
        thresholds: one number, or one for each exit that is read but the last; inf = never.
        inputs: what `segments.embed` takes, batch first.
        exit_layers: the layers whose exits are read, the last layer among them; None = all of the model's. The others
            do not run, and the policy does not count them.
        sync_exits: exits (0-based among those that are read) after which the host asks the device which rows have left,
            and cuts them out; None = all. Between them, rows that have left still run through the blocks. Asking makes
            the host wait for the device, so on a GPU it may cost more than it saves (see `offramp.early_exit.sync`).

    Raises:
        InvalidInput: the wrong number of thresholds, or a NaN.
    """
    exits = len(segments.layers if exit_layers is None else exit_layers)
    *limits, _ = thresholds_per_exit(thresholds, exits)  # the last exit answers all rows that are left
    batch: InFlight | None = start(policy, torch.tensor(limits), inputs, exit_layers=exit_layers)
    exited: list[ExitedRows] = []
    while batch is not None:
        leaving, batch = batch.advance(segments, sync=sync_exits is None or batch.exit in sync_exits)
        if leaving is not None:
            exited.append(leaving)
    return _in_input_order(exited)


def _in_input_order(exited: Sequence[ExitedRows]) -> Answers:
    if len(exited) == 1:  # all together, and in order
        return Answers(exited[0].logits, exited[0].layers, exited[0].failed)
    order = torch.cat([part.rows[part.exited] for part in exited]).argsort()
    logits = torch.cat([part.logits[part.exited] for part in exited])[order]
    layers = torch.cat([part.layers[part.exited] for part in exited])[order]
    return Answers(logits, layers, torch.cat([part.failed[part.exited] for part in exited])[order])
