"""Wall time of runs that take turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from offramp.types.outputs import Answers

Name = TypeVar("Name", bound=Hashable)
Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Answers | Tensor]
"""Answers a batch; a full-depth model may return logits (B, C) alone."""


def time_interleaved(runs: Mapping[Name, Callable[[int], object]], rounds: int) -> dict[Name, list[float]]:
    """Return the seconds of every call, by run; each round calls all runs once, after one round that does not count.

    Args:
        runs: functions of the number of the round.
        rounds: number of rounds that count.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    with tqdm(total=(rounds + 1) * len(runs), desc="measure", unit="turn", disable=None, leave=False) as bar:
        for number in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run(number)
                if number:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds


def median(values: Sequence[float]) -> float:
    """Return the middle value; of an even number, the mean of the two."""
    return torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


@dataclass(frozen=True)
class Times:
    """Times of one run.

    Attributes:
        seconds: (R, K) of each of K batches in each of R rounds.
        rows: (K,) of each batch.
    """

    seconds: Tensor
    rows: Tensor

    @property
    def passes(self) -> list[float]:
        """Return the seconds of all batches together, by round."""
        seconds: list[float] = self.seconds.sum(dim=1).tolist()
        return seconds

    @property
    def per_second(self) -> float:
        """Return the samples a second in the median round."""
        return self.rows.sum().item() / median(self.passes)

    def ms(self, quantile: float) -> float:
        """Return the milliseconds a sample at a quantile of the batches, each with the median of its rounds.

        It shows how far the times of texts differ, without the noise of single rounds.
        """
        batches = self.seconds.quantile(0.5, dim=0) / self.rows  # (K,)
        return 1000 * batches.quantile(quantile).item()


@dataclass(frozen=True)
class SpeedupRange:
    """A ratio of two speeds: the median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, slower: Times, faster: Times) -> SpeedupRange:
        """Compare two runs round by round."""
        ratios = [one / other for one, other in zip(slower.passes, faster.passes, strict=True)]
        return cls(median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class LayerCostModel:
    """The time of a pass through k layers: lexical + embed + k block, in seconds; lexical alone where k is 0.

    Attributes:
        embed: of the embedding.
        block: of a layer.
        lexical: of the lexical exit; 0 where there is none.
    """

    embed: float
    block: float
    lexical: float = 0.0

    @classmethod
    def through(cls, seconds: Mapping[int, float]) -> LayerCostModel:
        """Fit seconds by depth in layers with least squares; two depths or more, 0 = those of the lexical exit."""
        lexical = seconds.get(0, 0.0)
        behind = {layer: value - lexical for layer, value in seconds.items() if layer}
        if len(behind) == 1:  # nothing tells the embedding from the layers
            ((depth, value),) = behind.items()
            return cls(0.0, value / depth, lexical)
        depths = torch.tensor(list(behind), dtype=torch.float64)
        values = torch.tensor(list(behind.values()), dtype=torch.float64)
        apart = depths - depths.mean()
        block = ((apart @ values) / (apart @ apart)).item()
        return cls(values.mean().item() - block * depths.mean().item(), block, lexical)

    def ideal(self, depth: int, exit_layers: Tensor, reads_lexical: bool) -> float:
        """Return the speed-up over full depth without exits if embedding, layers and lexical exit were the only costs.

        Args:
            depth: layers of the full model.
            exit_layers: (N,) at which each row leaves; at layer 0 it takes the lexical exit alone.
            reads_lexical: whether the rows run it.
        """
        embedded = (exit_layers > 0).double().mean().item()
        mean_exit = exit_layers.double().mean().item()
        cost = self.lexical * reads_lexical + self.embed * embedded + self.block * mean_exit
        return (self.embed + depth * self.block) / cost


def time_batches(
    runs: Mapping[Name, Run], batches: Sequence[Inputs], rounds: int
) -> tuple[dict[Name, Times], dict[Name, list[Answers | Tensor]]]:
    """Time runs in turn, all batches at a turn; return the times and the answers, batch by batch.

    A turn begins with a batch that does not count: the run before has pushed this one's weights out of the cache, and
    its threads may still be waiting for work.
    """
    rows = torch.tensor([len(next(iter(batch.values()))) for batch in batches])
    seconds: dict[Name, list[list[float]]] = {name: [] for name in runs}
    answers: dict[Name, list[Answers | Tensor]] = {}

    def turn(name: Name, number: int) -> None:
        run = runs[name]
        if not number:
            answers[name] = [run(batch) for batch in batches]
            return
        run(batches[0])
        times = []
        for batch in batches:
            start = time.perf_counter()
            run(batch)
            times.append(time.perf_counter() - start)
        seconds[name].append(times)

    time_interleaved({name: partial(turn, name) for name in runs}, rounds)
    return {name: Times(torch.tensor(times, dtype=torch.float64), rows) for name, times in seconds.items()}, answers
