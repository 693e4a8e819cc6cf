"""What reading an exit and cutting a batch take: the same engine timed with fewer exits, and where some rows leave."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from offramp.bench.timer import median
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.onnx_engine import GraphEngine, OnnxEngine
from offramp.policies.registry import load_policy
from offramp.policies.replay import run_policy
from offramp.types.graph_file import WEIGHTS
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from offramp.types.trace import Trace

Prices = tuple[float, ...] | None
Times = tuple[tuple[int, ...], tuple[float, ...], float, Prices, Prices]
"""Layers, ms, embed_ms, exit_ms and cut_ms of a cost table (`offramp.types.cost_table`)."""
SLACK = 1e-4
"""Below a score, where the rows that have it are to leave: another batch moves it by rounding."""


def reading(engine: Engine, layers: Sequence[int]) -> Engine | None:
    """Return an engine that can read these exits and no others; None where none can be made of it.

    In torch a point names the exits. Of a graph of ONNX Runtime another one is made that holds no others, in seconds.

    Args:
        engine: in which all exits can be read.
        layers: increasing, the last layer among them.
    """
    point = replace(fixed_depth_point(layers[-1], layers), policy=_policy_of(engine))
    try:
        engine.check(point)
        return engine
    except InvalidInput:
        return _graph_of(engine, layers) if isinstance(engine, OnnxEngine) else None


def _policy_of(engine: Engine) -> Mapping[str, Any]:
    """Return a policy, as data, that an engine runs."""
    return engine.graph.metadata.policy if isinstance(engine, GraphEngine) else {"name": "fixed"}


def _graph_of(engine: OnnxEngine, layers: Sequence[int]) -> OnnxEngine | None:
    """Return a graph that holds these exits alone, with the weights of another; None where its policies need memory."""
    import onnx  # an extra, which a model in torch is priced without

    from offramp.inference.onnx.assemble import assemble
    from offramp.inference.onnx.fewer_exits import with_exits
    from offramp.inference.onnx.metadata import policy_key, read_policy_key
    from offramp.inference.onnx.pieces import disassemble
    from offramp.inference.onnx.session import OnnxSession

    source = engine.graph.source
    if isinstance(source, bytes) or not set(layers) <= set(engine.layers):
        return None
    path = Path(os.path.realpath(source))
    parts = with_exits(disassemble(onnx.load(path, load_external_data=False)), layers)
    own = policy_key(engine.graph.metadata.policy)
    keys = [own] if own in parts.metadata.policies else list(parts.metadata.policies)
    if not keys:
        return None
    with TemporaryDirectory(prefix="offramp-", ignore_cleanup_errors=True) as folder:
        graph = Path(folder, path.name)
        onnx.save(assemble(parts, read_policy_key(keys[0])[0]), graph)
        graph.with_name(path.name + WEIGHTS).symlink_to(path.with_name(path.name + WEIGHTS))
        return replace(engine, graph=OnnxSession.load(graph, engine.graph.threads))


def with_fewer_exits(engine: Engine, layers: Sequence[int]) -> dict[tuple[int, ...], Engine]:
    """Return engines that read fewer exits, by the layers of these: without the lexical one, and the last one alone.

    Args:
        engine: to be priced.
        layers: of all exits that it reads.

    Returns:
        {} where an engine of fewer exits cannot be made.
    """
    engines = {}
    for fewer in dict.fromkeys((tuple(layer for layer in layers if layer), (layers[-1],))):
        if fewer == tuple(layers):
            continue
        other = reading(engine, fewer)
        if other is None:
            return {}
        engines[fewer] = other
    return engines


def with_prices(times: Times, milliseconds: Mapping[Hashable, Sequence[float]], leaving: Mapping[int, Tensor]) -> Times:
    """Return the times of all exits with the prices of exits and cuts; a price is never negative.

    Args:
        times: without prices.
        milliseconds: a row, of each round: by layer where all leave there; by layers at full depth where those exits
            alone are read; by ("cut", layer) at the point of `cut_points`.
        leaving: (N,) the layers at which rows leave at these points.
    """
    layers, ms, embed, *_ = times
    prices = exit_prices({**milliseconds, layers: milliseconds[layers[-1]]}, layers)
    steps = [later - before for before, later in pairwise((0.0, *ms))]
    steps[int(layers[0] == 0)] -= embed
    by_layer = dict(zip(layers, ms, strict=True))
    cuts: dict[int, float] = {}
    for layer, exits in leaving.items():
        without = sum(by_layer[exit] for exit in exits.tolist())
        more = len(exits) * median(milliseconds["cut", layer]) - without
        cuts[layer] = max(0.0, more) / max(1, int((exits > layer).sum()))
    behind = next((price for layer, price in cuts.items() if layer), 0.0)
    return layers, ms, embed, tuple(map(min, prices, steps)), tuple(cuts.get(layer, behind) for layer in layers[:-1])


def exit_prices(milliseconds: Mapping[Hashable, Sequence[float]], layers: Sequence[int]) -> tuple[float, ...]:
    """Return what reading each exit but the last takes, from full depth with fewer exits.

    A price is the median of the rounds' differences, at least 0. Exits behind a layer do the same work, so that each
    takes an equal part of what they take together: that is larger than the noise.

    Args:
        milliseconds: a row, of each round at full depth, by the layers of the exits that are read: all, those behind a
            layer, and the last one alone.
        layers: of all.
    """
    behind = tuple(layer for layer in layers if layer)

    def difference(more: tuple[int, ...], fewer: tuple[int, ...]) -> float:
        pairs = zip(milliseconds[more], milliseconds[fewer], strict=True)
        return max(0.0, median([one - other for one, other in pairs]))

    lexical = (difference(tuple(layers), behind),) if layers[0] == 0 else ()
    early = len(behind) - 1
    return (*lexical, *((difference(behind, behind[-1:]) / early,) * early if early else ()))


def cut_points(
    engine: Engine, batches: Sequence[Sequence[Mapping[str, Tensor]]], layers: Sequence[int], policy: Mapping[str, Any]
) -> dict[int, OperatingPoint]:
    """Return points at which some rows of every batch leave at one exit, as few as can be, and the others at the last.

    Args:
        engine: that runs them.
        batches: each divided among workers; a part of one row is never cut.
        layers: of the exits that it reads.
        policy: that scores them.

    Returns:
        By layer: of the exit before the first layer, which cuts the inputs, and of one in the middle, which cuts what
        goes from block to block.
    """
    parts = [inputs for batch in batches for inputs in batch]
    if all(len(next(iter(inputs.values()))) == 1 for inputs in parts):
        return {}
    points = {}
    scored = [_scores(engine, inputs, layers, policy) for inputs in parts]  # (L, B) each
    for number in {0} if len(layers) == 2 else {len(layers) // 2} | ({0} if layers[0] == 0 else set()):
        limit = min(scores[number].max().item() for scores in scored) - SLACK
        if math.isfinite(limit):
            thresholds = tuple(limit if exit == number else math.inf for exit in range(len(layers) - 1))
            points[layers[number]] = OperatingPoint(policy, thresholds, exit_layers=tuple(layers))
    return points


def _scores(engine: Engine, inputs: Mapping[str, Tensor], layers: Sequence[int], policy: Mapping[str, Any]) -> Tensor:
    """Return a policy's scores of a batch at the exits that are read, (L, B)."""
    out = engine.all_exits(inputs)
    trace = Trace(
        out.logits, certainty=out.certainty, layers=torch.tensor(engine.layers), problem_type=out.problem_type
    )
    return run_policy(load_policy(policy), trace.select(layers))[0]
