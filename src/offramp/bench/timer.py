"""Wall time of runs that take turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from offramp.bench.contestant import TextAnswers, TextRun
from offramp.data.rows import Text
from offramp.types.outputs import Answers

SETTLE_S = 0.05
"""Seconds between two calls: threads of ONNX Runtime wait for more work for some 20 ms, on a core that others need."""
REQUESTS, LEAST_REQUESTS = 32, 8  # texts in timed requests, and the number of requests
Name = TypeVar("Name", bound=Hashable)
Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Answers | Tensor]
"""Answers a batch; a full-depth model may return logits (B, C) alone."""


def time_interleaved(
    runs: Mapping[Name, Callable[[int], object]], rounds: int, label: str = "measure"
) -> dict[Name, list[float]]:
    """Return the seconds of every call, by run; each round calls all runs once, after one round that does not count.

    Python's garbage is collected before a call, not during it, and threads of the run before get time to stop spinning.

    Args:
        runs: functions of the number of the round.
        rounds: number of rounds that count.
        label: of the progress bar; empty = no bar.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    turns = (rounds + 1) * len(runs)
    with _no_garbage(), tqdm(total=turns, desc=label, unit="turn", disable=None if label else True, leave=False) as bar:
        for number in range(rounds + 1):
            for name, run in runs.items():
                gc.collect()
                time.sleep(SETTLE_S)
                start = time.perf_counter()
                run(number)
                if number:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Collect no garbage meanwhile, and leave what there is out of later collections, which then take no time."""
    enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


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
class TextTimes:
    """Times of one contestant.

    Attributes:
        texts: number of texts of a pass.
        passes: seconds of each pass over all texts.
        requests: times of single requests, each of as many texts as a batch.
    """

    texts: int
    passes: list[float]
    requests: Times

    @property
    def per_second(self) -> float:
        """Return the texts a second in the median pass."""
        return self.texts / median(self.passes)


@dataclass(frozen=True)
class SpeedupRange:
    """A ratio of two speeds: the median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, slower: Times | TextTimes, faster: Times | TextTimes) -> SpeedupRange:
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
        full = self.embed + depth * self.block
        return full / (self.lexical * reads_lexical + full * self.share(depth, exit_layers))

    def share(self, depth: int, exit_layers: Tensor) -> float:
        """Return which share of full depth's embedding and layers runs; arguments as in `ideal`."""
        embedded = (exit_layers > 0).double().mean().item()
        mean_exit = exit_layers.double().mean().item()
        return (self.embed * embedded + self.block * mean_exit) / (self.embed + depth * self.block)


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


def time_texts(
    runs: Mapping[Name, TextRun], texts: Sequence[Text], batch_size: int, rounds: int
) -> tuple[dict[Name, TextTimes], dict[Name, TextAnswers]]:
    """Time runs in turn, from texts to answers; return the times and the answers.

    A turn is a request that does not count, a pass over all texts in one call, which a run may spread over its workers,
    and a few requests one after the other, each of as many texts as a batch. The first request gives threads of the run
    before the time to fall asleep: while they wait for work they take a core for some milliseconds.
    """
    starts = range(0, len(texts), batch_size)
    count = min(len(starts), max(REQUESTS // batch_size, LEAST_REQUESTS))
    chosen = [starts[index * len(starts) // count] for index in range(count)]
    requests = [texts[start : start + batch_size] for start in chosen]
    passes: dict[Name, list[float]] = {name: [] for name in runs}
    seconds: dict[Name, list[list[float]]] = {name: [] for name in runs}
    answers: dict[Name, TextAnswers] = {}

    def turn(name: Name, number: int) -> None:
        run = runs[name]
        if not number:
            answers[name] = run(texts, batch_size)
            return
        run(requests[0], batch_size)
        passes[name].append(_seconds(run, texts, batch_size))
        seconds[name].append([_seconds(run, request, batch_size) for request in requests])

    time_interleaved({name: partial(turn, name) for name in runs}, rounds)
    rows = torch.tensor([len(request) for request in requests])
    times = {
        name: TextTimes(len(texts), passes[name], Times(torch.tensor(seconds[name], dtype=torch.float64), rows))
        for name in runs
    }
    return times, answers


def _seconds(run: TextRun, texts: Sequence[Text], batch_size: int) -> float:
    start = time.perf_counter()
    run(texts, batch_size)
    return time.perf_counter() - start
