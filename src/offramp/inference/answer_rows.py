"""Answer a batch whose rows have operating points and depths of their own. NumPy in, NumPy out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp.data.padding import Array
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.one_call import OneCall
from offramp.inference.onnx_engine import GraphEngine
from offramp.types.operating_point import OperatingPoint


@final
@dataclass(frozen=True)
class RowPlan:
    """How deep a row may go.

    Attributes:
        point: policy and thresholds; None = full depth.
        max_depth: the row leaves at the last exit that is read and no deeper than this layer, if not before; None = no
            bound.
    """

    point: OperatingPoint | None
    max_depth: int | None = None


@final
@dataclass(frozen=True)
class RowAnswers:
    """The answers of a batch, in its order.

    Attributes:
        logits: (B, C) float32.
        exit_layers: (B,) int64, 0 = before the first layer.
        failed: (B,) bool: logits that are not finite, and for torch a score that is NaN.
        logits_by_exit: (B, E, C) float32 of the exits of `layers`, NaN where a row did not come or its point does not
            read the exit; None where they are not wanted.
        layers: the layer numbers of the exits of `logits_by_exit`.
    """

    logits: Array
    exit_layers: Array
    failed: Array
    logits_by_exit: Array | None
    layers: tuple[int, ...]


def answer_rows(
    engine: Engine, inputs: Mapping[str, Array], plans: Sequence[RowPlan], by_exit: bool = False
) -> RowAnswers:
    """Answer a padded batch, each row by its plan; see `offramp.data.padding.padded` for the inputs.

    Where the plans are all one point without a bound, the answers are those of the predictor, to the last bit. A row
    without a point gets the own logits of the exit at which it leaves.

    Raises:
        InvalidInput: no exit is within a bound; or an engine of a class that is not offramp's, which takes points
            alone, is to answer at a bound or by exit.
    """
    if isinstance(engine, GraphEngine):
        return _by_graph(engine, inputs, plans, by_exit)
    from offramp.inference.torch_engine import TorchEngine

    if isinstance(engine, TorchEngine):
        from offramp.inference.torch_rows import by_torch

        return by_torch(engine, inputs, plans, by_exit)
    return _by_point(engine, inputs, plans, by_exit)


def rows_by_plan(plans: Sequence[RowPlan]) -> list[tuple[OperatingPoint | None, list[int]]]:
    """Return the points of plans, each with the numbers of its rows."""
    groups: list[tuple[OperatingPoint | None, list[int]]] = []
    for row, plan in enumerate(plans):
        same = next((rows for point, rows in groups if point is plan.point or point == plan.point), None)
        if same is None:
            groups.append((plan.point, [row]))
        else:
            same.append(row)
    return groups


def last_exit(read: Sequence[int], plan: RowPlan) -> int | None:
    """Return the layer at which a row leaves at the latest; None = the model's last.

    Args:
        read: the layers of the exits that are read, increasing.
        plan: of the row.

    Raises:
        InvalidInput: no exit is within the bound.
    """
    if plan.max_depth is None or plan.max_depth >= read[-1]:
        return None
    if plan.max_depth < read[0]:
        raise InvalidInput(f"max_depth must be at least {read[0]}, the first exit; got {plan.max_depth}")
    return max(layer for layer in read if layer <= plan.max_depth)


def _by_graph(engine: GraphEngine, inputs: Mapping[str, Array], plans: Sequence[RowPlan], by_exit: bool) -> RowAnswers:
    metadata, first = engine.graph.metadata, plans[0]
    if not by_exit and first.max_depth is None and all(plan == first for plan in plans):
        return RowAnswers(*engine.answer_arrays(inputs, first.point), None, metadata.layers_read)
    output = engine.run(inputs, np.array([_limits(engine, plan) for plan in plans], np.float32))
    own = output.logits_by_exit[np.arange(len(plans)), np.searchsorted(metadata.layers, output.exit_layers)]
    logits = np.where([[plan.point is None] for plan in plans], own, output.logits)
    read = np.searchsorted(metadata.layers, metadata.layers_read)
    exits = output.logits_by_exit[:, read] if by_exit else None
    return RowAnswers(logits, output.exit_layers, _not_finite(logits), exits, metadata.layers_read)


def _limits(engine: GraphEngine, plan: RowPlan) -> list[float]:
    """Return a row's threshold for each exit of the graph but the last."""
    layers = engine.graph.metadata.layers
    limits = [math.inf] * (len(layers) - 1) if plan.point is None else engine.points.limits(plan.point)
    last = last_exit(engine.graph.metadata.layers_read, plan)
    if last is not None:
        limits[layers.index(last)] = -math.inf
    return limits


def _by_point(engine: Engine, inputs: Mapping[str, Array], plans: Sequence[RowPlan], by_exit: bool) -> RowAnswers:
    """Answer with an engine of another class, a call for each point."""
    if by_exit or any(plan.max_depth is not None for plan in plans):
        raise InvalidInput(f"{engine.name} answers at operating points alone, without max_depth and details")
    logits = np.empty((len(plans), engine.config.num_labels), np.float32)
    exit_layers, failed = np.empty(len(plans), np.int64), np.empty(len(plans), bool)
    for point, rows in rows_by_plan(plans):
        some = {name: value[rows] for name, value in inputs.items()}
        logits[rows], exit_layers[rows], failed[rows] = OneCall(engine, point).answer(some)
    return RowAnswers(logits, exit_layers, failed, None, tuple(engine.layers))


def _not_finite(logits: Array) -> Array:
    failed: Array = np.logical_not(np.isfinite(logits).all(axis=-1))
    return failed
