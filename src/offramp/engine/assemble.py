"""Pieces of a model -> one ONNX graph that leaves early: the loop of `engine/loop.py`, unrolled. No torch in here.

    embed, block 1, exit 1, step 1
    If anybody stays:  If not all stay: cut the batch
                       block 2, exit 2, step 2
                       If anybody stays: ...
                       scatter the answers of those who went on among the others'

The branches lie inside each other, and each block's weights are in the branch that uses them, where ONNX Runtime packs
them ahead; weights that several blocks share are in the outer graph. Values have fixed names: what goes into block i
(0-based) is `carry{i}.FIELD`, what has left it `seen{i}.FIELD`, what its exit says `logits{i}` and `certainty{i}`. A
step of a policy is a function of the ONNX file, called at each exit; a file holds those of several policies, so another
one is a matter of other calls.

Each level hands back one table, a row a sample: what every exit from here on said, then the answer and its layer. Where
a row has left already stands a filler, which becomes NaN at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from offramp.engine.about import ABOUT, About, StepCall
from offramp.errors import InvalidInput
from offramp.registry import WRAPPERS

OPSET = 20
DOMAIN = "offramp.steps"
DEEPEST = 32  # `onnx` cannot parse more branches inside each other: protobuf ends at a depth of 100
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Fragment:
    """Nodes with their weights; they read and write values by name."""

    nodes: tuple[NodeProto, ...]
    weights: tuple[TensorProto, ...] = ()


@dataclass(frozen=True)
class Parts:
    """A model in pieces, and the steps of some policies.

    Attributes:
        inputs: of the graph, as ONNX describes them.
        embed: reads the inputs, writes `carry0.*`.
        levels: one an exit: the block that leads to it, and what it says.
        cuts: one for each exit but the last: reads `row{i}` and what goes on, writes `cut{i}.*`.
        shared: weights that several levels read.
        functions: the steps of policies, by name.
        about: what is known of them.
    """

    inputs: tuple[onnx.ValueInfoProto, ...]
    embed: Fragment
    levels: tuple[Fragment, ...]
    cuts: tuple[Fragment, ...]
    shared: tuple[TensorProto, ...]
    functions: Mapping[str, FunctionProto]
    about: About


def policy_key(policy: Mapping[str, Any]) -> str:
    """A policy as data -> its key among a file's policies; the rows that it was fitted on do not belong to it."""
    return json.dumps(_acting(policy), sort_keys=True)


def _acting(policy: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy does, as data."""
    return {
        name: _acting(value) if isinstance(value, Mapping) else value
        for name, value in policy.items()
        if name != "fitted_on"
    }


def assemble(parts: Parts, policy: Mapping[str, Any]) -> ModelProto:
    """One graph of a model's pieces.

    Inputs: the model's, and `thresholds` (1 or B, L-1). Outputs: `logits` (B, C), `exit_layer` (B,) int64,
    `logits_by_exit` (B, L, C) and, with a gate, `certainty_by_exit` (B, L); the last two are NaN behind a row's exit.

    Args:
        parts: the pieces.
        policy: as data, one of `parts.about.policies`.

    Raises:
        InvalidInput: the steps of this policy are not there; too many exits.
    """
    calls = parts.about.policies.get(policy_key(policy))
    if calls is None:
        known = ", ".join(parts.about.policies)
        raise InvalidInput(f"the steps of {policy_key(policy)} are not in the file, which has: {known}")
    return _Assembly(parts, calls).model(_acting(policy))


def take_apart(model: ModelProto) -> Parts:
    """The pieces of a graph that `assemble` made.

    Raises:
        InvalidInput: it is none of ours.
    """
    about = About.of({each.key: each.value for each in model.metadata_props})
    scopes = list(_scopes(model.graph, len(about.layers)))
    weights = [{weight.name: weight for weight in scope.initializer} for scope in scopes]

    def piece(prefix: str, scope: GraphProto, held: Mapping[str, TensorProto]) -> Fragment:
        nodes = tuple(node for node in scope.node if node.name.startswith(prefix))
        return Fragment(nodes, tuple(weight for name, weight in held.items() if name.startswith(prefix)))

    cuts = []
    for number, scope in enumerate(scopes[1:]):
        cut = _branch(_named(scope, f"cut{number}"), "else_branch")
        cuts.append(piece(f"cut{number}/", cut, {weight.name: weight for weight in cut.initializer}))
    return Parts(
        inputs=tuple(each for each in model.graph.input if each.name != "thresholds"),
        embed=piece("embed/", scopes[0], weights[0]),
        levels=tuple(piece(f"level{i}/", scope, weights[i]) for i, scope in enumerate(scopes)),
        cuts=tuple(cuts),
        shared=tuple(weight for name, weight in weights[0].items() if name.startswith("shared/")),
        functions={function.name: function for function in model.functions},
        about=about,
    )


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
    model = onnx.load(path)
    about = About.of({each.key: each.value for each in model.metadata_props})
    held = [json.loads(key) for key in about.policies]
    found = [
        policy
        for policy in held
        if asked.items() <= policy.items() and all((wrapper in policy) == (wrapper in asked) for wrapper in WRAPPERS)
    ]
    if about.model != digest or not found:
        return None
    unfinished = path.with_name(path.name + ".unfinished")
    onnx.save(assemble(take_apart(model), found[0]), unfinished)
    unfinished.replace(path)
    policy: Mapping[str, Any] = found[0]
    return policy


def _scopes(graph: GraphProto, exits: int) -> Iterable[GraphProto]:
    """The graph of each level, from the outermost."""
    for number in range(exits):
        yield graph
        if number < exits - 1:
            graph = _branch(_named(graph, f"go_on{number}"), "then_branch")


def _named(graph: GraphProto, name: str) -> NodeProto:
    found: NodeProto = next(node for node in graph.node if node.name == name)
    return found


def _branch(node: NodeProto, name: str) -> GraphProto:
    found: GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == name)
    return found


@dataclass(frozen=True)
class _Assembly:
    """Builds the graph of some pieces with the calls of a policy."""

    parts: Parts
    calls: Sequence[StepCall]

    @property
    def about(self) -> About:
        return self.parts.about

    @property
    def exits(self) -> int:
        return len(self.about.layers)

    @property
    def said(self) -> int:
        """Columns that an exit has in the table."""
        return self.about.outputs + self.about.certainty

    def model(self, policy: Mapping[str, Any]) -> ModelProto:
        """The whole file."""
        if self.exits - 1 > DEEPEST:
            raise InvalidInput(
                f"{self.exits} exits: a graph holds at most {DEEPEST + 1}; give the model exit_layers=, such as every "
                "second one"
            )
        graph = GraphProto(name="offramp")
        graph.input.extend(self.parts.inputs)
        graph.input.append(helper.make_tensor_value_info("thresholds", FLOAT, ["rows", self.exits - 1]))
        graph.initializer.extend([*self.parts.shared, *self.parts.embed.weights])
        graph.node.extend(self.parts.embed.nodes)
        self._limits(graph)
        self._level(graph, 0)
        self._outputs(graph)
        opsets = [
            helper.make_opsetid("", OPSET),
            helper.make_opsetid("com.microsoft", 1),
            helper.make_opsetid(DOMAIN, 1),
        ]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="offramp", ir_version=10)
        model.functions.extend(self.parts.functions.values())
        about = {**asdict(self.about), "policy": dict(policy)}
        helper.set_model_props(model, {ABOUT: json.dumps(about)})
        return model

    def _limits(self, graph: GraphProto) -> None:
        """A row of thresholds for each sample, whether one was given or B."""
        first = self.parts.inputs[0].name
        _add(graph, "Shape", [first], ["rows"], start=0, end=1)
        _constant(graph, "limits_an_exit", np.array([self.exits - 1]))
        _add(graph, "Concat", ["rows", "limits_an_exit"], ["limits_shape"], axis=0)
        _add(graph, "Expand", ["thresholds", "limits_shape"], ["carry0.thresholds"])

    def _level(self, graph: GraphProto, i: int) -> None:
        """Block, exit and step i, and in a branch all that is deeper; writes `table{i}`."""
        level, call, last = self.parts.levels[i], self.calls[i], i == self.exits - 1
        graph.initializer.extend(level.weights)
        graph.node.extend(level.nodes)
        said = [f"logits{i}"]
        if self.about.certainty:
            _constant(graph, f"column{i}", np.array([1]))
            _add(graph, "Unsqueeze", [f"certainty{i}", f"column{i}"], [f"certain{i}"])
            said.append(f"certain{i}")
        self._step(graph, i, call, last)
        silent = (self.exits - 1 - i) * self.said
        _constant(graph, f"silent{i}", np.array([0, silent, 0, 1]))
        _constant(graph, f"number{i}", np.array(self.about.layers[i], dtype=np.float32))
        answer = f"answer{i}" if call.answers else f"logits{i}"
        _add(graph, "Pad", [answer, f"silent{i}", f"number{i}"], [f"left{i}"])
        if last:
            _add(graph, "Concat", [*said, f"left{i}"], [f"table{i}"], axis=1)
            return
        _add(graph, "ReduceMax", [f"stays{i}"], [f"anybody{i}"], keepdims=0)
        leave = GraphProto(name=f"all_left{i}")
        _add(leave, "Identity", [f"left{i}"], [f"done{i}"])
        leave.output.append(_info(f"done{i}", FLOAT))
        _add(graph, "If", [f"anybody{i}"], [f"rest{i}"], f"go_on{i}", then_branch=self._deeper(i), else_branch=leave)
        _add(graph, "Concat", [*said, f"rest{i}"], [f"table{i}"], axis=1)

    def _step(self, graph: GraphProto, i: int, call: StepCall, last: bool) -> None:
        if call.function is None:
            return
        reads, writes = [f"logits{i}"], []
        if self.about.certainty:
            reads.append(f"certainty{i}")
        if not last:
            _constant(graph, f"exit{i}", np.array(i))
            _add(graph, "Gather", [f"carry{i}.thresholds", f"exit{i}"], [f"limit{i}"], axis=1)
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
        _add(graph, "NonZero", [f"stays{i}"], [f"who{i}"])  # (1, K)
        _add(graph, "Transpose", [f"who{i}"], [f"rows{i}"], perm=[1, 0])  # (K, 1)
        types = self._going_on(i)
        _add(graph, "ReduceMin", [f"stays{i}"], [f"all{i}"], keepdims=0)
        whole, cut = GraphProto(name=f"whole{i}"), GraphProto(name=f"fewer{i}")
        for name, kind in types.items():
            _add(whole, "Identity", [self._seen(i, name)], [f"whole{i}.{name}"])
            whole.output.append(_info(f"whole{i}.{name}", kind))
            cut.output.append(_info(f"cut{i}.{name}", kind))
        _constant(cut, f"flat{i}", np.array([0]))
        _add(cut, "Squeeze", [f"who{i}", f"flat{i}"], [f"row{i}"])
        cut.initializer.extend(self.parts.cuts[i].weights)
        cut.node.extend(self.parts.cuts[i].nodes)
        for name in types:
            if name not in self.about.carried[i]:
                _add(cut, "Gather", [self._seen(i, name), f"row{i}"], [f"cut{i}.{name}"], axis=0)
        outputs = [f"carry{i + 1}.{name}" for name in types]
        _add(graph, "If", [f"all{i}"], outputs, f"cut{i}", then_branch=whole, else_branch=cut)
        self._level(graph, i + 1)
        _add(graph, "ScatterND", [f"left{i}", f"rows{i}", f"table{i + 1}"], [f"merged{i}"])
        graph.output.append(_info(f"merged{i}", FLOAT))
        return graph

    def _going_on(self, i: int) -> dict[str, int]:
        memory = {f"memory{number}": kind for number, kind in enumerate(self.calls[i].memory)}
        limits = {"thresholds": FLOAT} if i + 2 < self.exits else {}
        return {**self.about.carried[i], **limits, **memory}

    def _seen(self, i: int, name: str) -> str:
        """The value of a field behind block i."""
        fresh = name in self.about.written[i] or name.startswith("memory")
        return f"seen{i}.{name}" if fresh else f"carry{i}.{name}"

    def _outputs(self, graph: GraphProto) -> None:
        """Cut the table into what the graph gives."""
        outputs, gate, exits = self.about.outputs, self.about.certainty, self.exits
        _constant(graph, "columns", np.array([exits * self.said, outputs, 1]))
        _add(graph, "Split", ["table0", "columns"], ["said", "logits", "layer"], axis=1)
        _constant(graph, "last_axis", np.array([1]))
        _add(graph, "Squeeze", ["layer", "last_axis"], ["layer_number"])
        _add(graph, "Cast", ["layer_number"], ["exit_layer"], to=INT)
        _constant(graph, "by_exit", np.array([0, exits, self.said]))
        _add(graph, "Reshape", ["said", "by_exit"], ["with_fillers"])
        _constant(graph, "numbers", np.array(self.about.layers, dtype=np.float32))
        _add(graph, "Greater", ["numbers", "layer"], ["behind"])  # (B, L)
        _constant(graph, "inner_axis", np.array([2]))
        _add(graph, "Unsqueeze", ["behind", "inner_axis"], ["silent"])
        _constant(graph, "nothing", np.array(math.nan, dtype=np.float32))
        every = "all_said" if gate else "logits_by_exit"
        _add(graph, "Where", ["silent", "nothing", "with_fillers"], [every])
        told: list[tuple[str, int, list[str | int]]] = [
            ("logits", FLOAT, ["batch", outputs]),
            ("exit_layer", INT, ["batch"]),
        ]
        told.append(("logits_by_exit", FLOAT, ["batch", exits, outputs]))
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
