"""Measures what each exit takes: everybody made to leave there, exits in turn."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from offramp.bench.timer import LayerCostModel, time_batches
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.examples import Text
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import resolve_engine
from offramp.inference.torch_engine import TorchEngine
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import default_policy
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import fixed_depth_point

TIMED = 64
"""Rows that are timed, where there are more, or four batches: each goes through every exit in every round."""


def measure_costs(
    model: MultiExitModel | TorchEngine | OnnxEngine | str | os.PathLike[str],
    rows: Sequence[Text] | Sequence[Mapping[str, Any]],
    engine: str = "torch",
    *,
    batch_size: int = 1,
    rounds: int = 5,
) -> CostTable:
    """Time every exit of a model, on this machine, which should do nothing else meanwhile.

    Each exit is timed itself, and not read off a straight line through some: with token exit a layer costs less than
    the one before, with exits behind some layers alone more lies between two. A time is the median of the rounds. Who
    goes deeper passes all that is shallower, so where the medians fall that is noise, and the higher one counts: what
    is promised of a table errs on the slow side. The embedding is where a straight line through all exits begins.

    Exits are scored on the way as the usual policy does it; in torch others take up to a tenth of a millisecond an exit
    more or less, which only small encoders notice. A graph scores with its own.

    Args:
        model: a model, what runs one (see `offramp.inference.load_engine`), or the folder or hub name of one.
        rows: texts and pairs, which need a model's folder, or rows that are tokenized already; like those to come. Of
            more than TIMED, or four batches, so many are timed, spread evenly over their lengths.
        engine: what runs a folder's model: "torch", "onnx" or "onnx-int8".
        batch_size: rows at once, of similar length.
        rounds: how often all rows go to every exit.

    Raises:
        InvalidInput: no rows; texts but no tokenizer; a model of one exit; counts below 1.
    """
    if min(batch_size, rounds) < 1 or not len(rows):
        raise InvalidInput(f"timing takes rows, batch_size and rounds, got {len(rows)}, {batch_size} and {rounds}")
    runs, tokens = _tokens(model, rows, engine)
    layers: list[int] = runs.config.exit_layers
    if len(layers) == 1:
        raise InvalidInput("a model of one exit has nowhere to leave early")
    chosen = _spread(tokens, max(TIMED, 4 * batch_size))
    pad = runs.config.pad_token_id
    batches = [collate([chosen[number] for number in numbers], pad) for numbers in length_sorted(chosen, batch_size)]
    policy = {"name": default_policy(runs.config.problem_type)}
    points = {layer: replace(fixed_depth_point(layer, layers), policy=policy) for layer in layers}
    times, _ = time_batches(
        {layer: partial(runs.answer, point=point) for layer, point in points.items()}, batches, rounds
    )
    medians = {layer: 1000 / times[layer].per_second for layer in layers}
    ms = tuple(accumulate(medians.values(), max))
    embed = min(max(LayerCostModel.through(medians).embed, 0.0), ms[0])
    lengths = [len(row["input_ids"]) for row in chosen if "input_ids" in row]
    mean = sum(lengths) / len(lengths) if lengths else None
    return CostTable(tuple(layers), ms, embed, runs.name, min(batch_size, len(chosen)), mean, _machine(runs))


def _tokens(
    model: MultiExitModel | TorchEngine | OnnxEngine | str | os.PathLike[str],
    rows: Sequence[Text] | Sequence[Mapping[str, Any]],
    engine: str,
) -> tuple[Engine, Sequence[Mapping[str, Any]]]:
    """What runs the model, and the rows as it reads them."""
    ready = [row for row in rows if isinstance(row, Mapping)]
    runs, tokenizer = resolve_engine(model, engine, of_texts=not ready)
    if ready:
        return runs, ready
    if tokenizer is None:
        raise InvalidInput("texts need a tokenizer: give measure_costs() the model's folder, or tokenized rows")
    texts = [row for row in rows if not isinstance(row, Mapping)]
    return runs, encode(tokenizer, texts, token_limit(tokenizer, runs.config.backbone))


def _spread(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """So many rows at most, at even distances from the longest to the shortest."""
    order = [number for (number,) in length_sorted(rows, 1)]
    count = min(most, len(order))
    return [rows[order[(2 * place + 1) * len(order) // (2 * count)]] for place in range(count)]


def _machine(engine: Engine) -> str:
    """The processor that runs the model, in words."""
    if isinstance(engine, TorchEngine) and engine.model.device.type == "cuda":
        return torch.cuda.get_device_name(engine.model.device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    words = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    return f"{words}, {torch.get_num_threads()} threads" if isinstance(engine, TorchEngine) else words
