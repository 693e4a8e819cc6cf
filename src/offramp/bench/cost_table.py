"""Measure the time of each exit: all rows leave there, exits in turn."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from offramp.bench.exit_prices import Times, cut_points, reading, with_fewer_exits, with_prices
from offramp.bench.timer import LayerCostModel, median, time_interleaved
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.rows import Text
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.load_engine import threads_of
from offramp.inference.onnx_engine import leave_layers
from offramp.inference.record import resolve_engine
from offramp.inference.torch_engine import TorchEngine
from offramp.inference.workers import WorkerPool, shared
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import default_unfitted_policy
from offramp.types.cost_table import CostTable, processor
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from offramp.types.outputs import Answers

TIMED = 64
"""The largest number of rows that are timed, or four batches: each goes to every exit in every round."""


def measure_costs(
    model: MultiExitModel | Engine | str | os.PathLike[str],
    rows: Sequence[Text] | Sequence[Mapping[str, Any]],
    engine: str = "torch",
    *,
    batch_size: int = 1,
    rounds: int = 5,
    threads: int | None = None,
    workers: int | None = None,
) -> CostTable:
    """Time every exit of a model on this machine, which should do nothing else meanwhile.

    Every exit is timed itself, not estimated by a straight line through some: with token exit a layer costs less than
    the one before, and exits need not be equally far apart. A time is the median of the rounds. A deeper exit passes
    all shallower ones, so a median below the previous exit's is noise, and the higher one counts: the table errs on
    the slow side. The embedding is the intercept of a straight line through all exits behind a layer, less the time of
    the exit before the first layer, if there is one.

    Prices: an exit takes the difference between full depth with and without it, of the same engine, round by round. A
    graph is made anew for it, without the exits and in memory; an engine that can do neither has no prices. A cut takes
    what a run in which few rows of every batch leave at an exit takes more than these rows' times.

    Exits are scored with the default policy; in torch other policies take up to a tenth of a millisecond an exit more
    or less, which matters for small encoders alone. A graph scores with its own; an exit that it holds and that policy
    does not read takes as long as the next one that it reads.

    Args:
        model: a model, an engine (see `offramp.inference.engine`), or a model's folder or hub name.
        rows: texts and pairs, which need a model's folder, or tokenized rows, of typical lengths. At most TIMED, or
            four batches, are timed, spread evenly over their lengths.
        engine: for a folder's model: "torch", "onnx", "onnx-int8" or "openvino".
        batch_size: rows at once, of similar length.
        rounds: how often all rows go to every exit.
        threads: that compute a batch, for a folder's model (see `offramp.Predictor.load`).
        workers: among which a batch is divided, likewise.

    Raises:
        InvalidInput: no rows; texts but no tokenizer; a model of one exit; counts below 1.

    Example:
        >>> table = offramp.measure_costs(model, rows[:2], rounds=1)
        >>> table.layers, table.engine
        ((1, 2, 3, 4), 'torch-float32')
    """
    if min(batch_size, rounds) < 1 or not len(rows):
        raise InvalidInput(f"timing takes rows, batch_size and rounds, got {len(rows)}, {batch_size} and {rounds}")
    loaded, tokens, workers = _tokens(model, rows, engine, threads, workers)
    if len(leave_layers(loaded)) == 1:
        raise InvalidInput("a model of one exit has nowhere to leave early")
    timed = _spread(tokens, max(TIMED, 4 * batch_size))
    order = length_sorted(timed, batch_size)
    batches = [_parts(numbers, timed, workers, loaded.config.pad_token_id) for numbers in order]
    times = _Batches(loaded, batches, len(timed), WorkerPool(workers)).time(rounds)
    lengths = [len(row["input_ids"]) for row in timed if "input_ids" in row]
    mean = sum(lengths) / len(lengths) if lengths else None
    size, machine, threads = min(batch_size, len(timed)), _machine(loaded), threads_of(loaded)
    return CostTable(*times[:3], loaded.name, size, mean, machine, threads, workers, *times[3:])


@dataclass(frozen=True)
class _Batches:
    """Batches of rows, each divided among workers, and the engine that answers them."""

    engine: Engine
    batches: Sequence[Sequence[Mapping[str, Tensor]]]
    rows: int
    pool: WorkerPool

    def time(self, rounds: int) -> Times:
        """Time every exit, and where an engine can be made of it that reads fewer, what exits and cuts take."""
        layers, engine = tuple(self.engine.layers), self.engine
        if leave_layers(engine) != layers:  # a graph may hold exits that its policy does not read
            engine = reading(engine, layers) or engine
        read = leave_layers(engine)
        runs: dict[Hashable, tuple[Engine, OperatingPoint]] = {layer: (engine, self._at(layer, read)) for layer in read}
        fewer = with_fewer_exits(engine, layers) if read == layers else {}
        runs |= {some: (other, self._at(some[-1], some)) for some, other in fewer.items()}
        cuts = cut_points(engine, self.batches, layers, self._policy) if fewer else {}
        runs |= {("cut", layer): (engine, point) for layer, point in cuts.items()}
        seconds = time_interleaved({name: partial(self._answer, *run) for name, run in runs.items()}, rounds)
        milliseconds = {name: [1000 * duration / self.rows for duration in times] for name, times in seconds.items()}
        times = self._times(milliseconds, read)
        if not fewer:
            return times
        leaving = {layer: torch.cat([one.exit_layers for one in self._answer(engine, cuts[layer])]) for layer in cuts}
        return with_prices(times, milliseconds, leaving)

    def _times(self, milliseconds: Mapping[Hashable, Sequence[float]], read: Sequence[int]) -> Times:
        """Return the times of the exits at these layers, where rows can leave, and of the others, without prices."""
        layers = tuple(self.engine.layers)
        medians = {layer: median(milliseconds[layer]) for layer in read}
        ms = tuple(accumulate((medians[read[bisect_left(read, layer)]] for layer in layers), max))
        first = ms[1] - ms[0] if layers[0] == 0 else ms[0]  # of the first exit behind a layer
        return layers, ms, min(max(LayerCostModel.through(medians).embed, 0.0), first), None, None

    @property
    def _policy(self) -> dict[str, Any]:
        """Return the policy that scores exits where an engine can run any."""
        return {"name": default_unfitted_policy(self.engine.config.problem_type)}

    def _at(self, layer: int, read: Sequence[int]) -> OperatingPoint:
        """Return a point that reads some exits and has all rows leave at one."""
        return replace(fixed_depth_point(layer, read), policy=self._policy)

    def _answer(self, engine: Engine, point: OperatingPoint, _: int = 0) -> list[Answers]:
        """Answer all batches."""
        run = partial(engine.answer, point=point)
        return [answers for parts in self.batches for answers in self.pool.map(run, parts)]


def _parts(
    numbers: Sequence[int], rows: Sequence[Mapping[str, Any]], workers: int, pad: int | None
) -> list[dict[str, Tensor]]:
    """Return a batch of rows as the parts that workers answer at the same time."""
    lengths = [len(row.get("input_ids", ())) for row in rows]
    return [collate([rows[number] for number in part], pad) for part in shared([numbers], lengths, workers)]


def _tokens(
    model: MultiExitModel | Engine | str | os.PathLike[str],
    rows: Sequence[Text] | Sequence[Mapping[str, Any]],
    engine: str,
    threads: int | None,
    workers: int | None,
) -> tuple[Engine, Sequence[Mapping[str, Any]], int]:
    """Return the engine of a model, the rows tokenized, and the number of workers."""
    tokenized = [row for row in rows if isinstance(row, Mapping)]
    loaded, tokenizer, count = resolve_engine(model, engine, not tokenized, threads, workers)
    if tokenized:
        return loaded, tokenized, count
    if tokenizer is None:
        raise InvalidInput("texts need a tokenizer: give measure_costs() the model's folder, or tokenized rows")
    texts = [row for row in rows if not isinstance(row, Mapping)]
    return loaded, encode(tokenizer, texts, token_limit(tokenizer, loaded.config.backbone)), count


def _spread(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Return at most `most` rows, evenly spaced from the longest to the shortest."""
    order = [number for (number,) in length_sorted(rows, 1)]
    count = min(most, len(order))
    return [rows[order[(2 * index + 1) * len(order) // (2 * count)]] for index in range(count)]


def _machine(engine: Engine) -> str:
    """Describe the processor that runs the model."""
    if isinstance(engine, TorchEngine) and engine.model.device.type == "cuda":
        return torch.cuda.get_device_name(engine.model.device)
    return processor()
