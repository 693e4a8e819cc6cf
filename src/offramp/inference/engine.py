"""The protocol of an engine, which runs a model, and the engines' names. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from offramp.types.graph_file import GRAPHS

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig
    from offramp.types.operating_point import OperatingPoint
    from offramp.types.outputs import Answers, ExitOutput

ENGINES = ("torch", *GRAPHS)
"""The names that users type."""


@runtime_checkable
class Engine(Protocol):
    """A runtime with one loaded model, which answers batches at operating points or at every exit.

    An object of any class with these names can be given where a model can.
    """

    @property
    def name(self) -> str:
        """Return the name with the precision, as traces and operating points record it."""

    @property
    def config(self) -> MultiExitConfig | GraphConfig:
        """Return the model's configuration, of a graph the part that it needs."""

    @property
    def layers(self) -> Sequence[int]:
        """Return the layer numbers of the exits that the engine answers at, increasing; 0 = before the first layer."""

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that this engine cannot run.

        Raises:
            InvalidInput: it is for other exits, or for a policy that the engine does not run.
        """

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """Answer a batch, (B, T) each, at a point; None = full depth. The answers are on the CPU.

        Rows with logits that are not finite have failed; those with a NaN score too, where the engine knows the score.
        """

    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Return every exit's outputs for a batch at full depth: logits (L, B, C), certainty (L, B), on the CPU."""
