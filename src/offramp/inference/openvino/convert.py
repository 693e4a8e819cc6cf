"""An ONNX graph of a model -> OpenVINO's format, with what OpenVINO needs changed.

1. Functions (the policy's steps) become nodes.
2. A branch that passes its inputs on unchanged is left out: OpenVINO 2026.4 returns wrong values from one when a batch
   is larger than all before. The other branch does the same work at every size.
3. The lexical exit's hash multiplies numbers below its buckets by a constant. OpenVINO takes remainders in float32,
   exact below 2^24; the products are larger, so their remainders come from a table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import GraphProto, ModelProto, NodeProto, helper
from onnx.inliner import inline_local_functions
from openvino import opset13

from offramp.errors import UnsupportedBackbone, one_line

ENCODER = re.compile(r"(embed|level\d+)/\d")
"""The beginning of the names of the encoder's operations, see `offramp.inference.onnx.pieces.rename_values`."""
SMALLEST_TABLE = 16  # rows; the hash's first number is below it, however few buckets there are


def of_the_encoder(name: str) -> bool:
    """Return whether an operation belongs to the encoder, not to an exit, a policy or the loop."""
    return ENCODER.match(name) is not None


def to_openvino(model: ModelProto, path: Path) -> openvino.Model:
    """Convert a graph.

    Args:
        model: from `assemble`; it may be changed.
        path: for the graph as ONNX, beside its weights, which must stay there as long as the converted one is used.

    Raises:
        UnsupportedBackbone: OpenVINO cannot read it.
    """
    inlined = inline_local_functions(model)
    _leave_out_shortcuts(inlined.graph)
    onnx.save(inlined, path)
    try:
        converted = openvino.Core().read_model(os.fspath(path))
    except Exception as error:  # OpenVINO raises RuntimeError for most, and others
        raise UnsupportedBackbone(f"OpenVINO cannot read the graph of this model ({one_line(error)})") from None
    for operation in operations(converted):
        if operation.get_type_name() == "FloorMod":
            _hash_by_table(operation)
    return converted


def operations(model: openvino.Model) -> Iterator[openvino.Node]:
    """Yield the operations of a model and of its branches, at any depth."""
    for operation in model.get_ordered_ops():
        yield operation
        if operation.get_type_name() == "If":
            for branch in (0, 1):
                yield from operations(operation.get_function(branch))


def _leave_out_shortcuts(graph: GraphProto) -> None:
    """Put the nodes of the other branch where a branch passes its inputs on."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        branches = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
        for branch in branches.values():
            _leave_out_shortcuts(branch)
        if branches and all(inner.op_type == "Identity" for inner in branches["then_branch"].node):
            other = branches["else_branch"]
            graph.initializer.extend(other.initializer)
            nodes += other.node
            pairs = zip(other.output, node.output, strict=True)
            nodes += [helper.make_node("Identity", [value.name], [name]) for value, name in pairs]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _hash_by_table(remainder: openvino.Node) -> None:
    """Take (number * factor + token) % buckets as (table[number] + token) % buckets, where a factor is a constant."""
    total, buckets = remainder.input_value(0).get_node(), _constant(remainder, 1)
    products = [port for port in range(total.get_input_size()) if _is_product(total.input_value(port).get_node())]
    if total.get_type_name() != "Add" or not products or buckets is None:
        return
    product = total.input_value(products[0]).get_node()
    number = 0 if _constant(product, 1) is not None else 1
    factor = int(_constant(product, 1 - number))  # type: ignore[arg-type] # see `_is_product`
    rows = max(int(buckets), SMALLEST_TABLE)
    table = opset13.constant(np.arange(rows, dtype=np.int64) * factor % int(buckets))
    looked_up = opset13.gather(table, product.input_value(number), opset13.constant(np.int64(0)))
    total.input(products[0]).replace_source_output(looked_up.output(0))


def _is_product(node: openvino.Node) -> bool:
    return node.get_type_name() == "Multiply" and any(_constant(node, port) is not None for port in (0, 1))


def _constant(node: openvino.Node, port: int) -> int | None:
    """Return the number that an operation reads, where it is a constant of one element."""
    source = node.input_value(port).get_node()
    if source.get_type_name() != "Constant" or source.get_output_size() != 1 or source.get_data().size != 1:
        return None
    return int(source.get_data().reshape(-1)[0])
