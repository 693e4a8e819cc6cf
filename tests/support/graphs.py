"""Tiny models as graphs. Exporting one takes seconds, so the same pieces and steps are exported once a session."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, TensorProto
from torch import Tensor
from torch.onnx._internal.exporter._capture_strategies import TorchExportStrictStrategy
from torch.onnx._internal.exporter._registration import ONNXRegistry

import offramp.inference.export
from offramp.inference.export import with_steps
from offramp.inference.onnx.assemble import assemble
from offramp.inference.onnx.export_blocks import Prepare, export_parts
from offramp.inference.onnx.pieces import ModelParts
from offramp.inference.onnx.quantize import exact_int8
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx.torch_export import export_functions
from offramp.model.activation_ranges import measure_ranges
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.base import Policy
from offramp.policies.registry import policy_to_dict
from offramp.types.operating_point import OperatingPoint, write_points
from support.models import balanced, rows_for, save_folder, tiny_model, token_rows

NAMES = {0: "bad", 1: "fine", 2: "good"}
DEFAULT = OperatingPoint({"name": "entropy"}, (0.05, 0.06, 0.07))
_PARTS: dict[str, ModelParts] = {}
_EXPORTS: dict[str, onnx.ModelProto] = {}
_registry = cache(ONNXRegistry.from_torchlib)


@contextmanager
def one_registry() -> Iterator[None]:
    """The exporter makes its table of operators anew each time, which takes as long as a step does; once will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_registry))
        yield


@contextmanager
def one_export(key: str) -> Iterator[None]:
    """The exporter runs once for a model's pieces, whatever becomes of them, and traces them once.

    A second trace, by `torch.export`'s strict mode, is what it tries where a size has become a constant in the first.
    """

    def refuse(*_: Any) -> None:
        raise AssertionError("a size has become a constant: the reason is the first error above")

    def exported(model: Any, functions: Sequence[Any]) -> onnx.ModelProto:
        if key not in _EXPORTS:
            _EXPORTS[key] = export_functions(model, functions)
        return _EXPORTS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.inference.onnx.export_blocks.export_functions", exported)
        patch.setattr(TorchExportStrictStrategy, "_capture", refuse)
        yield


@cache
def gated() -> MultiExitModel:
    """BERT with a gate, three classes and mean pooling; its random texts get different answers."""
    return balanced(tiny_model(id2label=NAMES, pooling="mean", certainty=True))


@cache
def lexical() -> MultiExitModel:
    """The same model with an exit before the first layer."""
    model = tiny_model(num_labels=3, pooling="mean", certainty=True, lexical=LexicalExit(buckets=61))
    model.load_state_dict(gated().state_dict(), strict=False)
    return model


def parts_of(
    model: MultiExitModel,
    digest: str,
    precision: str = "float32",
    prepare: Prepare | None = None,
    layers: Sequence[int] | None = None,
) -> ModelParts:
    """`export_parts`, once for the same weights: their digest is in no piece, the kind of problem in that of exit 0."""
    config = model.config
    shape = (
        model.layers,
        config.head,
        config.format,
        config.pooling,
        config.memory,
        config.bypass,
        config.token_exit,
        tuple(layers or model.layers),
        config.lexical,
        config.lexical and config.problem_type,  # the lexical exit's certainty depends on it
    )
    key = hashlib.sha256(repr(shape).encode())
    for name, weight in model.state_dict().items():
        key.update(name.encode() + weight.numpy().tobytes())
    name = f"{precision} {key.hexdigest()}"
    if name not in _PARTS:
        with one_registry(), one_export(key.hexdigest()):
            _PARTS[name] = export_parts(model, digest, precision, prepare, layers)
    parts = _PARTS[name]
    return replace(parts, metadata=replace(parts.metadata, model=digest, problem_type=config.problem_type))


def with_policies(parts: ModelParts, policies: Sequence[Policy], read: Sequence[int] | None = None) -> ModelParts:
    """`with_steps` without making the exporter's table anew."""
    with one_registry():
        return with_steps(parts, policies, read)


def graph_of(
    model: MultiExitModel,
    policy: Policy,
    layers: Sequence[int] | None = None,
    read: Sequence[int] | None = None,
    int8: bool = False,
) -> OnnxSession:
    """A model with one policy, ready to run: the exits at `layers`, of which the policy reads those at `read`."""
    prepare = exact_int8(measure_ranges(model, rows_for(model, 40, seed=9))) if int8 else None
    parts = parts_of(model, "of a test", "int8" if int8 else "float32", prepare, layers)
    parts = with_policies(parts, [policy], read)
    return OnnxSession.load(assemble(parts, policy_to_dict(policy), read).SerializeToString())


def arrays(batch: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in batch.items()}


def graphs_in(graph: GraphProto) -> list[GraphProto]:
    """A graph and all branches inside it, at any depth."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(each for branch in inner for each in graphs_in(branch))]


def weights_in(model: onnx.ModelProto) -> list[TensorProto]:
    """Every weight of a file, those in its branches too, as often as it is there."""
    return [weight for graph in graphs_in(model.graph) for weight in graph.initializer]


def exported_folder(folder: Path) -> Path:
    """The gated model with a point called "default", and both files beside it; they hold entropy, margin and pcee."""
    save_folder(folder, gated())
    measure_ranges(gated(), token_rows(40, seed=5)).save(folder)
    write_points({"default": DEFAULT}, folder / "operating_points.json")
    for int8 in (False, True):
        offramp.inference.export.export(folder, policies=["pcee"], int8=int8)
    return folder


def copied(folder: Path, to: Path) -> Path:
    """The same folder elsewhere, as old as it is."""
    return Path(shutil.copytree(folder, to))
