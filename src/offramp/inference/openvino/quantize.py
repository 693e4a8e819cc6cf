"""Quantize the encoder of a converted model to int8, with NNCF.

NNCF reads a graph without branches, which every row passes whole: its time then grows with the layers, not with their
square, as it does where NNCF goes into branches inside each other. What it puts before the operations of the encoder is
then put before the operations of the same names in the graph with branches.

The encoder's linear layers and convolutions are quantized. Tables, products of attention, exits and decisions stay.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import nncf
import openvino

from offramp.data.padding import Array
from offramp.inference.openvino.convert import of_the_encoder, operations

LINEAR = ("MatMul", "Convolution", "GroupConvolution")


def quantize(model: openvino.Model, flat: openvino.Model, rows: Sequence[Mapping[str, Array]]) -> None:
    """Quantize a model's encoder, in place.

    Args:
        model: with branches.
        flat: the same without branches; it is changed.
        rows: inputs of `flat`, one row each, from which the ranges of activations are measured.
    """
    names = {operation.get_friendly_name() for operation in flat.get_ops()}
    linear = {operation.get_friendly_name() for operation in flat.get_ops() if _is_linear(operation)}
    with quiet_nncf():
        quantized = nncf.quantize(
            flat,
            nncf.Dataset(rows),
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=sorted(names - linear), validate=False),
        )
    changed = {operation.get_friendly_name(): operation for operation in quantized.get_ops()}
    copies: dict[tuple[str, int, int], openvino.Output] = {}
    for operation in list(operations(model)):
        if of_the_encoder(name := operation.get_friendly_name()) and name in changed:
            for port in range(operation.get_input_size()):
                _take_over(operation, port, changed[name].input_value(port), names, copies)


def _is_linear(operation: openvino.Node) -> bool:
    """Return whether an operation of the encoder multiplies by weights."""
    if operation.get_type_name() not in LINEAR or not of_the_encoder(operation.get_friendly_name()):
        return False
    return _is_constant(operation.input_value(1))


def _is_constant(value: openvino.Output) -> bool:
    """Return whether a value is computed of constants alone."""
    node = value.get_node()
    return node.get_type_name() == "Constant" or (
        node.get_input_size() > 0 and all(_is_constant(source) for source in node.input_values())
    )


def _take_over(
    operation: openvino.Node,
    port: int,
    source: openvino.Output,
    names: set[str],
    copies: dict[tuple[str, int, int], openvino.Output],
) -> None:
    """Let an operation read at a port what the quantized operation of its name reads.

    Args:
        operation: of the graph with branches.
        port: of its inputs.
        source: what the quantized one reads there: constants, or a chain of new operations on what `operation` reads.
        names: of the operations before they were quantized.
        copies: of new operations, for those that several operations read; more are added.
    """
    if _is_constant(source):
        operation.input(port).replace_source_output(source)
        return
    chain: list[openvino.Node] = []
    while source.get_node().get_friendly_name() not in names:
        chain.append(source.get_node())
        source = source.get_node().input_value(0)
    value = operation.input_value(port)
    for new in reversed(chain):
        key = (new.get_friendly_name(), value.get_node().get_instance_id(), value.get_index())
        if key not in copies:
            copies[key] = _copy(new, value).output(0)
        value = copies[key]
    if chain:
        operation.input(port).replace_source_output(value)


def _copy(node: openvino.Node, value: openvino.Output) -> openvino.Node:
    """Return an operation like another, which reads a value in place of the other's first input."""
    factory: Any = openvino.utils.node_factory.NodeFactory("opset13")
    inputs = [value.get_node() if value.get_node().get_output_size() == 1 else value, *node.input_values()[1:]]
    return factory.create(node.get_type_name(), inputs, node.get_attributes())


@contextmanager
def quiet_nncf() -> Iterator[None]:
    """Keep NNCF from printing what it does with each operation, and its progress on standard output."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
