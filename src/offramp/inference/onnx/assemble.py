"""Pieces of a model -> one ONNX graph that leaves early: the loop of `early_exit/loop.py`, unrolled. No torch in here.

    block 0, exit 0, step 0
    if a row continues:  if a row leaves: write answers, cut the batch
                         block 1, exit 1, step 1
                         if a row continues: ...
    else:                write answers

An exit before the first layer is exit 0 and has no block: it reads the inputs, which are then cut as the carry is, and
the embedding runs in the branch of block 1, on the rows that continue.

The branches lie inside each other, and each block's weights belong to the branch that uses them, where ONNX Runtime
packs them ahead; weights that several blocks share belong to the outer graph. `names.py` has the names of the values.
A step of a policy is a function of the ONNX file, called at each exit; a file holds those of several policies, so
another policy is a matter of other calls. An exit that the policy does not read has no branch: its logits are an output
and no row leaves there. The cut that another policy needs after it is kept as a function that nothing calls.

Two values go from level to level with the carry: the table of answers, with a row for each sample, and the state: each
sample's number in the table, its thresholds and the outputs of the exits so far. Where a sample leaves, all samples at
that exit are written into the table, and those that continue are written again later, which costs less than selecting
the ones that leave. Columns of later exits hold a filler, which becomes NaN at the end.
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
from offramp.inference.onnx.metadata import GraphMetadata, PolicyCall, acting, policy_key, read_policy_key
from offramp.inference.onnx.pieces import ModelParts, disassemble
from offramp.policies.registry import WRAPPERS
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
        self._start(graph)
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

    def _start(self, graph: GraphProto) -> None:
        """Add the state of each sample, its row number and its thresholds, and the table of answers, still empty."""
        for name, value in (("zero", 0), ("one", 1), ("axis1", [1]), ("flat", [-1])):
            _constant(graph, name, np.array(value))
        _add(graph, "Shape", [self.parts.inputs[0].name], ["rows"], start=0, end=1)
        _add(graph, "Squeeze", ["rows"], ["rows.number"])
        _add(graph, "Range", ["zero", "rows.number", "one"], ["rows.range"])
        _add(graph, "Unsqueeze", ["rows.range", "axis1"], ["rows.column"])  # (B, 1)
        _add(graph, "Cast", ["rows.column"], ["rows.float"], to=FLOAT)
        for name, columns in (("limits", self.exits - 1), ("table", self._columns(self.exits) + 1)):
            _constant(graph, f"{name}.columns", np.array([columns]))
            _add(graph, "Concat", ["rows", f"{name}.columns"], [f"{name}.shape"], axis=0)
        _add(graph, "Expand", ["thresholds", "limits.shape"], ["limits"])
        _add(graph, "Concat", ["rows.float", "limits"], [names.carry(0, "state")], axis=1)
        _add(graph, "ConstantOfShape", ["table.shape"], [names.carry(0, "table")])
        if self.metadata.first_block:  # what goes on from exit 0 to the embedding
            for value in self.parts.inputs:
                _add(graph, "Identity", [value.name], [names.carry(0, value.name)])

    def _columns(self, exits: int) -> int:
        """Count the table's columns but the last: row number, thresholds, the outputs of `exits` exits, the answer."""
        return self.exits + exits * (self.metadata.outputs + self.metadata.certainty) + self.metadata.outputs

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
        _add(graph, "Concat", [names.carry(i, "state"), *outputs], [names.after(i, "state")], axis=1)
        self._step(graph, i)
        if i == self.exits - 1:
            self._write(graph, i, names.table(i))
            return
        if not self._reads(i):
            for field in self._carried(i):
                _add(graph, "Identity", [self._after(i, field)], [names.carry(i + 1, field)])
            self._level(graph, i + 1)
            _add(graph, "Identity", [names.table(i + 1)], [names.table(i)])
            return
        _add(graph, "ReduceMax", [names.continues(i)], [f"any_continues{i}"], keepdims=0)
        leave, table = GraphProto(name=f"all_left{i}"), f"all_left{i}.table"
        self._write(leave, i, table)
        leave.output.append(_info(table, FLOAT))
        _branch(graph, f"any_continues{i}", [names.table(i)], names.if_continues(i), self._deeper(i), leave)

    def _write(self, graph: GraphProto, i: int, table: str) -> None:
        """Write all rows at exit i into the table; rows that continue are written again further up."""
        missing = self._columns(self.exits) - self._columns(i + 1)  # outputs of the later exits
        _constant(graph, f"{table}.padding", np.array([0, missing, 0, 1]))
        _constant(graph, f"{table}.layer", np.array(self.metadata.layers[i], dtype=np.float32))
        answer = names.answer(i) if self.calls[i].answers else names.logits(i)
        _add(graph, "Pad", [answer, f"{table}.padding", f"{table}.layer"], [f"{table}.answer"])
        _add(graph, "Concat", [names.after(i, "state"), f"{table}.answer"], [f"{table}.update"], axis=1)
        _constant(graph, f"{table}.first", np.array([0]))
        _add(graph, "Gather", [names.carry(i, "state"), f"{table}.first"], [f"{table}.number"], axis=1)  # (K, 1)
        _add(graph, "Cast", [f"{table}.number"], [f"{table}.row"], to=INT)
        _add(graph, "ScatterND", [names.carry(i, "table"), f"{table}.row", f"{table}.update"], [table])

    def _step(self, graph: GraphProto, i: int) -> None:
        """Call the policy's function of exit i, if it has one."""
        call = self.calls[i]
        if call.function is None:
            return
        reads, writes = [names.logits(i)], []
        if self.metadata.certainty:
            reads.append(names.certainty(i))
        if i < self.exits - 1:
            _constant(graph, f"{names.limit(i)}.column", np.array(1 + i))
            _add(graph, "Gather", [names.carry(i, "state"), f"{names.limit(i)}.column"], [names.limit(i)], axis=1)
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
        """Return the branch after exit i: the cut of the batch, and the next level."""
        graph, kinds = GraphProto(name=f"deeper{i}"), self._carried(i)
        _add(graph, "ReduceMin", [names.continues(i)], [f"all_continue{i}"], keepdims=0)
        whole = GraphProto(name=f"whole{i}")
        for field, kind in kinds.items():
            _add(whole, "Identity", [self._after(i, field)], [f"whole{i}.{field}"])
            whole.output.append(_info(f"whole{i}.{field}", kind))
        outputs = [names.carry(i + 1, field) for field in kinds]
        _branch(graph, f"all_continue{i}", outputs, names.if_all_continue(i), whole, self._cut(i, kinds))
        self._level(graph, i + 1)
        graph.output.append(_info(names.table(i + 1), FLOAT))
        return graph

    def _cut(self, i: int, kinds: Mapping[str, int]) -> GraphProto:
        """Return the branch that writes answers and takes the rows that continue."""
        graph, rows = GraphProto(name=f"fewer{i}"), names.rows(i)
        _add(graph, "NonZero", [names.continues(i)], [f"{rows}.indices"])  # (1, K)
        _add(graph, "Reshape", [f"{rows}.indices", "flat"], [rows])  # (K,)
        self._write(graph, i, names.cut(i, "table"))
        graph.initializer.extend(self.parts.cuts[i].weights)
        graph.node.extend(self.parts.cuts[i].nodes)
        for field, kind in kinds.items():
            if field != "table" and field not in self.metadata.carried[i]:
                _add(graph, "Gather", [self._after(i, field), rows], [names.cut(i, field)], axis=0)
            graph.output.append(_info(names.cut(i, field), kind))
        return graph

    def _carried(self, i: int) -> dict[str, int]:
        """Return what goes on from exit i, with element types: the carry's fields, memory, state and table."""
        return {**self.metadata.carried[i], **self._memory(i), "state": FLOAT, "table": FLOAT}

    def _memory(self, i: int) -> dict[str, int]:
        """Return the fields of the policy's memory after exit i, with element types."""
        return {f"memory{number}": kind for number, kind in enumerate(self.calls[i].memory)}

    def _after(self, i: int, field: str) -> str:
        """Return the name of a field's value after exit i."""
        remembered = self._reads(i) and field in self._memory(i)
        written = field in self.metadata.written[i] or field == "state" or remembered
        return (names.after if written else names.carry)(i, field)

    def _outputs(self, graph: GraphProto) -> None:
        """Split the table into the graph's outputs."""
        outputs, gate, exits = self.metadata.outputs, self.metadata.certainty, self.exits
        _constant(graph, "columns", np.array([exits, exits * (outputs + gate), outputs, 1]))
        _add(graph, "Split", [names.table(0), "columns"], ["state", "by_exit", "logits", "layer"], axis=1)
        _add(graph, "Squeeze", ["layer", "axis1"], ["layer_number"])
        _add(graph, "Cast", ["layer_number"], ["exit_layer"], to=INT)
        _constant(graph, "by_exit.shape", np.array([0, exits, outputs + gate]))
        _add(graph, "Reshape", ["by_exit", "by_exit.shape"], ["with_fillers"])
        _constant(graph, "layer_numbers", np.array(self.metadata.layers, dtype=np.float32))
        _add(graph, "Greater", ["layer_numbers", "layer"], ["behind"])  # (B, L)
        _constant(graph, "inner_axis", np.array([2]))
        _add(graph, "Unsqueeze", ["behind", "inner_axis"], ["is_filler"])
        _constant(graph, "nan", np.array(math.nan, dtype=np.float32))
        _add(graph, "Where", ["is_filler", "nan", "with_fillers"], ["all_outputs" if gate else "logits_by_exit"])
        shapes: list[tuple[str, int, list[str | int]]] = [
            ("logits", FLOAT, ["batch", outputs]),
            ("exit_layer", INT, ["batch"]),
            ("logits_by_exit", FLOAT, ["batch", exits, outputs]),
        ]
        if gate:
            _constant(graph, "output_columns", np.array([outputs, 1]))
            _add(graph, "Split", ["all_outputs", "output_columns"], ["logits_by_exit", "certainties"], axis=2)
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
