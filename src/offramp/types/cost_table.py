"""What each exit takes on one machine, in milliseconds: what makes layers into time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from offramp.errors import InvalidInput


@dataclass(frozen=True)
class CostTable:
    """Milliseconds a sample if everybody leaves at one exit, as `offramp.measure_costs` finds them.

    The mean over samples of the row of each one's exit is the time that a run takes where nobody waits for anybody. In
    batches it takes longer: who stays makes small ones, whose layers cost more a sample.

    Attributes:
        layers: (L,) the layer number of each exit.
        ms: (L,) mean time of a sample, from its tokens to its answer; it never falls.
        embed_ms: the share of it that no exit saves, from 0 to ms[0].
        engine: what ran the model, with its precision.
        batch_size: rows at once.
        tokens: mean real tokens of a sample; None = images.
        machine: in words.

    Raises:
        InvalidInput: numbers that cannot be such a table's.
    """

    layers: tuple[int, ...]
    ms: tuple[float, ...]
    embed_ms: float
    engine: str
    batch_size: int
    tokens: float | None
    machine: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        object.__setattr__(self, "ms", tuple(float(value) for value in self.ms))
        if not self.layers or self.layers[0] < 1 or any(one >= other for one, other in pairwise(self.layers)):
            raise InvalidInput(f"layers must be increasing layer numbers, got {self.layers}")
        times = (0.0, self.embed_ms, *self.ms)
        if len(self.ms) != len(self.layers) or not all(one <= other < math.inf for one, other in pairwise(times)):
            raise InvalidInput(
                f"ms must be {len(self.layers)} times that never fall, from embed_ms {self.embed_ms} up, got {self.ms}"
            )
        if self.ms[0] == 0 or self.batch_size < 1:
            raise InvalidInput(f"times and batch_size must be above 0, got {self.ms} and {self.batch_size}")

    def mean_ms(self, exit_layers: Tensor) -> float:
        """Mean time of samples that leave at these layers, (N,)."""
        at = torch.searchsorted(torch.tensor(self.layers), exit_layers.cpu())  # (N,)
        return torch.tensor(self.ms, dtype=torch.float64)[at].mean().item()

    def check(self, layers: Sequence[int]) -> None:
        """Refuse to price a model with other exits.

        Raises:
            InvalidInput: its exits lie at other layers than the table's.
        """
        if tuple(layers) != self.layers:
            raise InvalidInput(f"the cost table is of exits at layers {self.layers}, these lie at {tuple(layers)}")

    def describe(self) -> str:
        """What was timed, in one line."""
        length = "" if self.tokens is None else f", {self.tokens:.1f} tokens"
        return f"{self.engine}, batch size {self.batch_size}{length}, {self.machine}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostTable:
        """Read what `save` wrote.

        Raises:
            InvalidInput: there is no such file, or it is not a cost table.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise InvalidInput(f"{os.fspath(path)}: not a cost table ({error})") from None
