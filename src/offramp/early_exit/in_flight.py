"""Batches in flight: rows that stand before the same exit, of one request or of several.

    batch = start(policy, thresholds, inputs)
    exited, batch = batch.advance(segments)      # one block, one exit; the rows that reach their threshold leave
    batch = batch.merge(other)                   # rows of another batch that stand before the same exit

The adaptive loop (`offramp.early_exit.loop`) advances one batch to its end. A scheduler advances and merges many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy
from offramp.policies.decision import continues, nan_where_invalid
from offramp.types.carry import Carry, take_inputs
from offramp.types.outputs import ExitOutput


class Segments(Protocol):
    """A model cut at its exits; any object with these names can exit early.

    An exit's number, 0-based, is its place among `layers`.

    Relations: `MultiExitModel` is one (eager torch), `offramp.inference.torch_compile.Compiled` another; a policy reads
    what `lexical` and `exit` return. A graph runs the same loop unrolled and has the same contract test.
    """

    @property
    def layers(self) -> Sequence[int]:
        """Return the layer number of each exit, increasing; 1 = after the first layer, 0 = before it (`lexical`)."""

    def lexical(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Classify the inputs before `embed`; called only where `layers` begins with 0."""

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first block."""

    def block(self, exit: int, carry: Carry) -> Carry:
        """Run the layers that lead to exit `exit` from the one before."""

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        """Classify at exit `exit`."""


@dataclass(frozen=True)
class ExitedRows:
    """The rows of a batch that have exited, with their answers.

    Attributes:
        rows: (B,) int64 numbers of all rows of the batch.
        exited: (B,) bool; the fields below are valid for these rows alone.
        logits: (B, C) of the exit at which each row left.
        failed: (B,) bool: the row's score was NaN, or its logits were not finite.
        layers: (B,) int64 layer number of that exit.
    """

    rows: Tensor
    exited: Tensor
    logits: Tensor
    failed: Tensor
    layers: Tensor

    def then(self, later: ExitedRows) -> ExitedRows:
        """Add the rows of the same batch that exited later; a row that had exited already keeps its answer."""
        logits = torch.where(self.exited.unsqueeze(-1), self.logits, later.logits)
        failed = torch.where(self.exited, self.failed, later.failed)
        layers = torch.where(self.exited, self.layers, later.layers)
        return ExitedRows(self.rows, self.exited | later.exited, logits, failed, layers)


@dataclass(frozen=True)
class InFlight:
    """Rows of one or several requests that stand before the same exit.

    Attributes:
        rows: (B,) int64 numbers by which the caller knows the rows.
        exit: the exit that comes next, 0-based among those that are read.
        policy: scores the exits.
        thresholds: (B, L-1) float32, a row's own; inf = never.
        inputs: what `Segments.embed` takes, batch first; None once it has run.
        exit_layers: the layers whose exits are read; None = all of the model's.
        carry: what the next block takes; None before `Segments.embed`.
        memory: what the policy remembers of each row.
        since_sync: the rows that have exited since the host last asked the device and are not cut out yet; None = none.
    """

    rows: Tensor
    exit: int
    policy: Policy
    thresholds: Tensor
    inputs: Mapping[str, Tensor] | None
    exit_layers: tuple[int, ...] | None = None
    carry: Carry | None = None
    memory: Memory = ()
    since_sync: ExitedRows | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def advance(self, segments: Segments, *, sync: bool = True) -> tuple[ExitedRows | None, InFlight | None]:
        """Run one block and one exit; where exits are not read, the blocks that lead to the next one that is.

        Args:
            segments: the model.
            sync: ask the device which rows have exited and cut them out. Without it they stay in the batch, keep the
                answer of their exit, and are returned by a later call. The last exit needs no asking.

        Returns:
            The batch's exited rows, None where there are none or the device was not asked; and the rows that continue,
            None where there are none.
        """
        # 1) the block and the exit
        layers = segments.layers if self.exit_layers is None else self.exit_layers
        carry, out = self._next_exit(segments, layers)
        last = self.exit == len(layers) - 1
        out = replace(out, last=last)
        # 2) the decision
        step = self.policy.step(self.exit, out, self.memory)
        score = nan_where_invalid(step.score, step.logits)  # (B,)
        exited = torch.ones_like(score, dtype=torch.bool) if last else ~continues(score, self.thresholds[:, self.exit])
        layer = torch.full_like(self.rows, layers[self.exit])
        now = ExitedRows(self.rows, exited, step.logits, score.isnan(), layer)
        now = now if self.since_sync is None else self.since_sync.then(now)
        inputs = self.inputs if carry is None else None
        onward = replace(self, exit=self.exit + 1, inputs=inputs, carry=carry, memory=step.memory, since_sync=now)
        if not (last or sync):
            return None, onward
        # 3) the cut
        count = len(self) if last else int(now.exited.sum())
        if count == len(self):
            return now, None
        onward = replace(onward, since_sync=None)
        return (now, onward.take((~now.exited).nonzero().squeeze(1))) if count else (None, onward)

    def take(self, index: Tensor) -> InFlight:
        """Return the rows at these positions, (K,), alone.

        Raises:
            InvalidInput: rows that have exited are still in the batch.
        """
        if self.since_sync is not None:
            raise InvalidInput("a batch is cut right after a sync: advance(sync=True)")
        return replace(
            self,
            rows=self.rows[index],
            thresholds=self.thresholds[index],
            inputs=None if self.inputs is None else take_inputs(self.inputs, index),
            carry=None if self.carry is None else self.carry.take(index),
            memory=tuple(tensor[index] for tensor in self.memory),
        )

    def merge(self, other: InFlight) -> InFlight:
        """Join two batches that stand before the same exit, shorter rows padded; no row's answer depends on it.

        Raises:
            InvalidInput: another exit or another policy; rows that the host has not asked about; inputs of other kinds.
        """
        if (self.exit, self.policy) != (other.exit, other.policy):
            raise InvalidInput(
                f"batches merge before the same exit under the same policy, got {self.policy} before exit {self.exit} "
                f"and {other.policy} before exit {other.exit}"
            )
        if self.exit_layers != other.exit_layers:
            raise InvalidInput(f"batches that merge read the same exits, got {self.exit_layers}, {other.exit_layers}")
        if self.since_sync is not None or other.since_sync is not None:
            raise InvalidInput("batches merge right after a sync: advance(sync=True)")
        if (self.carry is None) != (other.carry is None):
            raise InvalidInput("a batch that is embedded merges with one that is embedded")
        merged = replace(
            self,
            rows=torch.cat((self.rows, other.rows)),
            thresholds=torch.cat((self.thresholds, other.thresholds)),
            memory=tuple(torch.cat(pair) for pair in zip(self.memory, other.memory, strict=True)),
        )
        if self.carry is not None and other.carry is not None:
            return replace(merged, carry=self.carry.concat(other.carry))
        assert self.inputs is not None  # a batch has inputs or a carry
        assert other.inputs is not None
        return replace(merged, inputs=_concat_inputs(self.inputs, other.inputs))

    def _next_exit(self, segments: Segments, layers: Sequence[int]) -> tuple[Carry | None, ExitOutput]:
        """Run what leads to the next exit, and the exit; `layers` are those whose exits are read."""
        if layers[self.exit] == 0:
            assert self.inputs is not None  # nothing comes before this exit
            return None, segments.lexical(self.inputs)
        numbers = list(segments.layers)
        first = numbers.index(layers[self.exit - 1]) + 1 if self.exit else int(numbers[0] == 0)
        number, carry = numbers.index(layers[self.exit]), self._embedded(segments)
        for block in range(first, number + 1):
            carry = segments.block(block, carry)
        return carry, segments.exit(number, carry)

    def _embedded(self, segments: Segments) -> Carry:
        if self.carry is not None:
            return self.carry
        assert self.inputs is not None  # a batch has inputs or a carry
        return segments.embed(self.inputs)


def start(
    policy: Policy,
    thresholds: Tensor,
    inputs: Mapping[str, Tensor],
    *,
    rows: Tensor | None = None,
    exit_layers: Sequence[int] | None = None,
) -> InFlight:
    """Return a batch that stands before its first exit.

    Args:
        policy: scores the exits.
        thresholds: (L-1,) of all rows, or (B, L-1); see `offramp.policies.decision.thresholds_per_exit`.
        inputs: what `Segments.embed` takes, batch first.
        rows: (B,) int64 numbers by which the caller knows the rows; None = 0 to B-1.
        exit_layers: the layers whose exits are read, L of them; None = all of the model's.
    """
    first = next(iter(inputs.values()))
    numbers = torch.arange(len(first), device=first.device) if rows is None else rows
    own = thresholds.to(device=first.device, dtype=torch.float32).expand(len(first), -1)  # (B, L-1)
    read = None if exit_layers is None else tuple(exit_layers)
    return InFlight(numbers, 0, policy, own, inputs, read)


def _concat_inputs(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join two batches of inputs; tokens are padded on the right, and the mask is 0 there."""
    if "input_ids" in one and "input_ids" in other:
        one, other = ({"attention_mask": torch.ones_like(some["input_ids"]), **some} for some in (one, other))
        columns = max(one["input_ids"].shape[1], other["input_ids"].shape[1])
        one, other = (
            {name: F.pad(value, (0, columns - value.shape[1])) for name, value in some.items()} for some in (one, other)
        )
    shapes = [{name: tuple(value.shape[1:]) for name, value in some.items()} for some in (one, other)]
    if shapes[0] != shapes[1]:
        raise InvalidInput(f"inputs of shapes {shapes[0]} and {shapes[1]} make no batch")
    return {name: torch.cat((one[name], other[name])) for name in one}
