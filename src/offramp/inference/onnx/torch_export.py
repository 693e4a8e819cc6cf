"""Export a function of tensors from torch to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from offramp.inference.onnx.assemble import OPSET

if TYPE_CHECKING:
    from offramp.model.modeling import MultiExitModel

SIZES = ((3, 24), (4, 40))  # rows and tokens of two examples: axes on which they differ may have any length
KINDS = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64, torch.bool: TensorProto.BOOL}
Pair = tuple[Tensor, Tensor]
"""A value in the two examples."""


class _Call(nn.Module):
    """A function of a model and tensors as a module, as the exporter wants it."""

    def __init__(self, model: MultiExitModel | None, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.function(self.model, *values)


def _export(
    model: MultiExitModel | None,
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Mapping[str, Pair],
    outputs: Sequence[str],
) -> ModelProto:
    """A function's graph; axes on which the examples differ may have any length, but those of length 1 stay so."""
    free = tuple({axis: Dim.DYNAMIC for axis in _free(pair)} for pair in inputs.values())
    program = torch.onnx.export(
        _Call(model, function).eval(),
        tuple(pair[0] for pair in inputs.values()),
        input_names=list(inputs),
        output_names=[_out(name) for name in outputs],
        dynamic_shapes=(free,),  # of one variadic argument
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    exported: ModelProto = program.model_proto
    _fix_shapes(exported)
    return exported


def _fix_shapes(model: ModelProto) -> None:
    """Let reshapes copy the axes that they keep (0) and work out one more (-1), with nothing to compute."""
    sizes: dict[str, list[int | str]] = {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if all(axes):  # 0 is an axis of which nothing is known
            sizes[value.name] = axes
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[0] not in sizes or node.output[0] not in sizes:
            continue
        before, after = sizes[node.input[0]], sizes[node.output[0]]
        kept = [0 if axis < len(before) and before[axis] == size else size for axis, size in enumerate(after)]
        shape = [-1 if isinstance(size, str) else size for size in kept]
        if shape.count(-1) <= 1:
            node.input[1] = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(np.array(shape), node.input[1]))
            del node.attribute[:]  # such as that a 0 means 0


def _out(name: str) -> str:
    """The local name of an output; inputs have the plain names."""
    return f"new.{name}"


def _free(pair: Pair) -> list[int]:
    return [axis for axis, (one, other) in enumerate(zip(pair[0].shape, pair[1].shape, strict=True)) if one != other]


def _shape(pair: Pair) -> list[int | str]:
    """An input's shape, with names for what may have any length."""
    names = {0: "batch", 1: "tokens"} if pair[0].dim() == 2 else {0: "batch", 2: "height", 3: "width"}
    return [names[axis] if axis in _free(pair) else size for axis, size in enumerate(pair[0].shape)]


def _bare(node: NodeProto) -> NodeProto:
    """A node without what the exporter tells of where it is from."""
    bare = NodeProto()
    bare.CopyFrom(node)
    del bare.metadata_props[:]
    bare.doc_string = ""
    return bare


@contextmanager
def silence_exporter() -> Iterator[None]:
    """The exporter and the quantizer tell of packages that are not installed, and of their own old ways."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx._internal.exporter._registration", "onnxscript")]
    before = [logger.level for logger in loggers]
    handlers = logging.root.handlers[:]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        logging.root.handlers[:] = handlers  # the quantizer's `logging.warning` gives the root one
