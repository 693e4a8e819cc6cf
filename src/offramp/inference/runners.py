"""How an engine runs rows: in one call or stage by stage, and how many rows make a batch."""

from __future__ import annotations

from offramp.inference.engine import Engine
from offramp.inference.flight import Runner
from offramp.inference.one_call import OneCall
from offramp.inference.onnx_engine import GraphEngine
from offramp.types.operating_point import OperatingPoint

LEXICAL_BATCH, MOST_BATCHES = 4, 8
"""How many batches an exit before the first layer takes at once: as a stage of its own, and at most in one call."""


def runner_of(engine: Engine, point: OperatingPoint | None) -> Runner:
    """Return an engine at a point: a model in torch exit by exit, any other engine with one call for a batch."""
    if not isinstance(engine, GraphEngine):
        from offramp.inference.torch_engine import TorchEngine
        from offramp.inference.torch_flight import TorchRunner

        if isinstance(engine, TorchEngine):
            return TorchRunner(engine, point)
    return OneCall(engine, point)


def rows_by_stage(engine: Engine, point: OperatingPoint | None, stages: int, batch_size: int) -> list[int]:
    """Return the rows of a batch at each stage, of which about `batch_size` are to reach the first layer.

    Rows that leave before the first layer cost next to nothing, so a batch may begin with more.
    """
    sizes = [batch_size] * stages
    if point is not None and point.layers_read(engine.layers)[0] == 0:
        sizes[0] *= LEXICAL_BATCH if stages > 1 else _before_layer_1(engine, point)
    return sizes


def _before_layer_1(engine: Engine, point: OperatingPoint) -> int:
    """Return how many rows come before the first layer for one that goes on to it, at least.

    By Markov's inequality, from the mean exit that was measured: a row that goes on leaves at the next exit or later.
    """
    if point.measured is None:
        return 1
    behind = point.layers_read(engine.layers)[1]
    return max(1, min(int(behind / max(point.measured.mean_exit, 1e-9)), MOST_BATCHES))
