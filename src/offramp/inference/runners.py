"""The form in which an engine runs: one call for a batch, or stage by stage."""

from __future__ import annotations

from importlib.util import find_spec
from typing import final

from offramp.inference.engine import Engine
from offramp.inference.flight import Runner
from offramp.inference.one_call import OneCall
from offramp.inference.onnx_engine import GraphEngine, OnnxEngine
from offramp.types.operating_point import OperatingPoint

BY_LEVEL = 8192
"""Texts from which on the levels of a graph save more time than loading them takes."""


@final
class Runners:
    """An engine at an operating point, in the form that suits the number of texts.

    A graph begins in its nested form, and goes over to its levels for good where many texts come at once. Pickled, it
    begins anew.

    Attributes:
        engine: runs the model.
        point: policy and thresholds; None = full depth.
        lexical: the first stage comes before the first layer, where there are several.
    """

    def __init__(self, engine: Engine, point: OperatingPoint | None) -> None:
        self.engine, self.point = engine, point
        self.lexical = point is not None and point.layers_read(engine.layers)[0] == 0
        self._runner = self._first()

    def __reduce__(self) -> tuple[type[Runners], tuple[Engine, OperatingPoint | None]]:
        return Runners, (self.engine, self.point)

    def choose(self, texts: int) -> Runner:
        """Return the engine for so many texts."""
        nested = isinstance(self._runner, OneCall)
        if nested and texts >= BY_LEVEL and isinstance(self.engine, OnnxEngine) and find_spec("onnx") is not None:
            self._runner = self.engine.by_level(self.point)
        return self._runner

    def _first(self) -> Runner:
        if not isinstance(self.engine, GraphEngine):
            from offramp.inference.torch_engine import TorchEngine
            from offramp.inference.torch_flight import TorchRunner

            if isinstance(self.engine, TorchEngine):
                return TorchRunner(self.engine, self.point)
        return OneCall(self.engine, self.point)
