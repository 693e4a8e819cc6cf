"""Rows in torch whose operating points and depths are their own, stage by stage, of one batch or of several."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from offramp.data.padding import Array
from offramp.early_exit.in_flight import ExitedRows, InFlight, start
from offramp.inference.answer_rows import RowAnswers, RowPlan, last_exit, rows_by_plan
from offramp.inference.stage_prices import Group, StagePrices, merging_pays, next_group
from offramp.inference.torch_engine import TorchEngine
from offramp.model.exits import refuse_unfitted
from offramp.model.modeling import MultiExitModel
from offramp.policies.decision import thresholds_per_exit
from offramp.types.carry import Carry
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import ExitOutput

MOST_ROWS = 1 << 20
"""Of a batch."""
TIMED_ROWS, TIMED_TOKENS, TIMED_S, LEAST_TIMES = (1, 8), 32, 0.5, 3
"""Batches that measure the prices: rows, tokens of each, and how long they are repeated; the least time counts."""


@final
@dataclass
class _LastLogits:
    """A model cut at its exits (see `offramp.early_exit.in_flight.Segments`), which keeps what the last exit returned.

    Attributes:
        model: runs.
        logits: (B, C) of the last exit that ran, before any policy; None before the first one.
    """

    model: MultiExitModel
    logits: Tensor | None = None

    @property
    def layers(self) -> Sequence[int]:
        return self.model.layers

    def lexical(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        return self._keep(self.model.lexical(inputs))

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        return self.model.embed(inputs)

    def block(self, exit: int, carry: Carry) -> Carry:
        return self.model.block(exit, carry)

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        return self._keep(self.model.exit(exit, carry))

    def _keep(self, out: ExitOutput) -> ExitOutput:
        self.logits = out.logits
        return out


@final
@dataclass
class OpenBatch:
    """A batch some of whose rows may have left.

    Attributes:
        answers: of the rows that have left; by exit also of those that have passed the exit.
        missing: rows without an answer.
        seconds: that the model took for it; a stage's time is shared by its rows.
    """

    answers: RowAnswers
    missing: int
    seconds: float = 0.0


@final
@dataclass(frozen=True)
class TorchGroup:
    """Rows of some batches before the same stage.

    Attributes:
        batch: the rows; their numbers are those of their batches times MOST_ROWS, plus those in the batch.
        group: what decisions see of them.
    """

    batch: InFlight
    group: Group

    def take(self, positions: Sequence[int]) -> TorchGroup:
        """Return the rows at these positions alone."""
        return replace(self, batch=self.batch.take(torch.tensor(positions, device=self.batch.rows.device)))

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Return the number of each row's batch and its own there."""
        return [divmod(row, MOST_ROWS) for row in self.batch.rows.tolist()]


@final
class TorchRows:
    """Rows of several batches, on their way through a model in torch.

    rows.open(number, count, by_exit)            # a batch
    rows.start(number, range(count), inputs, plans)
    group = rows.pop()                           # the rows that go on now
    left = rows.advance(group)                   # numbers of the rows that have left, by batch
    batch = rows.close(number)                   # once none of its rows is missing
    """

    def __init__(self, engine: TorchEngine, prices: StagePrices | None = None) -> None:
        """Take a model, and the prices that decide which rows go on together; None = rows of one start alone."""
        self._engine, self._prices, self._segments = engine, prices, _LastLogits(engine.model)
        self.batches: dict[int, OpenBatch] = {}
        self.groups: list[TorchGroup] = []  # those that came to their stage first come first

    def open(self, number: int, count: int, by_exit: bool) -> None:
        """Let a batch of so many rows begin."""
        layers, outputs = tuple(self._engine.layers), self._engine.config.num_labels
        exits = np.full((count, len(layers), outputs), np.nan, np.float32) if by_exit else None
        logits = np.full((count, outputs), np.nan, np.float32)
        answers = RowAnswers(logits, np.full(count, -1), np.zeros(count, bool), exits, layers)
        self.batches[number] = OpenBatch(answers, count)

    @torch.inference_mode()
    def start(self, number: int, rows: Sequence[int], inputs: Mapping[str, Array], plans: Sequence[RowPlan]) -> None:
        """Let rows of a batch stand before their first exit.

        Args:
            number: of the batch.
            rows: their numbers there.
            inputs: of these rows alone, padded.
            plans: of these rows.

        Raises:
            InvalidInput: no exit is within a bound.
        """
        began = []
        for point, numbers in rows_by_plan(plans):
            some = {name: torch.from_numpy(value[numbers]) for name, value in inputs.items()}
            own = [number * MOST_ROWS + rows[index] for index in numbers]
            began.append(_start(self._engine, point, [plans[index] for index in numbers], own, some))
        for batch in began:
            self._put(batch, 0.0)

    def pop(self) -> TorchGroup:
        """Take out the rows that go on now."""
        if self._prices is None:
            return self.groups.pop()
        return self.groups.pop(next_group([group.group for group in self.groups], self._prices))

    @torch.inference_mode()
    def advance(self, chosen: TorchGroup) -> dict[int, list[int]]:
        """Run a stage on rows of `pop`; return those that leave: their numbers by that of their batch."""
        begin, batch = time.perf_counter(), chosen.batch
        exited, onward = batch.advance(self._segments)
        left = {} if exited is None else self._keep_answers(exited)
        self._keep_logits(chosen)
        seconds = time.perf_counter() - begin
        for number, _ in chosen.rows:
            self.batches[number].seconds += seconds / len(batch)
        self.groups = [_delayed(group, chosen.group, seconds) for group in self.groups]
        if onward is not None:
            self._put(onward, chosen.group.delayed_s)
        return left

    def fail(self, row: tuple[int, int]) -> None:
        """Count a row of a batch as one that gets no answer."""
        self.batches[row[0]].missing -= 1

    def close(self, number: int) -> OpenBatch:
        """Forget a batch, and return it."""
        return self.batches.pop(number)

    def _put(self, batch: InFlight, delayed_s: float) -> None:
        """Let rows wait before their stage, with those there where that pays."""
        new = TorchGroup(batch, _group_of(batch, self._engine.layers, delayed_s))
        for index, other in enumerate(self.groups):
            if self._prices is not None and merging_pays(new.group, other.group, self._prices):
                merged, delayed_s = other.batch.merge(batch), max(delayed_s, other.group.delayed_s)
                self.groups[index] = TorchGroup(merged, _group_of(merged, self._engine.layers, delayed_s))
                return
        self.groups.append(new)

    def _keep_answers(self, exited: ExitedRows) -> dict[int, list[int]]:
        leaving = exited.exited
        values = (exited.rows, exited.logits.float(), exited.layers, exited.failed)
        numbers, logits, layers, failed = (_numpy(value[leaving]) for value in values)
        owners, rows, left = numbers // MOST_ROWS, numbers % MOST_ROWS, {}
        for owner in np.unique(owners).tolist():
            own = owners == owner
            answers, some = self.batches[owner].answers, rows[own]
            answers.logits[some], answers.exit_layers[some] = logits[own], layers[own]
            answers.failed[some] = failed[own]
            self.batches[owner].missing -= len(some)
            left[owner] = some.tolist()
        return left

    def _keep_logits(self, chosen: TorchGroup) -> None:
        """Keep the exit's own logits of the rows whose batches want them."""
        read = chosen.batch.exit_layers or tuple(self._engine.layers)
        exit, logits = self._engine.layers.index(read[chosen.batch.exit]), self._segments.logits
        assert logits is not None  # an exit has run
        if any(self.batches[number].answers.logits_by_exit is not None for number, _ in chosen.rows):
            for (number, row), values in zip(chosen.rows, _numpy(logits.float()), strict=True):
                if (exits := self.batches[number].answers.logits_by_exit) is not None:
                    exits[row, exit] = values


def by_torch(engine: TorchEngine, inputs: Mapping[str, Array], plans: Sequence[RowPlan], by_exit: bool) -> RowAnswers:
    """Answer a padded batch, the rows of each point together; see `answer_rows`."""
    rows = TorchRows(engine)
    rows.open(0, len(plans), by_exit)
    rows.start(0, range(len(plans)), inputs, plans)
    while rows.groups:
        rows.advance(rows.pop())
    return rows.close(0).answers


@torch.inference_mode()
def measured_prices(engine: TorchEngine) -> StagePrices:
    """Return what the stages of a model take here, one for each of its exits, from a few batches of one token.

    On a CPU that is the time for which this thread runs: other processes on its cores change no price.
    """
    seconds: list[list[float]] = []
    policy, _, read = engine.rule(None)
    clock = time.thread_time if engine.model.device.type == "cpu" else time.perf_counter
    for rows in TIMED_ROWS:
        ids = torch.ones((rows, TIMED_TOKENS), dtype=torch.int64, device=engine.model.device)
        never = torch.full((len(read) - 1,), math.inf)
        runs, end = list[list[float]](), time.perf_counter() + TIMED_S
        while len(runs) < LEAST_TIMES or time.perf_counter() < end:
            batch: InFlight | None = start(
                policy, never, {"input_ids": ids, "attention_mask": ids}, exit_layers=tuple(read)
            )
            times = [0.0] * (len(engine.layers) - len(read))  # the exit before the first layer takes next to nothing
            while batch is not None:
                begin = clock()
                _, batch = batch.advance(engine.model)
                times.append(clock() - begin)
            runs.append(times)
        seconds.append([min(values) for values in zip(*runs, strict=True)])
    few, many = (rows * TIMED_TOKENS for rows in TIMED_ROWS)
    return StagePrices.of((few, many), (seconds[0], seconds[1]))


def _group_of(batch: InFlight, layers: Sequence[int], delayed_s: float) -> Group:
    read = batch.exit_layers or tuple(layers)
    stage = layers.index(read[batch.exit - 1]) + 1 if batch.exit else 0
    if batch.inputs is not None:
        longest = next(iter(batch.inputs.values())).shape[1]
    else:
        assert batch.carry is not None  # a batch has inputs or a carry
        longest = batch.carry.hidden.shape[1]
    return Group(stage, len(batch), longest, (batch.policy, read), delayed_s)


def _delayed(waiting: TorchGroup, ran: Group, seconds: float) -> TorchGroup:
    """Return rows that others have overtaken, if they have."""
    if ran.stage >= waiting.group.stage:
        return waiting
    return replace(waiting, group=replace(waiting.group, delayed_s=waiting.group.delayed_s + seconds))


def _start(
    engine: TorchEngine,
    point: OperatingPoint | None,
    plans: Sequence[RowPlan],
    numbers: Sequence[int],
    inputs: Mapping[str, Tensor],
) -> InFlight:
    """Return rows of one point before its first exit; a bound is a threshold of -inf."""
    policy, thresholds, read = engine.rule(point)
    if point is None:
        thresholds = math.inf
        if any(plan.max_depth is not None and plan.max_depth < read[0] for plan in plans):
            refuse_unfitted(engine.model.lexical_exit)
            read = engine.layers  # with the exit before the first layer
    *limits, _ = thresholds_per_exit(thresholds, len(read))
    by_row = np.tile(np.array(limits, np.float32), (len(plans), 1))
    for index, plan in enumerate(plans):
        if (last := last_exit(read, plan)) is not None:
            by_row[index, list(read).index(last)] = -math.inf
    device = engine.model.device
    on_device = {name: value.to(device) for name, value in inputs.items()}
    rows = torch.tensor(numbers, device=device)
    return start(policy, torch.from_numpy(by_row), on_device, rows=rows, exit_layers=read)


def _numpy(values: Tensor) -> Array:
    array: Array = values.cpu().numpy()
    return array
