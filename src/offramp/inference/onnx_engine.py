"""Run an exported graph: what all runtimes share, and the engine of ONNX Runtime."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, final

import numpy as np

from offramp.data.batching import refuse_unknown_ids
from offramp.data.padding import Array
from offramp.inference.engine import Engine
from offramp.inference.point_check import GraphPoints
from offramp.types.export_command import export_options
from offramp.types.operating_point import OperatingPoint

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.inference.graph_inputs import GraphOutput
    from offramp.inference.onnx.metadata import GraphMetadata
    from offramp.inference.onnx.session import OnnxSession
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig
    from offramp.types.outputs import Answers, ExitOutput


class GraphSession(Protocol):
    """An exported graph, loaded in a runtime."""

    @property
    def metadata(self) -> GraphMetadata:
        """Return the metadata of the file."""

    @property
    def threads(self) -> int | None:
        """Return how many threads compute a batch; None = one a core."""

    def run(self, inputs: Mapping[str, Array], thresholds: float | Sequence[float] | Array) -> GraphOutput:
        """Answer a batch; each sample leaves at the first exit where its score reaches its threshold."""


@dataclass
class _LastLimits:
    """The last point and its limits: batch after batch has the same ones."""

    pair: tuple[OperatingPoint, Array] | None = None


@dataclass(frozen=True)
class GraphEngine(ABC):
    """A graph that `offramp export` wrote, in a runtime on the CPU.

    Attributes:
        graph: runs one policy, whatever the thresholds.
        config: of the model that it was made of.
    """

    graph: GraphSession
    config: MultiExitConfig | GraphConfig
    _last_limits: _LastLimits = field(default_factory=_LastLimits, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the engine's name with its precision."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Return the engine's name as users type it."""

    @property
    def layers(self) -> Sequence[int]:
        """Return the layer numbers of the exits that the graph holds."""
        return self.graph.metadata.layers

    @property
    def points(self) -> GraphPoints:
        """Return the operating points that the graph can run."""
        metadata = self.graph.metadata
        return GraphPoints(metadata, self.config, export_options(self.kind, metadata.precision))

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that this engine cannot run."""
        self.points.check(point)

    def _limits(self, point: OperatingPoint) -> Array:
        """Return a point's thresholds as an array, (1, L-1)."""
        last = self._last_limits.pair
        if last is None or last[0] is not point:
            self._last_limits.pair = last = (point, np.array([self.points.limits(point)], np.float32))
        return last[1]

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """Answer a batch at a point; None = full depth. See `answer_arrays`."""
        import torch  # a predictor takes the arrays themselves, and needs none

        from offramp.types.outputs import Answers

        return Answers(*map(torch.from_numpy, self.answer_arrays(_arrays(inputs), point)))

    def answer_arrays(self, inputs: Mapping[str, Array], point: OperatingPoint | None) -> tuple[Array, Array, Array]:
        """Return a batch's logits (B, C), exit layers (B,) and failures (B,) at a point; None = full depth.

        A row has failed where its logits are not finite. A row whose score alone is NaN leaves at the same exit with
        the same logits as in torch, but only torch marks it as failed: the graph returns no scores. Of offramp's
        policies that takes a gate whose certainty is NaN, or numbers that overflow float32 (logits of 1e30 and more).
        """
        output = self.run(inputs, math.inf if point is None else self._limits(point))
        # without a point the last exit's own answer, which an ensemble may have changed
        logits = output.logits_by_exit[:, -1] if point is None else output.logits
        return logits, output.exit_layers, np.logical_not(np.isfinite(logits).all(axis=-1))

    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Return the outputs of the graph's exits at full depth."""
        import torch

        from offramp.types.outputs import ExitOutput

        output = self.run(_arrays(inputs), math.inf)
        certainty = None if output.certainty_by_exit is None else torch.from_numpy(output.certainty_by_exit).T
        logits = torch.from_numpy(output.logits_by_exit).transpose(0, 1)
        return ExitOutput(logits, certainty, problem_type=self.config.problem_type)

    def run(self, inputs: Mapping[str, Array], limits: float | Array) -> GraphOutput:
        """Run the graph on a batch; see `GraphSession.run`.

        Raises:
            InvalidInput: token ids that the model does not have; what the session refuses.
        """
        ids = inputs.get("input_ids")
        if ids is not None and ids.size:
            refuse_unknown_ids(int(ids.min()), int(ids.max()), self.config.vocab_size)
        return self.graph.run(inputs, limits)


@final
@dataclass(frozen=True)
class OnnxEngine(GraphEngine):
    """A graph that `offramp export` wrote, in ONNX Runtime."""

    graph: OnnxSession

    @property
    def name(self) -> str:
        """Return the engine's name with its precision."""
        return f"onnx-{self.graph.metadata.precision}"

    @property
    def kind(self) -> str:
        """Return the engine's name as users type it."""
        return "onnx-int8" if self.graph.metadata.precision == "int8" else "onnx"


def leave_layers(engine: Engine) -> tuple[int, ...]:
    """Return the layers at which rows can leave an engine: of a graph those that its policy reads."""
    return engine.graph.metadata.layers_read if isinstance(engine, GraphEngine) else tuple(engine.layers)


def _arrays(inputs: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in inputs.items()}
