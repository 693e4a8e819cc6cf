"""Dynamic int8 of ONNX Runtime, a baseline: the scales of activations are each batch's own, so answers depend on it."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path

import onnx
from onnx import ModelProto

from offramp.inference.onnx.pieces import of_the_encoder
from offramp.inference.onnx.runtime import onnxruntime

QUANTIZED = ["MatMul", "Gemm", "Gather"]


def dynamic_int8(graph: ModelProto) -> ModelProto:
    """Quantize the encoder's tables and matrices, with one scale a channel; heads stay in float32."""
    quantization = import_module(f"{onnxruntime.__name__}.quantization")
    excluded = [node.name for node in graph.graph.node if node.op_type in QUANTIZED and not of_the_encoder(node)]
    excluded += [f"{name}_MatMul" for name in excluded]  # the name of a Gemm by then
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        quantization.quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=excluded,
        )
        quantized: ModelProto = onnx.load(path)
    return quantized
