"""A piece of a model -> int8 whose answers do not depend on the rest of the batch.

The encoder's linear layers multiply integers: weights with one scale for each output, inputs with constant scales and
zero points (`offramp.model.activation_ranges`). ONNX Runtime has this as one kernel, MatMulIntegerToFloat. A dynamic
scale would be the batch's, and so would the answers. Exits and decisions stay in float32.

Integers add up to the same sum in any order; floats do not. What adds floats over tokens goes over a multiple of 8 of
them (`token_padding.py`).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from offramp.errors import InvalidInput
from offramp.inference.onnx.export_blocks import Prepare
from offramp.inference.onnx.token_padding import pad_tokens
from offramp.model.activation_ranges import EMBEDDING, ActivationRanges, Range
from offramp.types.graph_file import RANGES_FILE

LARGE = 1 << 18  # numbers in an embedding's table, from which on it is stored in 8 bits
ENCODER = "model.backbone."
LEAST_SCALE = 1e-9


def exact_int8(ranges: ActivationRanges) -> Prepare:
    """Return what quantizes the pieces of a model with these ranges, for `export_parts`.

    It raises InvalidInput where there are ranges, but none for a layer.
    """

    def prepare(piece: ModelProto, layers: Sequence[int], modules: Mapping[str, str]) -> ModelProto:
        missing = set(layers) - set(ranges.by_layer) - {EMBEDDING} if ranges.by_layer else set()
        if missing:
            raise InvalidInput(f"{RANGES_FILE}: no ranges for layer {min(missing)}; remove it, and export with --data")
        by_module = ranges.within(layers)
        in_graph = {path: by_module[own] for path, own in modules.items() if own in by_module}
        return quantize(pad_tokens(piece), in_graph)

    return prepare


def quantize(piece: ModelProto, ranges: Mapping[str, Range]) -> ModelProto:
    """Quantize the linear layers that have a range, and the large tables of the encoder's embeddings.

    Args:
        piece: whose nodes bear the exporter's notes on their modules.
        ranges: path of a module in the encoder, as in the graph -> the range of what it reads.
    """
    quantized = _Piece.of(piece, ranges)
    for node in piece.graph.node:
        quantized.add(node)
    return quantized.model()


@dataclass
class _Piece:
    """A piece that is being quantized, node by node.

    Attributes:
        before: the piece in float32.
        ranges: as in `quantize`.
        weights: its weights, by name.
        readers: of each value.
        nodes: so far.
        added: weights so far, by name.
        merged: sums that are part of a product already.
        inputs: value and range -> value in 8 bits.
    """

    before: ModelProto
    ranges: Mapping[str, Range]
    weights: Mapping[str, TensorProto]
    readers: Mapping[str, Sequence[NodeProto]]
    nodes: list[NodeProto] = field(default_factory=list)
    added: dict[str, TensorProto] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)
    inputs: dict[tuple[str, Range], str] = field(default_factory=dict)

    @classmethod
    def of(cls, piece: ModelProto, ranges: Mapping[str, Range]) -> _Piece:
        readers: dict[str, list[NodeProto]] = {}
        for node in piece.graph.node:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        return cls(piece, ranges, {weight.name: weight for weight in piece.graph.initializer}, readers)

    def add(self, node: NodeProto) -> None:
        """Add a node, quantized if it can be."""
        module = module_of(node)
        if node.output[0] in self.merged:
            return
        matrix = self._matrix(node)
        if module is not None and module in self.ranges and matrix is not None:
            self._multiply(node, matrix, self.ranges[module])
        elif module is not None and node.op_type == "Gather" and self._is_large(node.input[0]):
            self._look_up(node)
        else:
            self.nodes.append(node)

    def model(self) -> ModelProto:
        """Return the piece, without the weights that nothing reads any more."""
        model = ModelProto()
        model.CopyFrom(self.before)
        read = {value for node in self.nodes for value in node.input}
        weights = [weight for weight in (*self.weights.values(), *self.added.values()) if weight.name in read]
        for target, content in ((model.graph.node, self.nodes), (model.graph.initializer, weights)):
            del target[:]
            target.extend(content)
        del model.graph.value_info[:]
        if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return model

    def _matrix(self, node: NodeProto) -> np.ndarray | None:
        """Return the constant matrix (K, N) that a node multiplies by; None for any other node."""
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self.weights:
            return None
        matrix = numpy_helper.to_array(self.weights[node.input[1]])
        if matrix.ndim != 2:
            return None
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if settings.get("transA") or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
            return None
        return matrix.T if settings.get("transB") else matrix

    def _multiply(self, node: NodeProto, matrix: np.ndarray, ends: Range) -> None:
        """Add a product of integers, with the sum that adds the bias."""
        name, output = node.output[0], node.output[0]
        bias = node.input[2] if len(node.input) > 2 else ""
        if not bias and (total := self._bias_of(name)) is not None:
            bias, output = total
            self.merged.add(output)
        scales = np.maximum(np.abs(matrix).max(axis=0) / 127, LEAST_SCALE).astype(np.float32)  # (N,)
        integers = np.clip(np.round(matrix / scales), -127, 127).astype(np.int8)
        read, scale, zero = self._in_8_bits(node.input[0], ends)
        inputs = [read, self._weight(f"{name}.integers", integers), scale]
        inputs += [self._weight(f"{name}.scales", scales), zero, "", bias]
        product = helper.make_node("MatMulIntegerToFloat", inputs, [output], f"{name}.int8", domain="com.microsoft")
        self.nodes.append(product)

    def _bias_of(self, product: str) -> tuple[str, str] | None:
        """Return the bias that the one reader of a product adds to it, and the sum; None where it is no such reader."""
        readers = self.readers.get(product, [])
        if len(readers) != 1 or readers[0].op_type != "Add" or self._is_output(product):
            return None
        others = [value for value in readers[0].input if value != product]
        if len(others) != 1 or others[0] not in self.weights or len(self.weights[others[0]].dims) != 1:
            return None
        return others[0], readers[0].output[0]

    def _in_8_bits(self, value: str, ends: Range) -> tuple[str, str, str]:
        """Return the names of a value in 8 bits, of its scale and of its zero point; the range includes 0."""
        if (value, ends) not in self.inputs:
            name = self.inputs[value, ends] = f"{value}.in8bits{len(self.inputs)}"
            low, high = min(ends[0], 0.0), max(ends[1], 0.0)
            scale = np.float32(max((high - low) / 255, LEAST_SCALE))
            zero = np.uint8(np.clip(round(-low / float(scale)), 0, 255))
            numbers = [self._weight(f"{name}.scale", scale), self._weight(f"{name}.zero", zero)]
            self.nodes.append(helper.make_node("QuantizeLinear", [value, *numbers], [name], name))
        name = self.inputs[value, ends]
        return name, f"{name}.scale", f"{name}.zero"

    def _look_up(self, node: NodeProto) -> None:
        """Add a look-up in a table of integers, each row of which has a scale."""
        table, name = numpy_helper.to_array(self.weights[node.input[0]]), node.output[0]
        scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, LEAST_SCALE).astype(np.float32)
        integers = np.clip(np.round(table / scales), -127, 127).astype(np.int8)
        values = self._weight(f"{node.input[0]}.integers", integers), self._weight(f"{node.input[0]}.scales", scales)
        for part, value in zip(("integers", "scale"), values, strict=True):
            self.nodes.append(helper.make_node("Gather", [value, node.input[1]], [f"{name}.{part}"], f"{name}.{part}"))
        self.nodes += [
            helper.make_node("Cast", [f"{name}.integers"], [f"{name}.float"], f"{name}.float", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], f"{name}.scaled"),
        ]

    def _weight(self, name: str, value: np.ndarray | np.generic) -> str:
        """Add a weight, if there is none of this name, and return the name."""
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        return name

    def _is_large(self, name: str) -> bool:
        weight = self.weights.get(name)
        return (
            weight is not None
            and len(weight.dims) == 2
            and weight.data_type == TensorProto.FLOAT
            and weight.dims[0] * weight.dims[1] >= LARGE
        )

    def _is_output(self, value: str) -> bool:
        return any(output.name == value for output in self.before.graph.output)


def module_of(node: NodeProto) -> str | None:
    """Return the path, in the encoder, of the module that a node belongs to; None for other nodes."""
    for entry in node.metadata_props:
        if entry.key.endswith("name_scopes"):
            scopes = [scope for scope in ast.literal_eval(entry.value) if scope.startswith(ENCODER)]
            return scopes[-1].removeprefix(ENCODER) if scopes else None
    return None
