"""The cost of each exit on one machine, in milliseconds: it turns exit layers into time. Needs no torch."""

from __future__ import annotations

import json
import math
import os
import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.errors import InvalidInput
from offramp.types.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CostTable:
    """Milliseconds a sample if all samples leave at one exit, as `offramp.measure_costs` measures them.

    The mean over samples of their exits' times is the time that a run takes where no sample waits for another. Batches
    take longer: they get smaller as samples leave, and a layer costs more a sample in a smaller batch.

    A batch is divided among the workers, and the next one begins when all parts are answered (see
    `offramp.inference.workers`): so times of any threads and workers are comparable.

    Attributes:
        layers: (L,) the layer number of each exit; 0 = before the first layer.
        ms: (L,) mean time of a sample, from its tokens to its answer, with all exits before it; it never falls.
        embed_ms: the part of it that no exit behind a layer saves, from 0 up to the first of these times; samples that
            leave at layer 0 take ms[0] and no part of it.
        engine: the engine that ran the model, with its precision.
        batch_size: rows at once.
        tokens: mean real tokens of a sample; None = images.
        machine: in words.
        threads: that computed a batch; None = not known, in tables of earlier versions.
        workers: that shared a batch.

    Raises:
        InvalidInput: numbers that cannot be a cost table.

    Example:
        >>> table = offramp.CostTable((1, 2, 3), (1.0, 4.0, 9.0), 0.5, "torch-float32", 8, 12.5, "2 cores")
        >>> table.mean_ms(torch.tensor([1, 1, 3, 2]))
        3.75
    """

    layers: tuple[int, ...]
    ms: tuple[float, ...]
    embed_ms: float
    engine: str
    batch_size: int
    tokens: float | None
    machine: str
    threads: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        object.__setattr__(self, "ms", tuple(float(value) for value in self.ms))
        if not self.layers or self.layers[0] < 0 or any(one >= other for one, other in pairwise(self.layers)):
            raise InvalidInput(f"layers must be increasing layer numbers, got {self.layers}")
        before = self.ms[0] if self.layers[0] == 0 and len(self.ms) > 1 else 0.0  # of samples that go on to layer 1
        embedded = [before + self.embed_ms, *self.ms[1:]] if before else [self.embed_ms, *self.ms]
        falls = not all(
            one <= other < math.inf for times in ((0.0, *self.ms), embedded) for one, other in pairwise(times)
        )
        if len(self.ms) != len(self.layers) or falls or not self.embed_ms >= 0:
            raise InvalidInput(
                f"ms must be {len(self.layers)} times that never fall, from embed_ms {self.embed_ms} up, got {self.ms}"
            )
        if self.ms[0] == 0 or self.batch_size < 1:
            raise InvalidInput(f"times and batch_size must be above 0, got {self.ms} and {self.batch_size}")
        if not (self.threads is None or self.threads >= 1) or self.workers < 1:
            raise InvalidInput(f"threads and workers must be at least 1, got {self.threads} and {self.workers}")

    def ms_at(self, mean_exit: float) -> float:
        """Return the time of a sample at a mean exit layer, on a straight line between the exits beside it."""
        if mean_exit >= self.layers[-1]:
            return self.ms[-1]
        above = bisect_left(self.layers, mean_exit)
        if above == 0:
            return self.ms[0]
        (before, after), (low, high) = self.layers[above - 1 : above + 1], self.ms[above - 1 : above + 1]
        return low + (high - low) * (mean_exit - before) / (after - before)

    def mean_ms(self, exit_layers: Tensor) -> float:
        """Return the mean time of samples that leave at these layers, (N,)."""
        counts = Counter(exit_layers.tolist())
        total = math.fsum(count * self.ms[bisect_left(self.layers, layer)] for layer, count in counts.items())
        return total / counts.total()

    def check(self, layers: Sequence[int]) -> None:
        """Refuse exits that are not timed.

        Raises:
            InvalidInput: exits at other layers than the table's, or without the table's last one.
        """
        if not set(layers) <= set(self.layers) or layers[-1] != self.layers[-1]:
            raise InvalidInput(f"the cost table is of exits at layers {self.layers}, these lie at {tuple(layers)}")

    def select(self, layers: Sequence[int]) -> CostTable:
        """Return the table of some exits, for a point that reads no others; the times stay those with all exits.

        Raises:
            InvalidInput: as `check`.
        """
        self.check(layers)
        return replace(self, layers=tuple(layers), ms=tuple(self.ms[self.layers.index(layer)] for layer in layers))

    def describe(self) -> str:
        """Return what was timed, in one line."""
        length = "" if self.tokens is None else f", {self.tokens:.1f} tokens"
        threads = "" if self.threads is None else f", {self.threads_text()}"
        return f"{self.engine}, batch size {self.batch_size}{length}{threads}, {self.machine}"

    def threads_text(self) -> str:
        """Return the number of threads, and of workers where there are several."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads or 'some'} threads"
        return threads if self.workers == 1 else f"{self.workers} workers of {threads}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON."""
        with whole_file(path) as file:
            file.write(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostTable:
        """Read a file that `save` wrote.

        Raises:
            InvalidInput: there is no such file, or it is not a cost table.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise InvalidInput(f"{os.fspath(path)}: not a cost table ({error})") from None


def processor() -> str:
    """Return this machine's processor and its cores, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
