"""Dynamic int8 of ONNX Runtime, a baseline: the scales of activations are each batch's own, so answers depend on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from offramp.inference.onnx.pieces import of_the_encoder

QUANTIZED = ["MatMul", "Gemm", "Gather"]


def dynamic_int8(graph: ModelProto) -> ModelProto:
    """Quantize the encoder's tables and matrices, with one scale a channel; heads stay in float32."""
    excluded = [node.name for node in graph.graph.node if node.op_type in QUANTIZED and not of_the_encoder(node)]
    excluded += [f"{name}_MatMul" for name in excluded]  # the name of a Gemm by then
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
        )
        quantized: ModelProto = onnx.load(path)
    return quantized
