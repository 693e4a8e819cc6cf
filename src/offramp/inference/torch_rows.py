"""Answer a batch whose rows have operating points and depths of their own, in torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from offramp.data.padding import Array
from offramp.early_exit.in_flight import InFlight, start
from offramp.inference.answer_rows import RowAnswers, RowPlan, last_exit, rows_by_plan
from offramp.inference.torch_engine import TorchEngine
from offramp.model.exits import refuse_unfitted
from offramp.model.modeling import MultiExitModel
from offramp.policies.decision import thresholds_per_exit
from offramp.types.carry import Carry
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import ExitOutput


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


@torch.inference_mode()
def by_torch(engine: TorchEngine, inputs: Mapping[str, Array], plans: Sequence[RowPlan], by_exit: bool) -> RowAnswers:
    """Answer a padded batch, the rows of each point together; see `answer_rows`."""
    layers, rows = tuple(engine.layers), len(plans)
    logits = np.empty((rows, engine.config.num_labels), np.float32)
    exit_layers, failed = np.empty(rows, np.int64), np.empty(rows, bool)
    exits = np.full((rows, len(layers), logits.shape[1]), np.nan, np.float32) if by_exit else None
    segments = _LastLogits(engine.model)
    for point, numbers in rows_by_plan(plans):
        some = {name: torch.from_numpy(value[numbers]) for name, value in inputs.items()}
        batch: InFlight | None = _start(engine, point, [plans[number] for number in numbers], numbers, some)
        while batch is not None:
            before, read = _numpy(batch.rows), batch.exit_layers
            layer = layers if read is None else read
            exited, onward = batch.advance(segments)
            if exits is not None and segments.logits is not None:
                exits[before, layers.index(layer[batch.exit])] = _numpy(segments.logits.float())
            if exited is not None:
                leaving = exited.exited
                left = _numpy(exited.rows[leaving])
                logits[left] = _numpy(exited.logits[leaving].float())
                exit_layers[left], failed[left] = _numpy(exited.layers[leaving]), _numpy(exited.failed[leaving])
            batch = onward
    return RowAnswers(logits, exit_layers, failed, exits, layers)


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
