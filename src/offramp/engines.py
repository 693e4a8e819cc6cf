"""What runs a model: torch, or a graph that was exported. Both answer early, and both tell every exit for a trace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from offramp.early_exit.loop import run
from offramp.engine.about import ENGINES, GRAPHS, WEIGHTS, weights_digest
from offramp.errors import InvalidInput, UnknownName
from offramp.model.config import MultiExitConfig
from offramp.model.hub import find_file, load_config
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.policies.decision import thresholds_per_exit
from offramp.policies.fixed import Fixed
from offramp.policies.registry import WRAPPERS, load_policy, summarize
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers, ExitOutput

if TYPE_CHECKING:
    from offramp.engine.runner import Graph

logger = logging.get_logger(__name__)

AUTO = "auto"


class Engine(Protocol):
    """Runs a model."""

    @property
    def name(self) -> str:
        """With its precision, as traces and operating points tell it."""

    @property
    def config(self) -> MultiExitConfig:
        """Of the model."""

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that this engine cannot run.

        Raises:
            InvalidInput: it is for another number of exits, or for another policy than the engine's only one.
        """

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """Answer a batch, (B, T) each, at a point; None = full depth. The answers are on the CPU."""

    def exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """What every exit says of a batch at full depth: logits (L, B, C), certainty (L, B), on the CPU."""


@final
@dataclass(frozen=True)
class Eager:
    """Torch, layer by layer.

    Attributes:
        model: on the device to run on.
    """

    model: MultiExitModel

    @property
    def name(self) -> str:
        """See `Engine`."""
        kind = self.model.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.model.dtype
        return f"torch-{'autocast-' if autocast else ''}{str(dtype).removeprefix('torch.')}"

    @property
    def config(self) -> MultiExitConfig:
        """See `Engine`."""
        config: MultiExitConfig = self.model.config
        return config

    def check(self, point: OperatingPoint | None) -> None:
        """See `Engine.check`."""
        if point is not None:
            load_policy(point.policy)
            thresholds_per_exit(point.thresholds, len(self.model.layers))

    @torch.inference_mode()
    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """See `Engine.answer`."""
        policy = load_policy(point.policy) if point else Fixed()
        thresholds = point.thresholds if point else float(self.model.layers[-1])
        answers = run(self.model, policy, thresholds, self._moved(inputs))
        return Answers(answers.logits.cpu(), answers.exit_layers.cpu(), answers.failed.cpu())

    @torch.inference_mode()
    def exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """See `Engine.exits`."""
        was_training = self.model.training
        self.model.eval()
        out = self.model.exits(self._moved(inputs))
        self.model.train(was_training)
        certainty = None if out.certainty is None else out.certainty.cpu()
        return ExitOutput(out.logits.cpu(), certainty, problem_type=out.problem_type)

    def _moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}


@final
@dataclass(frozen=True)
class Exported:
    """A graph that `offramp export` wrote, in ONNX Runtime on the CPU.

    Attributes:
        graph: runs one policy, whatever the thresholds.
        config: of the model that it was made of.
    """

    graph: Graph
    config: MultiExitConfig

    @property
    def name(self) -> str:
        """See `Engine`."""
        return f"onnx-{self.graph.about.precision}"

    def check(self, point: OperatingPoint | None) -> None:
        """See `Engine.check`."""
        if point is None:
            return
        thresholds_per_exit(point.thresholds, len(self.config.exit_layers))
        runs = self.graph.about.policy
        if load_policy(point.policy) != load_policy(runs):
            raise InvalidInput(
                f"the graph runs the policy {summarize(runs)}, the operating point is for {summarize(point.policy)}; "
                f"{self._remedy(point.policy)}"
            )
        measured = point.measured.about.get("engine", self.name) if point.measured is not None else self.name
        if measured != self.name and "onnx-int8" in (measured, self.name):
            logger.warning("this operating point was measured with %s and runs with %s", measured, self.name)

    def _remedy(self, policy: Mapping[str, Any]) -> str:
        """Return how a graph comes to run a policy."""
        about = self.graph.about
        command = f"offramp export FOLDER{' --int8' if about.precision == 'int8' else ''}"
        if all(load_policy(json.loads(key)) != load_policy(policy) for key in about.policies):
            return f"the file does not hold its steps: save the point, and `{command}` writes them"
        if any(wrapper in policy for wrapper in WRAPPERS):  # which `--policy` cannot name
            return f'save the point as "default", and `{command}` makes a graph that runs it'
        return f"`{command} --policy {policy['name']}` lets the graph run it"

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        """See `Engine.answer`."""
        told = self.graph.run(_arrays(inputs), math.inf if point is None else point.thresholds)
        # without a point the last exit's own answer, which an ensemble may have changed
        logits = torch.from_numpy(told.logits_by_exit[:, -1] if point is None else told.logits)
        return Answers(logits, torch.from_numpy(told.exit_layers), ~logits.isfinite().all(dim=-1))

    def exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """See `Engine.exits`."""
        told = self.graph.run(_arrays(inputs), math.inf)
        certainty = None if told.certainty_by_exit is None else torch.from_numpy(told.certainty_by_exit).T
        logits = torch.from_numpy(told.logits_by_exit).transpose(0, 1)
        return ExitOutput(logits, certainty, problem_type=self.config.problem_type)


def check_name(engine: str) -> None:
    """Refuse what is no engine.

    Raises:
        UnknownName: neither "auto" nor one of ENGINES.
    """
    if engine not in (AUTO, *ENGINES):
        raise UnknownName(f"unknown engine {engine!r}; known: {AUTO}, {', '.join(ENGINES)}")


def load_engine(
    folder: str | os.PathLike[str], engine: str = AUTO, point: OperatingPoint | None = None
) -> Eager | Exported:
    """What runs the model of a folder or hub name.

    Args:
        folder: what `save_pretrained` wrote, and `offramp export` if a graph is to run.
        engine: one of ENGINES; "auto" takes the exported graph on a machine without a GPU, if there is one for the
            point's policy: the int8 one for a point that was measured with it, else the float32 one.
        point: the operating point to be run.

    Raises:
        UnknownName: no such engine.
        InvalidInput: nothing can be loaded from there; no such graph, or one of other weights.
    """
    check_name(engine)
    if engine == AUTO:
        return _best(folder, point)
    return Eager(load_model(folder)) if engine == "torch" else _exported(folder, engine)


def _best(folder: str | os.PathLike[str], point: OperatingPoint | None) -> Eager | Exported:
    measured = point.measured.about.get("engine") if point is not None and point.measured is not None else None
    engine = "onnx-int8" if measured == "onnx-int8" else "onnx"
    if (
        torch.accelerator.is_available()
        or find_spec("onnxruntime") is None
        or find_file(folder, GRAPHS[engine]) is None
    ):
        return Eager(load_model(folder))
    try:
        exported = _exported(folder, engine)
        exported.check(point)
    except InvalidInput as error:
        logger.warning("torch runs this model: %s", error)
        return Eager(load_model(folder))
    return exported


def _exported(folder: str | os.PathLike[str], engine: str) -> Exported:
    config = load_config(folder)
    path, weights = (find_file(folder, GRAPHS[engine] + ending) for ending in ("", WEIGHTS))
    if path is None or weights is None:
        option = " --int8" if engine == "onnx-int8" else ""
        lacking = GRAPHS[engine] + ("" if path is None else WEIGHTS)
        raise InvalidInput(f"{folder}: no {lacking}; `offramp export {folder}{option}` makes it")
    try:
        from offramp.engine.runner import Graph
    except ImportError:
        raise InvalidInput("a graph needs ONNX Runtime: pip install 'offramp[onnx]'") from None
    graph = Graph.load(path)
    if _newer_weights(Path(folder), Path(path)) and weights_digest(folder) != graph.about.model:
        raise InvalidInput(
            f"{path}: made of other weights than those beside it; `offramp export {folder}` makes it anew"
        )
    return Exported(graph, config)


def _newer_weights(folder: Path, graph: Path) -> bool:
    """Whether weights were written after the graph; reading them all takes as long as loading the graph."""
    return any(path.stat().st_mtime > graph.stat().st_mtime for path in folder.glob("*.safetensors"))


def _arrays(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in inputs.items()}
