"""Time on the clock: rivals in turn, so that a noisy machine is noisy for all of them."""

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
"""Answers a batch; what always goes to full depth may give logits (B, C) alone."""


def time_interleaved(rivals: Mapping[Name, Callable[[int], object]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of every call, by rival; each round runs all rivals once, after one round that does not count.

    Args:
        rivals: what to run, given the number of the round.
        rounds: how many times.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in rivals}
    with tqdm(total=(rounds + 1) * len(rivals), desc="measure", unit="turn", disable=None, leave=False) as bar:
        for number in range(rounds + 1):
            for name, run in rivals.items():
                start = time.perf_counter()
                run(number)
                if number:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number, the mean of the two."""
    return torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


@dataclass(frozen=True)
class Times:
    """How long one rival took.

    Attributes:
        seconds: (R, K) of each of K batches in each of R rounds.
        rows: (K,) of each batch.
    """

    seconds: Tensor
    rows: Tensor

    @property
    def passes(self) -> list[float]:
        """Seconds for all batches, in each round."""
        seconds: list[float] = self.seconds.sum(dim=1).tolist()
        return seconds

    @property
    def per_second(self) -> float:
        """Samples a second, in the median round."""
        return self.rows.sum().item() / median(self.passes)

    def ms(self, quantile: float) -> float:
        """Milliseconds a sample, at a quantile of the batches; each batch counts with the median of its rounds.

        So it tells how far texts differ in what they take; what disturbed the machine in one round is left out.
        """
        batches = self.seconds.quantile(0.5, dim=0) / self.rows  # (K,)
        return 1000 * batches.quantile(quantile).item()


@dataclass(frozen=True)
class SpeedupRange:
    """How many times as fast as another: the median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, slower: Times, faster: Times) -> SpeedupRange:
        """Of two rivals, round by round."""
        ratios = [one / other for one, other in zip(slower.passes, faster.passes, strict=True)]
        return cls(median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class LayerCostModel:
    """What a pass through k layers takes: embed + k block, in seconds."""

    embed: float
    block: float

    @classmethod
    def through(cls, seconds: Mapping[int, float]) -> LayerCostModel:
        """The least squares of seconds by depth in layers, two depths or more."""
        depths = torch.tensor(list(seconds), dtype=torch.float64)
        values = torch.tensor(list(seconds.values()), dtype=torch.float64)
        apart = depths - depths.mean()
        block = ((apart @ values) / (apart @ apart)).item()
        return cls(values.mean().item() - block * depths.mean().item(), block)

    def ideal(self, depth: int, mean_exit: float) -> float:
        """The speed-up over full depth if nothing but layers cost anything."""
        return (self.embed + depth * self.block) / (self.embed + mean_exit * self.block)


def time_batches(
    rivals: Mapping[Name, Run], batches: Sequence[Inputs], rounds: int
) -> tuple[dict[Name, Times], dict[Name, list[Answers | Tensor]]]:
    """Let rivals take turns, all batches at a turn; also what each of them answered, batch by batch.

    A turn begins with a batch that does not count: the rival before has pushed this one's weights out of the cache, and
    its threads may still be waiting for more to do.
    """
    rows = torch.tensor([len(next(iter(batch.values()))) for batch in batches])
    seconds: dict[Name, list[list[float]]] = {name: [] for name in rivals}
    answers: dict[Name, list[Answers | Tensor]] = {}

    def turn(name: Name, number: int) -> None:
        run = rivals[name]
        if not number:
            answers[name] = [run(batch) for batch in batches]
            return
        run(batches[0])
        taken = []
        for batch in batches:
            start = time.perf_counter()
            run(batch)
            taken.append(time.perf_counter() - start)
        seconds[name].append(taken)

    time_interleaved({name: partial(turn, name) for name in rivals}, rounds)
    return {name: Times(torch.tensor(each, dtype=torch.float64), rows) for name, each in seconds.items()}, answers
