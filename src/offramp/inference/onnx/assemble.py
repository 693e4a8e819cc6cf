"""Pieces of a model -> one ONNX graph that leaves early: the loop of `early_exit/loop.py`, unrolled. No torch in here.

    block 0, exit 0, step 0
    if a row continues:  if a row leaves: cut the batch
                         block 1, exit 1, step 1
                         if a row continues: ...
                         the answers of exit 0, those of the rows that continued overwritten
    else:                the answers of exit 0

An exit before the first layer is exit 0 and has no block: it reads the inputs, which are then cut as the carry is, and
the embedding runs in the branch of block 1, on the rows that continue.

The branches lie inside each other, and each block's weights belong to the branch that uses them, where ONNX Runtime
packs them ahead; weights that several blocks share belong to the outer graph. `names.py` has the names of the values.
A step of a policy is a function of the ONNX file, called at each exit; a file holds those of several policies, so
another policy is a matter of other calls. An exit that the policy does not read has no branch: its logits are an output
and no row leaves there. The cut that another policy needs after it is kept as a function that nothing calls.

Each level returns a table with a row for each sample that reached it: the outputs of its exit and of the deeper ones
(NaN behind the exit where a sample left), the answer, and the layer after which it left. So nothing of what lies behind
goes down with the carry but the thresholds. Where some samples leave, the table has the answers of this exit for all of
them; the rows of those that continued are then overwritten, which costs less than selecting the ones that leave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

import offramp.inference.onnx.names as names
from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import GraphMetadata, PolicyCall, policy_key, read_policy_key
from offramp.inference.onnx.pieces import ModelParts, disassemble
from offramp.policies.registry import WRAPPERS, acting
from offramp.types.whole_file import whole_path

OPSET = 20
DOMAIN = "offramp.steps"
DEEPEST = 32  # `onnx` cannot parse more branches inside each other: protobuf ends at a depth of 100
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def refuse_depth(exits: int) -> None:
    """Raise InvalidInput where a graph cannot hold so many exits."""
    if exits - 1 > DEEPEST:
        raise InvalidInput(
            f"{exits} exits: a graph holds at most {DEEPEST + 1}; train with exit_layers=, such as every second layer"
        )


def assemble(parts: ModelParts, policy: Mapping[str, Any], exit_layers: Sequence[int] | None = None) -> ModelProto:
    """Return one graph of a model's pieces.

    Inputs: the model's, and `thresholds` (1 or B, L-1). Outputs: `logits` (B, C), `exit_layer` (B,) int64,
    `logits_by_exit` (B, L, C) and, with a gate, `certainty_by_exit` (B, L); the last two are NaN after a row's exit.

    Args:
        parts: the pieces.
        policy: as data, one of `parts.metadata.policies`.
        exit_layers: the layers whose exits it reads; None = all of the graph's.

    Raises:
        InvalidInput: the steps of this policy are not there; too many exits.
    """
    key = policy_key(policy, exit_layers)
    calls = parts.metadata.policies.get(key)
    if calls is None:
        raise InvalidInput(f"the steps of {key} are not in the file, which has: {', '.join(parts.metadata.policies)}")
    read = None if exit_layers is None else tuple(exit_layers)
    metadata = replace(parts.metadata, policy=acting(policy), exit_layers=read)
    return _Assembly(replace(parts, metadata=metadata), calls).model()


def switch_policy(
    path: Path, digest: str, asked: Mapping[str, Any], exit_layers: Sequence[int] | None = None
) -> Mapping[str, Any] | None:
    """Let a file run another policy whose steps it holds.

    Args:
        path: of the file.
        digest: of the weights that it must have been made of.
        asked: a policy's name and those of its parameters that matter.
        exit_layers: the layers whose exits it reads; None = all of the graph's.

    Returns:
        The policy that it runs now, as data; None, and the file is as it was, if it holds no such steps or was made of
        other weights.
    """
    model = onnx.load(path, load_external_data=False)
    metadata = GraphMetadata.of({entry.key: entry.value for entry in model.metadata_props})
    read = None if exit_layers is None else tuple(exit_layers)
    matching: list[Mapping[str, Any]] = [
        policy
        for policy, layers in map(read_policy_key, metadata.policies)
        if asked.items() <= policy.items() and all((wrapper in policy) == (wrapper in asked) for wrapper in WRAPPERS)
        if layers == read
    ]
    if metadata.model != digest or not matching:
        return None
    with whole_path(path) as unfinished:
        onnx.save(assemble(disassemble(model), matching[0], read), unfinished)
    return matching[0]


@dataclass(frozen=True)
class _Assembly:
    """The graph of some pieces with the calls of a policy."""

    parts: ModelParts
    calls: Sequence[PolicyCall]

    @property
    def metadata(self) -> GraphMetadata:
        return self.parts.metadata

    @property
    def exits(self) -> int:
        return len(self.metadata.layers)

    def model(self) -> ModelProto:
        """Return the whole file."""
        refuse_depth(self.exits)
        graph = GraphProto(name="offramp")
        graph.input.extend(self.parts.inputs)
        graph.input.append(helper.make_tensor_value_info("thresholds", FLOAT, ["rows", self.exits - 1]))
        graph.initializer.extend(self.parts.shared)
        for name, value in (("axis1", [1]), ("flat", [-1]), ("nan", math.nan)):
            _constant(graph, name, np.array(value, np.float32 if name == "nan" else np.int64))
        _add(graph, "Identity", ["thresholds"], [names.carry(0, "limits")])
        if self.metadata.first_block:  # what goes on from exit 0 to the embedding
            for value in self.parts.inputs:
                _add(graph, "Identity", [value.name], [names.carry(0, value.name)])
        self._level(graph, 0)
        self._outputs(graph)
        opsets = [
            helper.make_opsetid("", OPSET),
            helper.make_opsetid("com.microsoft", 1),
            helper.make_opsetid(DOMAIN, 1),
        ]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="offramp", ir_version=10)
        model.functions.extend(self.parts.functions.values())
        model.functions.extend(self._uncalled_cut(i) for i in range(self.exits - 1) if not self._reads(i))
        helper.set_model_props(model, self.metadata.to_metadata())
        return model

    def _level(self, graph: GraphProto, i: int) -> None:
        """Add block, exit and step i, and the deeper ones in a branch; writes `table(i)`."""
        if i == self.metadata.first_block:
            graph.initializer.extend(self.parts.embed.weights)
            graph.node.extend(self.parts.embed.nodes)
        graph.initializer.extend(self.parts.levels[i].weights)
        graph.node.extend(self.parts.levels[i].nodes)
        outputs = [names.logits(i)]
        if self.metadata.certainty:
            _add(graph, "Unsqueeze", [names.certainty(i), "axis1"], [names.certainty_column(i)])
            outputs.append(names.certainty_column(i))
        self._step(graph, i)
        behind = f"{names.table(i)}.behind"
        if i == self.exits - 1:
            self._leave(graph, i, behind)
        elif self._reads(i):
            _add(graph, "ReduceMax", [names.continues(i)], [f"any_continues{i}"], keepdims=0)
            leave, answers = GraphProto(name=f"all_left{i}"), f"all_left{i}.answers"
            self._leave(leave, i, answers)
            leave.output.append(_info(answers, FLOAT))
            _branch(graph, f"any_continues{i}", [behind], names.if_continues(i), self._deeper(i), leave)
        else:
            for field in self._carried(i):
                _add(graph, "Identity", [self._after(i, field)], [names.carry(i + 1, field)])
            self._level(graph, i + 1)
            behind = names.table(i + 1)
        _add(graph, "Concat", [*outputs, behind], [names.table(i)], axis=1)

    def _leave(self, graph: GraphProto, i: int, answers: str) -> None:
        """Write `answers` of all rows at exit i: NaN for the later exits, the answer, the layer."""
        later = (self.exits - 1 - i) * (self.metadata.outputs + self.metadata.certainty)
        answer = names.answer(i) if self.calls[i].answers else names.logits(i)
        if later:
            _constant(graph, f"{answers}.later", np.array([0, later, 0, 0]))
            _add(graph, "Pad", [answer, f"{answers}.later", "nan"], [f"{answers}.filled"])
            answer = f"{answers}.filled"
        _constant(graph, f"{answers}.column", np.array([0, 0, 0, 1]))
        _constant(graph, f"{answers}.layer", np.array(self.metadata.layers[i], dtype=np.float32))
        _add(graph, "Pad", [answer, f"{answers}.column", f"{answers}.layer"], [answers])

    def _step(self, graph: GraphProto, i: int) -> None:
        """Call the policy's function of exit i, if it has one."""
        call = self.calls[i]
        if call.function is None:
            return
        reads, writes = [names.logits(i)], []
        if self.metadata.certainty:
            reads.append(names.certainty(i))
        if i < self.exits - 1:
            _constant(graph, f"{names.limit(i)}.column", np.array(i))
            _add(graph, "Gather", [names.carry(i, "limits"), f"{names.limit(i)}.column"], [names.limit(i)], axis=1)
            reads.append(names.limit(i))
            writes.append(names.continues(i))
        memory = self.calls[i - 1].memory if i else ()
        reads += [names.carry(i, f"memory{number}") for number in range(len(memory))]
        if call.answers:
            writes.append(names.answer(i))
        writes += [names.after(i, f"memory{number}") for number in range(len(call.memory))]
        graph.node.append(helper.make_node(call.function, reads, writes, f"step{i}", domain=DOMAIN))

    def _reads(self, i: int) -> bool:
        """Return whether the policy reads exit i, which is not the last one."""
        return self.calls[i].function is not None

    def _uncalled_cut(self, i: int) -> FunctionProto:
        """Return the cut after exit i as a function, from which `disassemble` takes it again."""
        cut, outputs = self.parts.cuts[i], [names.cut(i, field) for field in self.metadata.carried[i]]
        constants = [helper.make_node("Constant", [], [weight.name], value=weight) for weight in cut.weights]
        inner = {name for node in (*constants, *cut.nodes) for name in node.output}
        reads = dict.fromkeys(name for node in cut.nodes for name in node.input if name and name not in inner)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_function(
            DOMAIN, names.uncalled_cut(i), list(reads), outputs, [*constants, *cut.nodes], opsets
        )

    def _deeper(self, i: int) -> GraphProto:
        """Return the branch after exit i: the cut of the batch, the next level, and the answers of both."""
        graph, kinds = GraphProto(name=f"deeper{i}"), self._carried(i)
        _add(graph, "ReduceMin", [names.continues(i)], [f"all_continue{i}"], keepdims=0)
        whole = GraphProto(name=f"whole{i}")
        for field, kind in kinds.items():
            _add(whole, "Identity", [self._after(i, field)], [f"whole{i}.{field}"])
            whole.output.append(_info(f"whole{i}.{field}", kind))
        outputs = [names.carry(i + 1, field) for field in kinds]
        _branch(graph, f"all_continue{i}", outputs, names.if_all_continue(i), whole, self._cut(i, kinds))
        self._level(graph, i + 1)
        here, rows = f"left{i}.answers", f"left{i}.rows"
        self._leave(graph, i, here)
        _add(graph, "NonZero", [names.continues(i)], [f"{rows}.row"])  # (1, K)
        _add(graph, "Transpose", [f"{rows}.row"], [rows], perm=[1, 0])
        _add(graph, "ScatterND", [here, rows, names.table(i + 1)], [f"deeper{i}.answers"])
        graph.output.append(_info(f"deeper{i}.answers", FLOAT))
        return graph

    def _cut(self, i: int, kinds: Mapping[str, int]) -> GraphProto:
        """Return the branch that takes the rows that continue; of limits that all rows share, a row for each."""
        graph, rows = GraphProto(name=f"fewer{i}"), names.rows(i)
        _add(graph, "NonZero", [names.continues(i)], [f"{rows}.indices"])  # (1, K)
        _add(graph, "Reshape", [f"{rows}.indices", "flat"], [rows])  # (K,)
        _add(graph, "Shape", [names.carry(i, "limits")], [f"{rows}.limits"], start=0, end=1)
        _add(graph, "Mod", [rows, f"{rows}.limits"], [f"{rows}.of_limits"])
        graph.initializer.extend(self.parts.cuts[i].weights)
        graph.node.extend(self.parts.cuts[i].nodes)
        for field, kind in kinds.items():
            if field not in self.metadata.carried[i]:
                chosen = f"{rows}.of_limits" if field == "limits" else rows
                _add(graph, "Gather", [self._after(i, field), chosen], [names.cut(i, field)], axis=0)
            graph.output.append(_info(names.cut(i, field), kind))
        return graph

    def _carried(self, i: int) -> dict[str, int]:
        """Return what goes on from exit i, with element types: the carry's fields, memory and limits."""
        return {**self.metadata.carried[i], **self._memory(i), "limits": FLOAT}

    def _memory(self, i: int) -> dict[str, int]:
        """Return the fields of the policy's memory after exit i, with element types."""
        return {f"memory{number}": kind for number, kind in enumerate(self.calls[i].memory)}

    def _after(self, i: int, field: str) -> str:
        """Return the name of a field's value after exit i."""
        remembered = self._reads(i) and field in self._memory(i)
        written = field in self.metadata.written[i] or remembered
        return (names.after if written else names.carry)(i, field)

    def _outputs(self, graph: GraphProto) -> None:
        """Split the table into the graph's outputs."""
        outputs, gate, exits = self.metadata.outputs, self.metadata.certainty, self.exits
        _constant(graph, "columns", np.array([exits * (outputs + gate), outputs, 1]))
        _add(graph, "Split", [names.table(0), "columns"], ["by_exit", "logits", "layer"], axis=1)
        _add(graph, "Squeeze", ["layer", "axis1"], ["layer_number"])
        _add(graph, "Cast", ["layer_number"], ["exit_layer"], to=INT)
        _constant(graph, "by_exit.shape", np.array([0, exits, outputs + gate]))
        _add(graph, "Reshape", ["by_exit", "by_exit.shape"], ["all_outputs" if gate else "logits_by_exit"])
        shapes: list[tuple[str, int, list[str | int]]] = [
            ("logits", FLOAT, ["batch", outputs]),
            ("exit_layer", INT, ["batch"]),
            ("logits_by_exit", FLOAT, ["batch", exits, outputs]),
        ]
        if gate:
            _constant(graph, "output_columns", np.array([outputs, 1]))
            _add(graph, "Split", ["all_outputs", "output_columns"], ["logits_by_exit", "certainties"], axis=2)
            _constant(graph, "inner_axis", np.array([2]))
            _add(graph, "Squeeze", ["certainties", "inner_axis"], ["certainty_by_exit"])
            shapes.append(("certainty_by_exit", FLOAT, ["batch", exits]))
        graph.output.extend(helper.make_tensor_value_info(*shape) for shape in shapes)


def _branch(
    graph: GraphProto, condition: str, outputs: Sequence[str], name: str, then: GraphProto, otherwise: GraphProto
) -> None:
    _add(graph, "If", [condition], outputs, name, then_branch=then, else_branch=otherwise)


def _add(
    graph: GraphProto,
    kind: str,
    reads: Sequence[str],
    writes: Sequence[str],
    name: str | None = None,
    **attributes: Any,
) -> None:
    graph.node.append(helper.make_node(kind, reads, writes, name or f"{kind}:{writes[0]}", **attributes))


def _constant(graph: GraphProto, name: str, value: np.ndarray[Any, Any]) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))


def _info(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)
