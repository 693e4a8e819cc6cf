"""The exit before the first layer alone, for whoever answers at once what leaves there. No torch, no transformers.

It is the outermost piece of the graph, so its decisions and its logits are those of the graph. Its weights stay in the
file beside the graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

import offramp.inference.onnx.names as names
from offramp.data.padding import Array, padded
from offramp.errors import InvalidInput, one_line
from offramp.inference.graph_inputs import GraphInputs
from offramp.inference.onnx.assemble import DOMAIN, OPSET
from offramp.inference.onnx.metadata import GraphMetadata, policy_key
from offramp.inference.onnx.pieces import ModelParts, disassemble, needed_nodes
from offramp.inference.onnx.runtime import onnxruntime
from offramp.inference.onnx.session import SLOW, WEIGHTS_FOLDER, session_options, weights_beside
from offramp.types.graph_file import WEIGHTS, read_metadata, with_data_at


@final
@dataclass(frozen=True)
class FirstExit:
    """The exit before the first layer, loaded.

    Attributes:
        session: of ONNX Runtime; returns the answer's logits, and which rows continue.
        fields: the session's name of each input of the graph.
        inputs: of the graph.
        pad_token_id: of the model.
    """

    session: onnxruntime.InferenceSession
    fields: Mapping[str, str]
    inputs: GraphInputs
    pad_token_id: int | None

    @classmethod
    def load(cls, path: str, pad_token_id: int | None) -> FirstExit | None:
        """Load it from an exported graph; None where the graph's policy does not begin with such an exit.

        Raises:
            InvalidInput: `offramp export` did not write the file, or it cannot be loaded.
        """
        metadata = GraphMetadata.of(read_metadata(Path(path)))
        if metadata.layers_read[0] != 0:
            return None
        try:
            session = _load(Path(path))
        except Exception as error:  # ONNX Runtime's own have no common root
            raise InvalidInput(f"{path}: its first exit cannot be loaded ({one_line(error)})") from None
        read = {value.name for value in session.get_inputs()}
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        fields = {name: names.carry(0, name) for name in inputs if names.carry(0, name) in read}
        axes = dict.fromkeys(fields, 2)
        return cls(
            session, fields, GraphInputs(axes, len(metadata.layers), lambda tokens: max(tokens, 2)), pad_token_id
        )

    def answer(self, tokens: Sequence[Mapping[str, Any]], limits: Array) -> tuple[Array, Array]:
        """Return the logits (B, C) of the exit and whether a row leaves there, (B,) bool.

        Args:
            tokens: of each row, as `offramp.data.batching.encode` returns them.
            limits: (B,) float32, the threshold of each row; or (1,), of all.
        """
        arrays = self.inputs.arrays(padded(tokens, self.pad_token_id))
        inputs = {name: arrays[field] for field, name in self.fields.items()}
        logits, continues = self.session.run(None, {**inputs, names.limit(0): limits})
        return logits, ~continues


def _load(path: Path) -> onnxruntime.InferenceSession:
    options = session_options(1)
    options.enable_mem_pattern = False  # it plans anew for every shape
    with weights_beside(path) as weights:
        content = with_data_at(path.read_bytes(), path.name + WEIGHTS, weights.name)
        options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(weights.parent))
        model = _first_exit(disassemble(ModelProto.FromString(content)))
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOW]
        )


def _first_exit(parts: ModelParts) -> ModelProto:
    """Return the graph of the first exit and of the policy's step there."""
    metadata, piece = parts.metadata, parts.levels[0]
    call = metadata.policies[policy_key(metadata.policy, metadata.exit_layers)][0]
    # 1) the policy's step
    assert call.function is not None  # the policy reads the exit
    reads = [names.logits(0), *([names.certainty(0)] if metadata.certainty else []), names.limit(0)]
    answer = names.answer(0) if call.answers else names.logits(0)
    memory = [names.after(0, f"memory{number}") for number in range(len(call.memory))]
    writes = [names.continues(0), *([answer] if call.answers else []), *memory]
    step = helper.make_node(call.function, reads, writes, "step0", domain=DOMAIN)
    # 2) the graph, without what neither output needs
    nodes = needed_nodes([*piece.nodes, step], [answer, names.continues(0)])
    read = {value for node in nodes for value in node.input}
    graph = GraphProto(name="first_exit", node=nodes)
    graph.initializer.extend(weight for weight in (*parts.shared, *piece.weights) if weight.name in read)
    for value in parts.inputs:
        if names.carry(0, value.name) in read:
            graph.input.append(_info(names.carry(0, value.name), value.type.tensor_type.elem_type))
    graph.input.append(_info(names.limit(0), TensorProto.FLOAT))
    graph.output.extend([_info(answer, TensorProto.FLOAT), _info(names.continues(0), TensorProto.BOOL)])
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), ("com.microsoft", 1), (DOMAIN, 1))]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="offramp", ir_version=10)
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    model.functions.extend(function for name, function in parts.functions.items() if name in called)
    return model


def _info(name: str, kind: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)
