"""Run a model in torch, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from offramp.early_exit.loop import run
from offramp.model.config import MultiExitConfig
from offramp.model.exits import refuse_policy, refuse_unfitted
from offramp.model.modeling import MultiExitModel
from offramp.policies.base import Policy
from offramp.policies.fixed import Fixed
from offramp.policies.registry import load_policy
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers, ExitOutput


@final
@dataclass(frozen=True)
class TorchEngine:
    """Torch, layer by layer.

    Attributes:
        model: on the device to run on.
        threads: of the whole process, set when the engine is made; None = left as they are.
    """

    model: MultiExitModel
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def __reduce__(self) -> tuple[type[TorchEngine], tuple[MultiExitModel, int | None]]:
        """Pickle as a call, so that the other process sets its threads too."""
        return TorchEngine, (self.model, self.threads)

    @property
    def name(self) -> str:
        """Return the engine's name with its precision."""
        kind = self.model.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.model.dtype
        return f"torch-{'autocast-' if autocast else ''}{str(dtype).removeprefix('torch.')}"

    @property
    def config(self) -> MultiExitConfig:
        """Return the model's configuration."""
        config: MultiExitConfig = self.model.config
        return config

    @property
    def layers(self) -> Sequence[int]:
        """Return the layer number of each exit."""
        return self.model.layers

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that this engine cannot run."""
        if point is not None:
            refuse_policy(self.model, point)

    def rule(self, point: OperatingPoint | None) -> tuple[Policy, float | Sequence[float], Sequence[int]]:
        """Return a point's policy, its thresholds, and the layers whose exits it reads; None = full depth."""
        layers = self.model.layers
        if point is None:
            return Fixed(), float(layers[-1]), [layer for layer in layers if layer]  # no exit 0
        return load_policy(point.policy), point.thresholds, point.layers_read(layers)

    @torch.inference_mode()
    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """Answer a batch at a point; None = full depth."""
        policy, thresholds, read = self.rule(point)
        answers = run(self.model, policy, thresholds, self._to_device(inputs), exit_layers=read)
        return Answers(answers.logits.cpu(), answers.exit_layers.cpu(), answers.failed.cpu())

    @torch.inference_mode()
    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Return the outputs of every exit at full depth.

        Raises:
            InvalidInput: the exit before the first layer is not fitted.
        """
        refuse_unfitted(self.model.lexical_exit)
        was_training = self.model.training
        self.model.eval()
        out = self.model.all_exits(self._to_device(inputs))
        self.model.train(was_training)
        certainty = None if out.certainty is None else out.certainty.cpu()
        return ExitOutput(out.logits.cpu(), certainty, problem_type=out.problem_type)

    def _to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}
