"""Weights of a piece of a model -> int8: dynamic quantization of ONNX Runtime, one scale a channel.

What belongs to an exit stays in float32, so that decisions are taken on what float32 makes of the last states.
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
    """The embedding's tables and the blocks' matrices as int8; the rest as it was."""
    spared = [node.name for node in piece.graph.node if node.op_type in QUANTIZED and not _of_the_encoder(node)]
    spared += [f"{name}_MatMul" for name in spared]  # what a Gemm is called by then
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.onnx"
        quantize_dynamic(
            piece,
            path,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=spared,
        )
        quantized: ModelProto = onnx.load(path)
    return quantized


def _of_the_encoder(node: NodeProto) -> bool:
    return any(ENCODER in told.value for told in node.metadata_props if told.key.endswith("name_scopes"))
