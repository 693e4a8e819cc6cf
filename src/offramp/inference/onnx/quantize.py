"""Weights of a piece of a model -> int8: dynamic quantization of ONNX Runtime, one scale a channel.

An exit stays in float32, so that decisions are taken in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import QuantType, quantize_dynamic

QUANTIZED = ["MatMul", "Gemm", "Gather"]
ENCODER = ".backbone."


def int8(piece: ModelProto) -> ModelProto:
    """Quantize the embedding's tables and the blocks' matrices; all else stays as it was."""
    excluded = [node.name for node in piece.graph.node if node.op_type in QUANTIZED and not _of_the_encoder(node)]
    excluded += [f"{name}_MatMul" for name in excluded]  # what a Gemm is called by then
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.onnx"
        quantize_dynamic(
            piece,
            path,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
        )
        quantized: ModelProto = onnx.load(path)
    return quantized


def _of_the_encoder(node: NodeProto) -> bool:
    return any(ENCODER in entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes"))
