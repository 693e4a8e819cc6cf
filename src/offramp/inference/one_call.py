"""Answer rows with an engine that takes them through all exits in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from offramp.data.padding import Array, padded
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.flight import LeftRows
from offramp.inference.onnx_engine import GraphEngine
from offramp.types.operating_point import OperatingPoint


@final
@dataclass(frozen=True)
class OneCall:
    """An engine at an operating point, of one stage: a call of the engine answers a batch.

    Attributes:
        engine: runs the model.
        point: policy and thresholds; None = full depth.
        stages: 1.
    """

    engine: Engine
    point: OperatingPoint | None
    stages: int = 1

    def start(self, rows: Array, tokens: Sequence[Mapping[str, Any]]) -> _Waiting:
        """Return rows that stand before the only stage."""
        return _Waiting(self, rows, tuple(tokens))

    def answer(self, inputs: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """Return the logits (B, C), exit layers (B,) and failures (B,) of a padded batch, (B, T) each.

        Raises:
            InvalidInput: an engine of a class that is not offramp's answers another number of rows.
        """
        if isinstance(self.engine, GraphEngine):
            return self.engine.answer_arrays(inputs, self.point)
        import torch

        answers = self.engine.answer({name: torch.from_numpy(value) for name, value in inputs.items()}, self.point)
        count = len(inputs["input_ids"])
        counts = {"logits": len(answers.logits), "exit layers": len(answers.exit_layers), "failed": len(answers.failed)}
        if any(number != count for number in counts.values()):
            answered = ", ".join(f"{number} {name}" for name, number in counts.items())
            raise InvalidInput(f"the engine {self.engine.name!r} was given {count} rows and answered {answered}")
        return answers.logits.float().numpy(), answers.exit_layers.numpy(), answers.failed.numpy()


@final
@dataclass(frozen=True)
class _Waiting:
    """Rows that no stage has run on.

    Attributes:
        runner: answers them.
        rows: (B,) their numbers.
        inputs: of each row, unpadded.
        stage: 0.
    """

    runner: OneCall
    rows: Array
    inputs: tuple[Mapping[str, Any], ...]
    stage: int = 0

    @property
    def tokens(self) -> Array:
        return np.array([len(row["input_ids"]) for row in self.inputs], np.int64)

    def advance(self) -> tuple[LeftRows, None]:
        batch = padded(self.inputs, self.runner.engine.config.pad_token_id)
        return LeftRows(self.rows, *self.runner.answer(batch)), None

    def take(self, positions: Array) -> _Waiting:
        return _Waiting(self.runner, self.rows[positions], tuple(self.inputs[position] for position in positions))

    def merge(self, others: Sequence[_Waiting]) -> _Waiting:
        parts = (self, *others)
        rows = np.concatenate([part.rows for part in parts])
        return _Waiting(self.runner, rows, tuple(row for part in parts for row in part.inputs))
