"""The adaptive loop: embed -> block -> exit -> leave? -> block ... Who leaves is cut out of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from offramp.policies.base import Policy, leaves, limits
from offramp.values import Answers, Carry, ExitOutput, Memory


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
class Departure:
    """Who left at one exit: row numbers (K,), their logits (K, C), who of them failed (K,), the layer's number."""

    rows: Tensor
    logits: Tensor
    failed: Tensor
    layer: int


def run(
    segments: Segments,
    policy: Policy,
    thresholds: float | Sequence[float] | Tensor,
    inputs: Mapping[str, Tensor],
) -> Answers:
    """Answer a batch; each sample leaves at the first exit where its score reaches the threshold.

    The answers do not depend on the batch: alone, in company, in any order, a sample leaves at the same layer.

    Args:
        segments: the model.
        policy: scores each exit.
        thresholds: one number, or one for each exit but the last; inf = never.
        inputs: what `segments.embed` takes, batch first.

    Raises:
        InvalidInput: the wrong number of thresholds, or a NaN among them.
    """
    last_is_minus_infinity = limits(thresholds, len(segments.layers))
    carry = segments.embed(inputs)
    rows = torch.arange(len(carry.hidden), device=carry.hidden.device)  # who is still on the way up
    memory: Memory = ()
    left: list[Departure] = []
    for number, limit in enumerate(last_is_minus_infinity):
        carry = segments.block(number, carry)
        out = replace(segments.exit(number, carry), last=number == len(last_is_minus_infinity) - 1)
        step = policy.step(number, out, memory)
        out_now, broken = leaves(step.score, step.logits, limit)  # (B,), (B,)
        memory = step.memory
        leaving = int(out_now.sum())
        if leaving == len(rows):
            left.append(Departure(rows, step.logits, broken, segments.layers[number]))
            break
        if leaving == 0:
            continue
        left.append(Departure(rows[out_now], step.logits[out_now], broken[out_now], segments.layers[number]))
        stay = (~out_now).nonzero().squeeze(1)
        rows, carry, memory = rows[stay], carry.take(stay), tuple(each[stay] for each in memory)
    return _in_input_order(left)


def _in_input_order(left: Sequence[Departure]) -> Answers:
    layers = [torch.full_like(departure.rows, departure.layer) for departure in left]
    if len(left) == 1:  # all together, and in order
        return Answers(left[0].logits, layers[0], left[0].failed)
    order = torch.cat([departure.rows for departure in left]).argsort()
    logits = torch.cat([departure.logits for departure in left])[order]
    return Answers(logits, torch.cat(layers)[order], torch.cat([departure.failed for departure in left])[order])
