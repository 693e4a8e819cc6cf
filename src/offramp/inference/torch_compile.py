"""The model with blocks and exits compiled by torch.compile: the same answers from fewer, larger kernels.

Rows leave, so a block meets every batch size from the full one down, and a graph for each would be compiled for longer
than it runs. Sizes are therefore symbols, and every dimension of every tensor has one of its own: torch gives equal
sizes one symbol, and a first batch with as many rows as tokens would make a graph for square batches alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor
from torch._dynamo import maybe_mark_dynamic
from torch._dynamo.exc import InternalTorchDynamoError, Unsupported

from offramp.early_exit.in_flight import Segments
from offramp.errors import UnsupportedBackbone, one_line
from offramp.types.carry import Carry
from offramp.types.outputs import ExitOutput

Output = TypeVar("Output", Carry, ExitOutput)
Backend = str | Callable[..., Any]
"""A backend of torch.compile: its name, or a function from a graph and example inputs to what runs in its place."""


@final
class Compiled:
    """A model as `Segments` for the adaptive loop; each block and each exit is compiled when it first runs.

    For all batch sizes and lengths a block has at most four graphs and an exit two. One row alone has graphs of its
    own (torch has no symbol for a size of 1, and knowing it makes the faster graph), and so has a batch without
    padding, which comes without an attention mask. A text of one token has another; so has another dtype, autocast or
    gradient mode, and on a CPU a convolution of 16 rows or more.

    What torch cannot trace raises UnsupportedBackbone when it first runs: token exit, where the number of tokens
    depends on data, and the attention of the first DeBERTa.

    Relations: the weights stay the model's own, so what changes there changes here. The embedding stays eager, because
    making the masks looks at data, and so does the exit before it, which is a look-up and a sum.

    Args:
        eager: a model in eval mode.
        backend: compiles the graphs.
    """

    def __init__(self, eager: Segments, backend: Backend = "inductor") -> None:
        self._eager = eager
        behind = [exit for exit, layer in enumerate(eager.layers) if layer]
        self._blocks = {exit: _compiled(eager.block, exit, backend) for exit in behind}
        self._exits = {exit: _compiled(eager.exit, exit, backend) for exit in behind}

    @property
    def layers(self) -> Sequence[int]:
        """Return the layer number of each exit."""
        return self._eager.layers

    def lexical(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        """Classify before the first layer; not compiled."""
        return self._eager.lexical(inputs)

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first block; not compiled."""
        return self._eager.embed(inputs)

    def block(self, exit: int, carry: Carry) -> Carry:
        """Run the compiled layers that lead to an exit."""
        return self._blocks[exit](_sizes_free(carry.for_next_block()))

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        """Classify at a compiled exit."""
        return self._exits[exit](_sizes_free(carry))


def _compiled(method: Callable[[int, Carry], Output], exit: int, backend: Backend) -> Callable[[Carry], Output]:
    """Compile a model's method for one exit.

    torch counts graphs by code object and gives up after eight, so each exit has a code object of its own.
    """

    def at_exit(carry: Carry) -> Output:
        return method(exit, carry)

    code = at_exit.__code__.replace(co_name=f"{method.__name__}_{exit}")
    own = FunctionType(code, at_exit.__globals__, code.co_name, None, at_exit.__closure__)
    graph = cast(Callable[[Carry], Output], torch.compile(own, backend=backend, fullgraph=True, dynamic=False))

    def traced(carry: Carry) -> Output:
        try:
            return graph(carry)
        except (InternalTorchDynamoError, Unsupported) as error:
            raise UnsupportedBackbone(f"{code.co_name}: torch.compile cannot trace it ({one_line(error)})") from error

    return traced


def _sizes_free(carry: Carry) -> Carry:
    """Return the same values, with sizes that become symbols and the strides of new tensors.

    Without a mask the tokens are pieces of images, whose number is fixed.
    """
    parts = {name: part.reshape(-1).view(part.shape) for name, part in vars(carry).items() if part is not None}
    for part in parts.values():
        maybe_mark_dynamic(part, [*range(1 if carry.mask is None else part.dim())])
    return replace(carry, **parts)
