"""Run an exported graph in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, final

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from offramp.data.batching import check_token_ids
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.onnx.metadata import read_policy_key
from offramp.model.config import MultiExitConfig
from offramp.policies.registry import WRAPPERS, load_policy, policy_text
from offramp.types.exit_names import layers_text
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers, ExitOutput

if TYPE_CHECKING:
    from offramp.inference.onnx.session import OnnxSession

logger = logging.get_logger(__name__)


@final
@dataclass(frozen=True)
class OnnxEngine:
    """A graph that `offramp export` wrote, in ONNX Runtime on the CPU.

    Attributes:
        graph: runs one policy, whatever the thresholds.
        config: of the model that it was made of.
    """

    graph: OnnxSession
    config: MultiExitConfig

    @property
    def name(self) -> str:
        """Return the engine's name with its precision."""
        return f"onnx-{self.graph.metadata.precision}"

    @property
    def layers(self) -> Sequence[int]:
        """Return the layer numbers of the exits that the graph holds."""
        return self.graph.metadata.layers

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that this engine cannot run."""
        if point is None:
            return
        if load_policy(point.policy) != load_policy(self.graph.metadata.policy):
            self._refuse(point)
        self.limits(point)
        measured = point.measured.provenance.get("engine", self.name) if point.measured is not None else self.name
        if measured != self.name and "onnx-int8" in (measured, self.name):
            logger.warning("this operating point was measured with %s and runs with %s", measured, self.name)

    def limits(self, point: OperatingPoint) -> list[float]:
        """Return a point's threshold for each exit of the graph but the last; for those that it does not read, inf.

        Raises:
            InvalidInput: it reads other exits than the graph's policy does.
        """
        read = point.layers_read(self.config.layers)
        if read != self.graph.metadata.layers_read:
            self._refuse(point)
        by_layer = dict(zip(read, point.thresholds, strict=False))  # none for the last one
        return [by_layer.get(layer, math.inf) for layer in self.layers[:-1]]

    def _refuse(self, point: OperatingPoint) -> NoReturn:
        """Refuse a point for another policy than the graph's, or for other exits, and say what makes it run."""
        metadata, read = self.graph.metadata, point.layers_read(self.config.layers)
        runs, wanted = policy_text(metadata.policy), policy_text(point.policy)
        if read != metadata.layers_read:
            runs = f"{runs} at layers {layers_text(metadata.layers_read)}"
            wanted = f"{wanted} at layers {layers_text(read)}"
        raise InvalidInput(
            f"the graph runs the policy {runs}, the operating point is for {wanted}; {self._remedy(point.policy, read)}"
        )

    def _remedy(self, policy: Mapping[str, Any], read: tuple[int, ...]) -> str:
        """Return a sentence that says how to make a graph run a policy at some exits."""
        metadata, wanted = self.graph.metadata, load_policy(policy)
        command = f"offramp export FOLDER{' --int8' if metadata.precision == 'int8' else ''}"
        layers = metadata.subset(read)
        if left_out := [layer for layer in read if layer not in metadata.layers]:
            left = layers_text(left_out)
            return f"the file left out the exits at layers {left}: save the point, and `{command}` writes them"
        entries = map(read_policy_key, metadata.policies)
        if all(held != layers or load_policy(data) != wanted for data, held in entries):
            return f"the file does not hold its steps: save the point, and `{command}` writes them"
        if layers is not None or any(wrapper in policy for wrapper in WRAPPERS):  # which `--policy` cannot name
            return f'save the point as "default", and `{command}` makes a graph that runs it'
        return f"`{command} --policy {policy['name']}` lets the graph run it"

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """Answer a batch at a point; None = full depth.

        A row has failed where its logits are not finite. A row whose score alone is NaN leaves at the same exit with
        the same logits as in torch, but only torch marks it as failed: the graph returns no scores. Of offramp's
        policies that takes a gate whose certainty is NaN, or numbers that overflow float32 (logits of 1e30 and more).
        """
        output = self.graph.run(_arrays(inputs, self.config), math.inf if point is None else self.limits(point))
        # without a point the last exit's own answer, which an ensemble may have changed
        logits = torch.from_numpy(output.logits_by_exit[:, -1] if point is None else output.logits)
        return Answers(logits, torch.from_numpy(output.exit_layers), ~logits.isfinite().all(dim=-1))

    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Return the outputs of the graph's exits at full depth."""
        output = self.graph.run(_arrays(inputs, self.config), math.inf)
        certainty = None if output.certainty_by_exit is None else torch.from_numpy(output.certainty_by_exit).T
        logits = torch.from_numpy(output.logits_by_exit).transpose(0, 1)
        return ExitOutput(logits, certainty, problem_type=self.config.problem_type)


def leave_layers(engine: Engine) -> tuple[int, ...]:
    """Return the layers at which rows can leave an engine: of a graph those that its policy reads."""
    return engine.graph.metadata.layers_read if isinstance(engine, OnnxEngine) else tuple(engine.layers)


def _arrays(inputs: Mapping[str, Tensor], config: MultiExitConfig) -> dict[str, np.ndarray[Any, Any]]:
    if "input_ids" in inputs:
        check_token_ids(inputs["input_ids"], config.vocab_size)
    return {name: value.numpy() for name, value in inputs.items()}
