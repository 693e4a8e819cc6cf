"""Export a function of tensors from torch to ONNX."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from offramp.inference.onnx.assemble import OPSET

if TYPE_CHECKING:
    from offramp.model.modeling import MultiExitModel

SIZES = ((3, 24), (4, 40))  # rows and tokens of two examples: axes on which they differ may have any length
KINDS = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64, torch.bool: TensorProto.BOOL}
Pair = tuple[Tensor, Tensor]
"""A value in the two examples."""


@dataclass(frozen=True)
class Function:
    """A function of a model and tensors, to be exported.

    Attributes:
        call: (model, *tensors) -> tensors.
        inputs: its tensors in the two examples, by name; axes on which the examples differ may have any length, but
            those of length 1 stay so.
        outputs: the names of what it returns.
    """

    call: Callable[..., tuple[Tensor, ...]]
    inputs: Mapping[str, Pair]
    outputs: Sequence[str]


class CallModule(nn.Module):
    """A function of a model and tensors as a module, as the exporter wants it."""

    def __init__(self, model: MultiExitModel | None, call: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Call the function."""
        return self.call(self.model, *values)


def export_function(model: MultiExitModel | None, function: Function) -> ModelProto:
    """Return a function's graph."""
    return optimize(subgraph(export_functions(model, [function]), 0, function))


def export_functions(model: MultiExitModel | None, functions: Sequence[Function]) -> ModelProto:
    """Export several functions side by side, since a call of the exporter costs more than most of them.

    Returns:
        One graph, not optimized, whose weights have the names of the model's parameters; `subgraph` cuts it.
    """

    def call(model: MultiExitModel | None, *values: Tensor) -> tuple[Tensor, ...]:
        tensors = iter(values)
        outputs = [
            output for function in functions for output in function.call(model, *islice(tensors, len(function.inputs)))
        ]
        named = set(map(id, values))  # a tensor in two places, inputs among them, would get one name
        distinct = []
        for output in outputs:
            distinct.append(output.clone() if id(output) in named else output)
            named.add(id(output))
        return tuple(distinct)

    pairs = [pair for function in functions for pair in function.inputs.values()]
    numbered = list(enumerate(functions))
    with _no_collection():
        program = torch.onnx.export(
            CallModule(model, call).eval(),
            tuple(pair[0].clone() for pair in pairs),  # one tensor in two places would have its axes in common
            input_names=[f"{number}.{name}" for number, function in numbered for name in function.inputs],
            output_names=[
                f"{number}.{output_name(name)}" for number, function in numbered for name in function.outputs
            ],
            dynamic_shapes=(
                tuple({axis: Dim.DYNAMIC for axis in _free(pair)} for pair in pairs),
            ),  # one variadic argument
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # which would lose the parameters' names
            verbose=False,
        )
    assert program is not None
    exported: ModelProto = program.model_proto
    return exported


def subgraph(exported: ModelProto, number: int, function: Function) -> ModelProto:
    """Return function `number` of `export_functions` as a graph with plain names, reduced to `function.outputs`."""
    outputs = [output_name(name) for name in function.outputs]
    names = {f"{number}.{name}": name for name in (*function.inputs, *outputs)}
    nodes: list[NodeProto] = []
    needed = {f"{number}.{name}" for name in outputs}
    for node in reversed(exported.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    part = ModelProto(ir_version=exported.ir_version, opset_import=exported.opset_import, functions=exported.functions)
    part.graph.name = exported.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(weight for weight in exported.graph.initializer if weight.name in needed)
    part.graph.value_info.extend(value for value in exported.graph.value_info if value.name in needed)
    part.graph.input.extend(value for value in exported.graph.input if value.name in names)
    part.graph.output.extend(value for value in exported.graph.output if value.name in names)
    for node in part.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for value in (*part.graph.input, *part.graph.output):
        value.name = names[value.name]
    return part


def optimize(graph: ModelProto) -> ModelProto:
    """Fold constants, such as transposed weights, and fuse what the exporter fuses; let shapes cost nothing."""
    program = torch.onnx.ONNXProgram(ir.from_proto(graph), None)
    program.optimize()
    optimized: ModelProto = program.model_proto
    _fix_shapes(optimized)
    return optimized


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
        copied = [0 if axis < len(before) and before[axis] == size else size for axis, size in enumerate(after)]
        shape = [-1 if isinstance(size, str) else size for size in copied]
        if shape.count(-1) <= 1:
            node.input[1] = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(np.array(shape), node.input[1]))
            del node.attribute[:]  # such as that a 0 means 0


def output_name(name: str) -> str:
    """Return the local name of an output; inputs have the plain names."""
    return f"new.{name}"


def _free(pair: Pair) -> list[int]:
    return [axis for axis, (one, other) in enumerate(zip(pair[0].shape, pair[1].shape, strict=True)) if one != other]


def axis_names(pair: Pair) -> list[int | str]:
    """Return an input's shape, with names for axes of any length."""
    names = {0: "batch", 1: "tokens"} if pair[0].dim() == 2 else {0: "batch", 2: "height", 3: "width"}
    return [names[axis] if axis in _free(pair) else size for axis, size in enumerate(pair[0].shape)]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Stop the garbage collector, which takes a quarter of an export's time and frees little."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Silence the exporter and the quantizer, which warn of missing packages and of their own deprecations."""
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
