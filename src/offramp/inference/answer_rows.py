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
        failed: (B,) bool: logits that are not finite.
        logits_by_exit: (B, E, C) float32 of the exits of `layers`, NaN where a row did not come; None where
            they are not wanted.
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

    Where the plans are all one point without a bound, the answers are those of the predictor, to the last bit.
    """
    if not isinstance(engine, GraphEngine):
        raise InvalidInput("only exported graphs are served")  # the other engines follow
    metadata = engine.graph.metadata
    limits = np.array([_limits(engine, plan) for plan in plans], np.float32)
    output = engine.graph.run(inputs, limits)
    at_full_depth = np.array([plan.point is None for plan in plans]) & (output.exit_layers == metadata.layers[-1])
    logits = np.where(at_full_depth[:, None], output.logits_by_exit[:, -1], output.logits)
    read = [metadata.layers.index(layer) for layer in metadata.layers_read]
    exits = output.logits_by_exit[:, read] if by_exit else None
    failed: Array = np.logical_not(np.isfinite(logits).all(axis=-1))
    return RowAnswers(logits, output.exit_layers, failed, exits, metadata.layers_read)


def _limits(engine: GraphEngine, plan: RowPlan) -> list[float]:
    layers, read = engine.graph.metadata.layers, engine.graph.metadata.layers_read
    limits = [math.inf] * (len(layers) - 1) if plan.point is None else engine.points.limits(plan.point)
    if plan.max_depth is not None and plan.max_depth < layers[-1]:
        reached = max(layer for layer in read if layer <= plan.max_depth)
        limits[layers.index(reached)] = -math.inf
    return limits
