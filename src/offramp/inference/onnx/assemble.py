"""Pieces of a model -> one ONNX graph that leaves early: the loop of `engine/loop.py`, unrolled. No torch in here.

    embed, block 1, exit 1, step 1
    If anybody stays:  If not all stay: write the answers of all who are left, cut the batch
                       block 2, exit 2, step 2
                       If anybody stays: ...
    else:              write the answers of all who are left

The branches lie inside each other, and each block's weights belong to the branch that uses them, where ONNX Runtime
packs them ahead; weights that several blocks share belong to the outer graph. Values have fixed names: what goes into
block i (0-based) is `carry{i}.FIELD`, what has left it `seen{i}.FIELD`, what its exit says `logits{i}` and
`certainty{i}`. A step of a policy is a function of the ONNX file, called at each exit; a file holds those of several
policies, so another one is a matter of other calls.

Along with the carry go the table of answers, a row a sample, and each sample's state: its row number, its thresholds
and what exits have said so far. Where somebody leaves, all write state, answer and layer into the table, and who stays
writes over them later: that is less to do than to tell them apart. What exits behind that one would have said is a
filler there, which becomes NaN at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import ABOUT, GraphMetadata, PolicyCall
from offramp.inference.onnx.pieces import ModelParts, _acting, disassemble, policy_key
from offramp.policies.registry import WRAPPERS

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


def assemble(parts: ModelParts, policy: Mapping[str, Any]) -> ModelProto:
    """One graph of a model's pieces.

    Inputs: the model's, and `thresholds` (1 or B, L-1). Outputs: `logits` (B, C), `exit_layer` (B,) int64,
    `logits_by_exit` (B, L, C) and, with a gate, `certainty_by_exit` (B, L); the last two are NaN behind a row's exit.

    Args:
        parts: the pieces.
        policy: as data, one of `parts.metadata.policies`.

    Raises:
        InvalidInput: the steps of this policy are not there; too many exits.
    """
    calls = parts.metadata.policies.get(policy_key(policy))
    if calls is None:
        known = ", ".join(parts.metadata.policies)
        raise InvalidInput(f"the steps of {policy_key(policy)} are not in the file, which has: {known}")
    return _Assembly(parts, calls).model(_acting(policy))


def switch_policy(path: Path, digest: str, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Let a file run another policy whose steps it holds.

    Args:
        path: of the file.
        digest: of the weights that it must have been made of.
        asked: a policy's name and those of its parameters that matter.

    Returns:
        The policy that it runs now, as data; None, and the file is as it was, if it holds no such steps or was made of
        other weights.
    """
    model = onnx.load(path, load_external_data=False)
    about = GraphMetadata.of({each.key: each.value for each in model.metadata_props})
    held = [json.loads(key) for key in about.policies]
    found = [
        policy
        for policy in held
        if asked.items() <= policy.items() and all((wrapper in policy) == (wrapper in asked) for wrapper in WRAPPERS)
    ]
    if about.model != digest or not found:
        return None
    unfinished = path.with_name(path.name + ".unfinished")
    onnx.save(assemble(disassemble(model), found[0]), unfinished)
    unfinished.replace(path)
    policy: Mapping[str, Any] = found[0]
    return policy


@dataclass(frozen=True)
class _Assembly:
    """Builds the graph of some pieces with the calls of a policy."""

    parts: ModelParts
    calls: Sequence[PolicyCall]

    @property
    def metadata(self) -> GraphMetadata:
        return self.parts.metadata

    @property
    def exits(self) -> int:
        return len(self.metadata.layers)

    def model(self, policy: Mapping[str, Any]) -> ModelProto:
        """The whole file."""
        refuse_depth(self.exits)
        graph = GraphProto(name="offramp")
        graph.input.extend(self.parts.inputs)
        graph.input.append(helper.make_tensor_value_info("thresholds", FLOAT, ["rows", self.exits - 1]))
        graph.initializer.extend([*self.parts.shared, *self.parts.embed.weights])
        graph.node.extend(self.parts.embed.nodes)
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
        about = {**asdict(self.metadata), "policy": dict(policy)}
        helper.set_model_props(model, {ABOUT: json.dumps(about)})
        return model

    def _start(self, graph: GraphProto) -> None:
        """What each sample brings along, its row number and its thresholds; and the table of answers, still empty."""
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
        _add(graph, "Concat", ["rows.float", "limits"], ["carry0.state"], axis=1)
        _add(graph, "ConstantOfShape", ["table.shape"], ["carry0.table"])

    def _columns(self, exits: int) -> int:
        """Of the table, but the last: row number, thresholds, what so many exits say, the answer."""
        return self.exits + exits * (self.metadata.outputs + self.metadata.certainty) + self.metadata.outputs

    def _level(self, graph: GraphProto, i: int) -> None:
        """Block, exit and step i, and in a branch all that is deeper; writes `table{i}`."""
        last = i == self.exits - 1
        graph.initializer.extend(self.parts.levels[i].weights)
        graph.node.extend(self.parts.levels[i].nodes)
        said = [f"logits{i}"]
        if self.metadata.certainty:
            _add(graph, "Unsqueeze", [f"certainty{i}", "axis1"], [f"certain{i}"])
            said.append(f"certain{i}")
        _add(graph, "Concat", [f"carry{i}.state", *said], [f"seen{i}.state"], axis=1)
        self._step(graph, i, self.calls[i], last)
        if last:
            self._write(graph, i, f"table{i}")
            return
        _add(graph, "ReduceMax", [f"stays{i}"], [f"anybody{i}"], keepdims=0)
        leave = GraphProto(name=f"all_left{i}")
        self._write(leave, i, f"all{i}.table")
        leave.output.append(_info(f"all{i}.table", FLOAT))
        _add(graph, "If", [f"anybody{i}"], [f"table{i}"], f"go_on{i}", then_branch=self._deeper(i), else_branch=leave)

    def _write(self, graph: GraphProto, i: int, table: str) -> None:
        """Write the table's rows of all who are at exit i: who stays writes over them again further up."""
        silent = self._columns(self.exits) - self._columns(i + 1)
        _constant(graph, f"{table}.silent", np.array([0, silent, 0, 1]))
        _constant(graph, f"{table}.layer", np.array(self.metadata.layers[i], dtype=np.float32))
        answer = f"answer{i}" if self.calls[i].answers else f"logits{i}"
        _add(graph, "Pad", [answer, f"{table}.silent", f"{table}.layer"], [f"{table}.answer"])
        _add(graph, "Concat", [f"seen{i}.state", f"{table}.answer"], [f"{table}.all"], axis=1)
        _constant(graph, f"{table}.first", np.array([0]))
        _add(graph, "Gather", [f"carry{i}.state", f"{table}.first"], [f"{table}.number"], axis=1)  # (K, 1)
        _add(graph, "Cast", [f"{table}.number"], [f"{table}.row"], to=INT)
        _add(graph, "ScatterND", [f"carry{i}.table", f"{table}.row", f"{table}.all"], [table])

    def _step(self, graph: GraphProto, i: int, call: PolicyCall, last: bool) -> None:
        if call.function is None:
            return
        reads, writes = [f"logits{i}"], []
        if self.metadata.certainty:
            reads.append(f"certainty{i}")
        if not last:
            _constant(graph, f"limit{i}.column", np.array(1 + i))
            _add(graph, "Gather", [f"carry{i}.state", f"limit{i}.column"], [f"limit{i}"], axis=1)
            reads.append(f"limit{i}")
            writes.append(f"stays{i}")
        remembered = self.calls[i - 1].memory if i else ()
        reads += [f"carry{i}.memory{number}" for number in range(len(remembered))]
        if call.answers:
            writes.append(f"answer{i}")
        writes += [f"seen{i}.memory{number}" for number in range(len(call.memory))]
        graph.node.append(helper.make_node(call.function, reads, writes, f"step{i}", domain=DOMAIN))

    def _deeper(self, i: int) -> GraphProto:
        """What those who stay go on to."""
        graph = GraphProto(name=f"stayed{i}")
        brought = self._brought(i)
        _add(graph, "ReduceMin", [f"stays{i}"], [f"everybody{i}"], keepdims=0)
        whole = GraphProto(name=f"whole{i}")
        for name, kind in brought.items():
            _add(whole, "Identity", [self._seen(i, name)], [f"whole{i}.{name}"])
            whole.output.append(_info(f"whole{i}.{name}", kind))
        outputs = [f"carry{i + 1}.{name}" for name in brought]
        _add(graph, "If", [f"everybody{i}"], outputs, f"cut{i}", then_branch=whole, else_branch=self._cut(i, brought))
        self._level(graph, i + 1)
        graph.output.append(_info(f"table{i + 1}", FLOAT))
        return graph

    def _cut(self, i: int, brought: Mapping[str, int]) -> GraphProto:
        """Write answers, and take the rows of those who stay."""
        graph = GraphProto(name=f"fewer{i}")
        _add(graph, "NonZero", [f"stays{i}"], [f"row{i}.found"])  # (1, K)
        _add(graph, "Reshape", [f"row{i}.found", "flat"], [f"row{i}"])  # (K,)
        self._write(graph, i, f"cut{i}.table")
        graph.initializer.extend(self.parts.cuts[i].weights)
        graph.node.extend(self.parts.cuts[i].nodes)
        for name, kind in brought.items():
            if name != "table" and name not in self.metadata.carried[i]:
                _add(graph, "Gather", [self._seen(i, name), f"row{i}"], [f"cut{i}.{name}"], axis=0)
            graph.output.append(_info(f"cut{i}.{name}", kind))
        return graph

    def _brought(self, i: int) -> dict[str, int]:
        """What goes on from exit i, with its element types: fields of the carry, what rows bring along, the table."""
        memory = {f"memory{number}": kind for number, kind in enumerate(self.calls[i].memory)}
        return {**self.metadata.carried[i], **memory, "state": FLOAT, "table": FLOAT}

    def _seen(self, i: int, name: str) -> str:
        """The value of a field behind exit i."""
        fresh = name in self.metadata.written[i] or name == "state" or name.startswith("memory")
        return f"seen{i}.{name}" if fresh else f"carry{i}.{name}"

    def _outputs(self, graph: GraphProto) -> None:
        """Cut the table into what the graph gives."""
        outputs, gate, exits = self.metadata.outputs, self.metadata.certainty, self.exits
        _constant(graph, "columns", np.array([exits, exits * (outputs + gate), outputs, 1]))
        _add(graph, "Split", ["table0", "columns"], ["brought", "said", "logits", "layer"], axis=1)
        _add(graph, "Squeeze", ["layer", "axis1"], ["layer_number"])
        _add(graph, "Cast", ["layer_number"], ["exit_layer"], to=INT)
        _constant(graph, "by_exit", np.array([0, exits, outputs + gate]))
        _add(graph, "Reshape", ["said", "by_exit"], ["with_fillers"])
        _constant(graph, "numbers", np.array(self.metadata.layers, dtype=np.float32))
        _add(graph, "Greater", ["numbers", "layer"], ["behind"])  # (B, L)
        _constant(graph, "inner_axis", np.array([2]))
        _add(graph, "Unsqueeze", ["behind", "inner_axis"], ["silent"])
        _constant(graph, "nothing", np.array(math.nan, dtype=np.float32))
        every = "all_said" if gate else "logits_by_exit"
        _add(graph, "Where", ["silent", "nothing", "with_fillers"], [every])
        told: list[tuple[str, int, list[str | int]]] = [
            ("logits", FLOAT, ["batch", outputs]),
            ("exit_layer", INT, ["batch"]),
            ("logits_by_exit", FLOAT, ["batch", exits, outputs]),
        ]
        if gate:
            _constant(graph, "said_columns", np.array([outputs, 1]))
            _add(graph, "Split", [every, "said_columns"], ["logits_by_exit", "certain"], axis=2)
            _add(graph, "Squeeze", ["certain", "inner_axis"], ["certainty_by_exit"])
            told.append(("certainty_by_exit", FLOAT, ["batch", exits]))
        graph.output.extend(helper.make_tensor_value_info(*each) for each in told)


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
