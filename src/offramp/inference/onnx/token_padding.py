"""Sums over tokens in a graph -> sums over a multiple of 8 tokens, so that padding changes no bit of them.

A sum of floats depends on how its terms are grouped, and kernels group them by their number: a processor's vectors take
4, 8 or 16 at once, and what is left is added in another way. Over a multiple of 8 tokens more zeros at the end change
nothing. Three kinds of nodes add over tokens: a product that contracts them, a softmax, and a sum. Both factors of a
product get zeros at the end, the input of a softmax gets numbers whose exponential is 0, and a sum becomes a product
with ones. All else works token by token, on as many as there are, so that a short text costs no more than its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

MULTIPLE = 8
NEVER = -3.4e38  # near the least float32: its exponential is 0 beside that of any score
LAST, ROWS = -1, -2  # axes
Shape = Sequence[int | str]


def pad_tokens(piece: ModelProto) -> ModelProto:
    """Return a piece whose sums over tokens, axes of any length, go over a multiple of MULTIPLE."""
    padded = _Padded.of(piece)
    for node in piece.graph.node:
        padded.add(node)
    model = ModelProto()
    model.CopyFrom(piece)
    del model.graph.node[:]
    model.graph.node.extend(padded.nodes)
    model.graph.initializer.extend(padded.constants.values())
    return model


@dataclass
class _Padded:
    """A piece that is being padded, node by node.

    Attributes:
        shapes: of values, as far as they are known; an axis of any length has a name, or 0.
        readers: of each value.
        casts: values that are whole numbers, whose sums are exact.
        outputs: of the piece.
        nodes: so far.
        constants: so far, by name.
        padded: values with zeros, or other numbers, appended.
        softmax: output of a softmax -> the padded one.
        extra: the length of an axis -> the name of how many columns it lacks, in the form of `Pad`.
    """

    shapes: Mapping[str, Shape]
    readers: Mapping[str, Sequence[NodeProto]]
    casts: set[str]
    outputs: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    padded: set[str] = field(default_factory=set)
    softmax: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, piece: ModelProto) -> _Padded:
        graph = piece.graph
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        shapes: dict[str, Shape] = {weight.name: list(weight.dims) for weight in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            shapes[value.name] = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        casts = {node.output[0] for node in graph.node if node.op_type == "Cast"}
        return cls(shapes, readers, casts, {value.name for value in graph.output})

    def add(self, node: NodeProto) -> None:
        """Add a node, padded where it adds over tokens."""
        if node.op_type == "MatMul" and self._contracts(node):
            self._product(node)
        elif node.op_type == "Softmax" and self._any_length(node.input[0], LAST):
            self._softmax(node)
        elif node.op_type == "ReduceSum" and self._sums_tokens(node):
            self._sum(node)
        else:
            self.nodes.append(node)

    def _any_length(self, value: str, axis: int) -> bool:
        """Return True for an axis of any length, as tokens have."""
        shape = self.shapes.get(value, ())
        return len(shape) >= -axis and (isinstance(shape[axis], str) or shape[axis] == 0)

    def _contracts(self, node: NodeProto) -> bool:
        left, right = node.input
        known = [shape[axis] for value, axis in ((left, LAST), (right, ROWS)) if (shape := self.shapes.get(value))]
        return bool(known) and all(isinstance(size, str) or size == 0 for size in known)

    def _sums_tokens(self, node: NodeProto) -> bool:
        """Return True for a sum of floats over the last axis of a matrix, where that has any length."""
        value = node.input[0]
        return value not in self.casts and len(self.shapes.get(value, ())) == 2 and self._any_length(value, LAST)

    def _product(self, node: NodeProto) -> None:
        left, right = node.input
        padded = [self.softmax.get(left) or self._pad(left, LAST), self._pad(right, ROWS)]
        self.nodes.append(_reading(node, padded))

    def _softmax(self, node: NodeProto) -> None:
        output = node.output[0]
        padded = _reading(node, [self._pad(node.input[0], LAST, NEVER)])
        padded.output[0] = self.softmax[output] = f"{output}.padded"
        self.nodes.append(padded)
        others = [reader for reader in self.readers.get(output, ()) if not self._takes_padded(reader, output)]
        if others or output in self.outputs:
            length = f"{output}.length"
            self.nodes.append(helper.make_node("Shape", [node.input[0]], [length], length, start=LAST))
            ends = [self._constant("padding.zero", [0]), length, self._constant("padding.last", [LAST])]
            self.nodes.append(helper.make_node("Slice", [f"{output}.padded", *ends], [output], f"{output}.cut"))

    def _takes_padded(self, reader: NodeProto, value: str) -> bool:
        return reader.op_type == "MatMul" and reader.input[0] == value and self._contracts(reader)

    def _sum(self, node: NodeProto) -> None:
        """Add, for each row of a matrix (B, T), the product with ones in place of its sum.

        B products of (1, T) with (T, 1), and not one of (B, T): a product of one row has a kernel of its own.
        """
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        value, output = self._pad(node.input[0], LAST), node.output[0]
        first, last = self._constant("padding.axis1", [1]), self._constant("padding.last", [LAST])
        one = self._constant("padding.ones", [[[1.0]]], np.float32)
        squeezed = last if settings.get("keepdims", 1) else self._constant("padding.both", [1, 2])
        steps = (
            ("Unsqueeze", [value, first], f"{output}.rows"),  # (B, 1, T)
            ("Unsqueeze", [value, last], f"{output}.columns"),
            ("Shape", [f"{output}.columns"], f"{output}.shape"),
            ("Expand", [one, f"{output}.shape"], f"{output}.ones"),  # (B, T, 1)
            ("MatMul", [f"{output}.rows", f"{output}.ones"], f"{output}.sums"),  # (B, 1, 1)
            ("Squeeze", [f"{output}.sums", squeezed], output),
        )
        self.nodes.extend(helper.make_node(kind, inputs, [result], result) for kind, inputs, result in steps)

    def _pad(self, value: str, axis: int, filler: float = 0.0) -> str:
        """Add what appends columns or rows to a value, and return the name of the result."""
        name = f"{value}.padded{-axis}"
        if name not in self.padded:
            self.padded.add(name)
            fill = self._constant(f"padding.fill{filler:g}", filler, np.float32)
            axes = self._constant(f"padding.from_end{-axis}", [axis])
            inputs = [value, self._lacking(value, axis), fill, axes]
            self.nodes.append(helper.make_node("Pad", inputs, [name], name))
        return name

    def _lacking(self, value: str, axis: int) -> str:
        """Return the name of how many columns an axis lacks, as [0, columns]."""
        size = self.shapes[value][axis] if value in self.shapes else 0
        key = size if isinstance(size, str) else f"{value} {axis}"
        if key not in self.extra:
            name = f"padding{len(self.extra)}"
            self.extra[key] = f"{name}.ends"
            start = {"start": axis, **({} if axis == LAST else {"end": axis + 1})}
            steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
                ("Shape", [value], "length", start),
                ("Neg", [f"{name}.length"], "negative", {}),
                ("Mod", [f"{name}.negative", self._constant("padding.multiple", [MULTIPLE])], "lacking", {}),
                ("Concat", [self._constant("padding.zero", [0]), f"{name}.lacking"], "ends", {"axis": 0}),
            )
            for kind, inputs, output, settings in steps:
                self.nodes.append(helper.make_node(kind, inputs, [f"{name}.{output}"], f"{name}.{output}", **settings))
        return self.extra[key]

    def _constant(self, name: str, value: Any, kind: type = np.int64) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype=kind), name))
        return name


def _reading(node: NodeProto, inputs: Sequence[str]) -> NodeProto:
    """Return a node that reads other values."""
    changed = NodeProto()
    changed.CopyFrom(node)
    changed.input[:] = inputs
    return changed
