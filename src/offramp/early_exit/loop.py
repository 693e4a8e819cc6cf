"""The adaptive loop: embed -> block -> exit -> leave? -> block ... Who leaves is cut out of the batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from offramp.policies.base import Memory, Policy
from offramp.policies.decision import continues, nan_where_invalid, thresholds_per_exit
from offramp.types.carry import Carry
from offramp.types.outputs import Answers, ExitOutput


class Segments(Protocol):
    """A model cut at its exits; whatever offers these four runs in the loop.

    Relations: `MultiExitModel` is one (eager torch); a policy reads what `exit` returns; `layers` gives the layer
    number of each exit, 1 = after the first layer.
    """

    @property
    def layers(self) -> Sequence[int]:
        """The layer number of each exit, increasing."""

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """What goes into the first block."""

    def block(self, exit: int, carry: Carry) -> Carry:
        """Run the layers that lead to exit `exit` (0-based) from the one before."""

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        """What exit `exit` says."""


@dataclass(frozen=True)
class ExitedRows:
    """Who of a batch has left, and with what.

    Attributes:
        gone: (B,) bool; what follows counts for those alone.
        logits: (B, C) of the exit at which each one left.
        failed: (B,) bool.
        layers: (B,) int64, the number of that exit's layer.
    """

    gone: Tensor
    logits: Tensor
    failed: Tensor
    layers: Tensor

    def then(self, later: ExitedRows) -> ExitedRows:
        """Those and the later ones; whoever had left already keeps what it left with."""
        logits = torch.where(self.gone.unsqueeze(-1), self.logits, later.logits)
        failed = torch.where(self.gone, self.failed, later.failed)
        return ExitedRows(self.gone | later.gone, logits, failed, torch.where(self.gone, self.layers, later.layers))


def run(
    segments: Segments,
    policy: Policy,
    thresholds: float | Sequence[float] | Tensor,
    inputs: Mapping[str, Tensor],
    *,
    sync_exits: Collection[int] | None = None,
) -> Answers:
    """Answer a batch; each sample leaves at the first exit where its score reaches the threshold.

    The answers do not depend on the batch: alone, in company, in any order, a sample leaves at the same layer. Nor do
    they depend on `sync_exits`: whoever has left keeps the answer of that exit, while its row goes on until the
    next look.

    Args:
        segments: the model.
        policy: scores each exit.
        thresholds: one number, or one for each exit but the last; inf = never.
        inputs: what `segments.embed` takes, batch first.
        sync_exits: behind which exits (0-based) to look who has left and cut them out; None = all. A look waits for the
            device, so on a GPU it may cost more than it saves (see `offramp.early_exit.sync`).

    Raises:
        InvalidInput: the wrong number of thresholds, or a NaN among them.
    """
    last_is_minus_infinity = thresholds_per_exit(thresholds, len(segments.layers))
    carry = segments.embed(inputs)
    rows = torch.arange(len(carry.hidden), device=carry.hidden.device)  # who is still in the batch
    memory: Memory = ()
    since_sync: ExitedRows | None = None  # since the last look
    left: list[tuple[Tensor, ExitedRows]] = []
    for number, limit in enumerate(last_is_minus_infinity):
        carry = segments.block(number, carry)
        out = replace(segments.exit(number, carry), last=number == len(last_is_minus_infinity) - 1)
        step = policy.step(number, out, memory)
        memory = step.memory
        score = nan_where_invalid(step.score, step.logits)  # (B,)
        layer = torch.full_like(rows, segments.layers[number])
        now = ExitedRows(~continues(score, limit), step.logits, score.isnan(), layer)
        since_sync = now if since_sync is None else since_sync.then(now)
        if not (out.last or sync_exits is None or number in sync_exits):
            continue
        leaving = len(rows) if out.last else int(since_sync.gone.sum())
        if leaving == len(rows):
            left.append((rows, since_sync))
            break
        if leaving:
            left.append((rows, since_sync))
            stay = (~since_sync.gone).nonzero().squeeze(1)
            rows, carry, memory = rows[stay], carry.take(stay), tuple(each[stay] for each in memory)
        since_sync = None
    return _in_input_order(left)


def _in_input_order(left: Sequence[tuple[Tensor, ExitedRows]]) -> Answers:
    """Of each look the numbers of the rows (B,), and who of them has left."""
    if len(left) == 1:  # all together, and in order
        _, everybody = left[0]
        return Answers(everybody.logits, everybody.layers, everybody.failed)
    order = torch.cat([rows[part.gone] for rows, part in left]).argsort()
    logits = torch.cat([part.logits[part.gone] for _, part in left])[order]
    layers = torch.cat([part.layers[part.gone] for _, part in left])[order]
    return Answers(logits, layers, torch.cat([part.failed[part.gone] for _, part in left])[order])
