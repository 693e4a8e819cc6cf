"""The protocol of an engine: the model in torch, or an exported graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from offramp.model.config import MultiExitConfig
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers, ExitOutput


class Engine(Protocol):
    """A runtime with one loaded model, which answers batches at operating points or at every exit."""

    @property
    def name(self) -> str:
        """Return the name with the precision, as traces and operating points record it."""

    @property
    def config(self) -> MultiExitConfig:
        """Return the model's configuration."""

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that this engine cannot run.

        Raises:
            InvalidInput: it is for another number of exits, or for a policy that the engine does not run.
        """

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """Answer a batch, (B, T) each, at a point; None = full depth. The answers are on the CPU."""

    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Return every exit's outputs for a batch at full depth: logits (L, B, C), certainty (L, B), on the CPU."""
