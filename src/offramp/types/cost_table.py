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
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.errors import InvalidInput
from offramp.types.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor

NANOSECOND = 1e-6
"""Milliseconds of a row, at least, where exits take all of the time by measurement."""


@dataclass(frozen=True)
class CostTable:
    """Milliseconds a sample if all samples leave at one exit, as `offramp.measure_costs` measures them.

    Expected times of samples that leave at different exits assume a batch of `batch_size` at every depth: others that
    stand before the same exit take the place of those that leave. Where nothing fills a batch up, a run takes longer:
    the batch gets smaller as samples leave, and a layer costs more a sample in a smaller batch.

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
        exit_ms: (L-1,) what reading each exit but the last takes, its logits and its decision: a part of `ms` there and
            at all later exits. None = not known, as in tables of earlier versions.
        cut_ms: (L-1,) what a sample that goes on takes more where others of its batch leave at an exit. It is in no
            time of `ms`, for which all leave together. None = not known.

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
    exit_ms: tuple[float, ...] | None = None
    cut_ms: tuple[float, ...] | None = None

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
        self._check_prices()

    def _check_prices(self) -> None:
        """Refuse prices of exits and cuts that are no part of the times."""
        for name in ("exit_ms", "cut_ms"):
            values = getattr(self, name)
            if values is None:
                continue
            object.__setattr__(self, name, tuple(float(value) for value in values))
            if len(values) != len(self.layers) - 1 or not all(0 <= value < math.inf for value in values):
                raise InvalidInput(f"{name} must be {len(self.layers) - 1} times of at least 0, got {values}")
        if any(price > most + 1e-9 for price, most in zip(self.exit_ms or (), self._steps(), strict=False)):
            raise InvalidInput(f"exit_ms must be parts of the times between exits {self._steps()}, got {self.exit_ms}")

    def _steps(self) -> list[float]:
        """Return what each exit and what leads to it take, (L,), without the embedding."""
        steps = [later - before for before, later in pairwise((0.0, *self.ms))]
        if (first := int(self.layers[0] == 0)) < len(steps):
            steps[first] -= self.embed_ms
        return steps

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
        """Return the mean time of samples that leave at these layers, (N,); see `expected_ms`."""
        counts = Counter(exit_layers.tolist())
        shares = [counts.pop(layer, 0) / len(exit_layers) for layer in self.layers]
        if counts:
            raise InvalidInput(f"the cost table is of exits at layers {self.layers}, samples leave at {sorted(counts)}")
        return float(self.expected_ms(exit_layers.double().new_tensor(shares)))

    def expected_ms(self, shares: Tensor) -> Tensor:
        """Return the mean time of a sample, (...), from the share that leaves at each exit, (..., L) float64.

        A batch is cut at an exit where some of its rows leave and some do not. The chance of it is that of independent
        rows; a batch of one row is never cut.
        """
        times = shares @ shares.new_tensor(self.ms)
        if self.cut_ms is None:
            return times
        stays = (1 - shares.cumsum(dim=-1)[..., :-1]).clamp(min=0)  # (..., L-1) of all samples
        leaves = shares[..., :-1] / (stays + shares[..., :-1]).clamp(min=1e-12)  # of those that reach the exit
        rows = max(1, self.batch_size // self.workers)
        is_cut = 1 - leaves**rows - (1 - leaves) ** rows
        return times + (stays * is_cut) @ shares.new_tensor(self.cut_ms)

    def check(self, layers: Sequence[int]) -> None:
        """Refuse exits that are not timed.

        Raises:
            InvalidInput: exits at other layers than the table's, or without the table's last one.
        """
        if not set(layers) <= set(self.layers) or layers[-1] != self.layers[-1]:
            raise InvalidInput(f"the cost table is of exits at layers {self.layers}, these lie at {tuple(layers)}")

    def select(self, layers: Sequence[int]) -> CostTable:
        """Return the table of some exits, for a point that reads no others.

        The times are less what the other exits take, where that is known; else they stay those with all exits.

        Raises:
            InvalidInput: as `check`.
        """
        self.check(layers)
        numbers = [self.layers.index(layer) for layer in layers]
        prices = (0.0,) * len(self.layers) if self.exit_ms is None else (*self.exit_ms, 0.0)
        skipped = [0.0 if number in numbers else price for number, price in enumerate(prices)]
        ms = [self.ms[number] - math.fsum(skipped[:number]) for number in numbers]
        if any(skipped) and (first := int(layers[0] == 0)) < len(ms):  # behind a layer; prices may be all of its time
            least = max(self.embed_ms + (ms[0] if first else 0.0), NANOSECOND)
            short = max(least - ms[first], 0.0)
            ms[first:] = [max(value + short, least) for value in ms[first:]]

        def of(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
            return None if values is None else tuple(values[number] for number in numbers[:-1])

        return replace(
            self, layers=tuple(layers), ms=tuple(accumulate(ms, max)), exit_ms=of(self.exit_ms), cut_ms=of(self.cut_ms)
        )

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
