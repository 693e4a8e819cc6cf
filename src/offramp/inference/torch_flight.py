"""Rows on their way through a model in torch, exit by exit: `InFlight` for whoever works in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, final

import numpy as np
import torch

from offramp.data.padding import Array, padded
from offramp.early_exit.in_flight import ExitedRows, InFlight, start
from offramp.inference.flight import LeftRows
from offramp.inference.torch_engine import TorchEngine
from offramp.policies.decision import thresholds_per_exit
from offramp.types.operating_point import OperatingPoint


@final
@dataclass(frozen=True)
class TorchRunner:
    """A model in torch at an operating point, of one stage for each exit that it reads.

    Attributes:
        engine: runs the model.
        point: policy and thresholds; None = full depth.
    """

    engine: TorchEngine
    point: OperatingPoint | None

    @property
    def stages(self) -> int:
        """Return the number of exits that are read."""
        return len(self.engine.rule(self.point)[2])

    def start(self, rows: Array, tokens: Sequence[Mapping[str, Any]]) -> TorchFlight:
        """Return rows that stand before the first exit."""
        policy, thresholds, read = self.engine.rule(self.point)
        *limits, _ = thresholds_per_exit(thresholds, len(read))
        model = self.engine.model
        batch = padded(tokens, model.config.pad_token_id)
        inputs = {name: torch.from_numpy(value).to(model.device) for name, value in batch.items()}
        numbers = torch.from_numpy(rows).to(model.device)
        return TorchFlight(self.engine, start(policy, torch.tensor(limits), inputs, rows=numbers, exit_layers=read))


@final
@dataclass(frozen=True)
class TorchFlight:
    """Rows that stand before the same exit.

    Attributes:
        engine: runs the model.
        batch: the rows.
    """

    engine: TorchEngine
    batch: InFlight

    @property
    def rows(self) -> Array:
        """Return the numbers by which the caller knows the rows."""
        return self.batch.rows.cpu().numpy()

    @property
    def stage(self) -> int:
        """Return the number of the exit among those that are read."""
        return self.batch.exit

    @property
    def tokens(self) -> Array:
        """Return the real tokens of each row, (B,) int64."""
        carry, inputs = self.batch.carry, self.batch.inputs
        mask = inputs["attention_mask"] if inputs is not None else None if carry is None else carry.mask
        return np.ones(len(self.batch), np.int64) if mask is None else mask.sum(dim=1).cpu().numpy()

    @torch.inference_mode()
    def advance(self) -> tuple[LeftRows | None, TorchFlight | None]:
        """Run the layers that lead to the exit, and the exit, on all rows."""
        exited, onward = self.batch.advance(self.engine.model)
        left = None if exited is None else _left(exited)
        return left, None if onward is None else replace(self, batch=onward)

    @torch.inference_mode()
    def take(self, positions: Array) -> TorchFlight:
        """Return the rows at these positions, (K,)."""
        return replace(self, batch=self.batch.take(torch.from_numpy(positions).to(self.batch.rows.device)))

    @torch.inference_mode()
    def merge(self, others: Sequence[TorchFlight]) -> TorchFlight:
        """Join rows that stand before the same exit."""
        return replace(self, batch=reduce(InFlight.merge, [other.batch for other in others], self.batch))


def _left(exited: ExitedRows) -> LeftRows:
    fields = (exited.rows, exited.logits.float(), exited.layers, exited.failed)
    return LeftRows(*(values[exited.exited].cpu().numpy() for values in fields))
