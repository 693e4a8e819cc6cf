"""Blocks that run the same code: they differ in their weights alone, so that one export serves them all.

Two blocks count as the same code where they call modules of the same classes and settings in the same order, where
their tensors have the same shapes, and where the one with the other's weights gives the other's outputs bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn
from torch.func import functional_call

from offramp.inference.onnx.torch_export import CallModule, Function
from offramp.model.modeling import MultiExitModel

INDEX = "layer_idx"  # a layer's number in transformers, which only a cache of keys and values reads
Result = TypeVar("Result")


@dataclass(frozen=True)
class BlockCode:
    """One exit's block as torch runs it.

    Attributes:
        function: the block and its exit, to be exported.
        written: the fields that the block writes, whether or not a block follows.
        modules: those that it calls, in this order.
        results: its outputs for the first example: the fields written, then the exit's outputs.
    """

    function: Function
    written: Sequence[str]
    modules: Sequence[nn.Module]
    results: Sequence[Tensor]


def record_modules(model: nn.Module, call: Callable[[], Result]) -> tuple[Result, list[nn.Module]]:
    """Return a call's result and the modules that it runs, in the order in which they start."""
    modules: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda called, _: modules.append(called)) for module in model.modules()]
    try:
        return call(), modules
    finally:
        for hook in hooks:
            hook.remove()


def weights_for(model: MultiExitModel, template: BlockCode, block: BlockCode) -> dict[str, Tensor] | None:
    """Return the weights with which `template` is `block`, by the names that the exporter gives the template's.

    None: the two do not run the same code. Weights that both read without calling their module stay the template's.
    """
    if template.written != block.written or _shapes(template) != _shapes(block):
        return None
    if [_settings(module) for module in template.modules] != [_settings(module) for module in block.modules]:
        return None
    twins: dict[int, Tensor] = {}
    for one, other in zip(template.modules, block.modules, strict=True):
        tensors = _own_tensors(other)
        for name, tensor in _own_tensors(one).items():
            if twins.setdefault(id(tensor), tensors[name]) is not tensors[name]:
                return None
    module = CallModule(model, template.function.call)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    weights = {name: twins[id(tensor)].detach() for name, tensor in named.items() if id(tensor) in twins}
    inputs = tuple(pair[0] for pair in block.function.inputs.values())
    results = functional_call(module, weights, inputs)
    return weights if all(map(torch.equal, results, block.results)) else None


def bind(graph: ModelProto, weights: Mapping[str, Tensor]) -> ModelProto:
    """Return a graph with other weights, given by name."""
    bound = ModelProto()
    bound.CopyFrom(graph)
    for weight in bound.graph.initializer:
        if weight.name in weights:
            weight.CopyFrom(numpy_helper.from_array(weights[weight.name].numpy(), weight.name))
    return bound


def _shapes(block: BlockCode) -> list[Any]:
    inputs = [
        (name, *((tensor.shape, tensor.dtype) for tensor in pair)) for name, pair in block.function.inputs.items()
    ]
    return [*inputs, *((tensor.shape, tensor.dtype) for tensor in block.results)]


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return a module's class, its attributes and the shapes of its own weights."""
    attributes = {
        name: id(value) if isinstance(value, Tensor) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != INDEX
    }
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in _own_tensors(module).items()}
    return type(module), attributes, shapes


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
