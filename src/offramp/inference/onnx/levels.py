"""A saved graph -> one small graph for each exit that its policy reads; the nested branches taken apart.

    level 0: (embedding,) the blocks that lead to the first exit that is read, the exit, the policy's step
    level 1: from there to the next exit that is read ...

What passes between two levels are the values that a nested graph hands from branch to branch. So rows can be cut,
merged and put in another order there (`carried.py`), and the exits and the logits stay what they are in the nested
graph. Exits that are not read do not run. The weights stay in the file beside the nested graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

import offramp.inference.onnx.names as names
from offramp.inference.onnx.assemble import DOMAIN, OPSET
from offramp.inference.onnx.metadata import PolicyCall, policy_key
from offramp.inference.onnx.pieces import ModelParts, needed_nodes

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
ALWAYS = "always"
"""The input of a level with shared weights; it is true."""


@dataclass(frozen=True)
class LevelSpec:
    """The inputs and outputs of one level.

    Attributes:
        layer: the layer number of its exit.
        exit: the number of its exit among those that the nested graph holds.
        reads: name of an input -> the field of a row that it takes.
        limit: name of the input that takes the threshold, (1,) or (B,); None at the last exit.
        around: whether it takes `ALWAYS` as well.
        outputs: their names: the answer's logits; but at the last exit which rows continue; the fields of `written`.
        written: the fields that the level writes, in the order of the outputs.
        unchanged: the fields that go on as they are.
    """

    layer: int
    exit: int
    reads: Mapping[str, str]
    limit: str | None
    around: bool
    outputs: tuple[str, ...]
    written: tuple[str, ...]
    unchanged: tuple[str, ...]


def level_graphs(parts: ModelParts, full_depth: bool = False) -> Iterator[tuple[ModelProto, LevelSpec]]:
    """Yield the levels of a graph's pieces as graphs, for the policy and the exits of its metadata.

    Args:
        parts: the pieces (see `disassemble`).
        full_depth: yield one level that runs all blocks and the last exit alone.
    """
    metadata = parts.metadata
    calls = metadata.policies[policy_key(metadata.policy, metadata.exit_layers)]
    last = len(metadata.layers) - 1
    read = [exit for exit, layer in enumerate(metadata.layers) if exit == last or layer in metadata.layers_read]
    if full_depth:
        calls, read = (PolicyCall(None),) * len(calls), [last]
    first = 0
    for exit in read:
        yield _LevelBuilder(parts, calls).build(first, exit)
        first = exit + 1


@dataclass
class _LevelBuilder:
    """A level that is being built.

    Attributes:
        parts: the pieces.
        calls: of the policy, one an exit.
        inputs: of the level: name -> the field of a row, and its element type.
        values: field of a row -> the name of its value.
        written: fields that are no longer those of the inputs.
        nodes: so far.
        weights: that the nodes may read, by name.
    """

    parts: ModelParts
    calls: Sequence[PolicyCall]
    inputs: dict[str, tuple[str, int]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)

    def build(self, first: int, exit: int) -> tuple[ModelProto, LevelSpec]:
        """Return the level from the piece of exit `first` to exit `exit`, which is read."""
        metadata, last = self.parts.metadata, exit == len(self.parts.metadata.layers) - 1
        # 1) what leads to the exit
        self._read_fields(first)
        for number in range(first, exit + 1):
            self._add_piece(number)
        # 2) its step, and what is returned
        limit, outputs = self._step(exit, last)
        carried = {} if last else {**metadata.carried[exit], **self._memory(exit)}
        written = tuple(name for name in carried if name in self.written)
        outputs |= {self.values[name]: carried[name] for name in written}
        # 3) the graph, without what no output needs
        nodes = needed_nodes(self.nodes, outputs)
        read = {value for node in nodes for value in node.input}
        reads = {value: name for value, (name, _) in self.inputs.items() if value in read}
        kinds = {value: kind for value, (_, kind) in self.inputs.items() if value in read}
        if limit is not None:
            kinds[limit] = FLOAT
        model = self._model(nodes, kinds, outputs)
        unchanged = tuple(name for name in carried if name not in self.written)
        around = model.graph.input[0].name == ALWAYS
        return model, LevelSpec(metadata.layers[exit], exit, reads, limit, around, tuple(outputs), written, unchanged)

    def _read_fields(self, first: int) -> None:
        """Take the fields of a row before the piece of exit `first` as inputs."""
        metadata = self.parts.metadata
        if first == 0:
            kinds = {value.name: value.type.tensor_type.elem_type for value in self.parts.inputs}
        else:
            kinds = {**metadata.carried[first - 1], **self._memory(first - 1)}
        bare = first == 0 and metadata.first_block == 0  # the embedding comes first, and reads the inputs
        fields = {name if bare else names.carry(first, name): (name, kind) for name, kind in kinds.items()}
        self.inputs = fields
        self.values = {name: value for value, (name, _) in fields.items()}

    def _add_piece(self, number: int) -> None:
        """Add what leads to an exit, and the exit."""
        metadata, fragments = self.parts.metadata, [self.parts.levels[number]]
        if number:  # the names by which this piece reads the fields
            for name in metadata.carried[number - 1]:
                if self.values[name] != names.carry(number, name):
                    self.nodes.append(helper.make_node("Identity", [self.values[name]], [names.carry(number, name)]))
        if number == metadata.first_block:
            fragments.insert(0, self.parts.embed)
        for fragment in fragments:
            self.nodes += fragment.nodes
            self.weights |= {weight.name: weight for weight in fragment.weights}
        for name in metadata.carried[number] if number < len(metadata.carried) else ():
            written = name in metadata.written[number]
            if written or number >= metadata.first_block:
                self.values[name] = (names.after if written else names.carry)(number, name)
            if written or number == metadata.first_block:
                self.written.add(name)

    def _step(self, exit: int, last: bool) -> tuple[str | None, dict[str, int]]:
        """Add the policy's step; return the input for the threshold and the outputs with their element types."""
        call = self.calls[exit]
        if call.function is None:
            return None, {names.logits(exit): FLOAT}
        limit = None if last else names.limit(exit)
        reads = [names.logits(exit)]
        reads += [names.certainty(exit)] if self.parts.metadata.certainty else []
        reads += [] if limit is None else [limit]
        reads += [self.values[name] for name in (self._memory(exit - 1) if exit else ())]
        answer = names.answer(exit) if call.answers else names.logits(exit)
        remembered = {name: names.after(exit, name) for name in self._memory(exit)}
        writes = [*([] if last else [names.continues(exit)]), *([answer] if call.answers else [])]
        self.nodes.append(
            helper.make_node(call.function, reads, [*writes, *remembered.values()], f"step{exit}", domain=DOMAIN)
        )
        self.values |= remembered
        self.written |= remembered.keys()
        return limit, {answer: FLOAT, **({} if last else {names.continues(exit): BOOL})}

    def _memory(self, exit: int) -> dict[str, int]:
        """Return the fields of the policy's memory after an exit, with element types."""
        return {f"memory{number}": kind for number, kind in enumerate(self.calls[exit].memory)}

    def _model(
        self,
        nodes: Sequence[NodeProto],
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
    ) -> ModelProto:
        """Return the file of a level."""
        read = {value for node in nodes for value in node.input}
        shared = [weight for weight in self.parts.shared if weight.name in read]
        own = [weight for name, weight in self.weights.items() if name in read]
        body = GraphProto(name="level", node=nodes, initializer=own)
        body.output.extend(_info(value, kind) for value, kind in outputs.items())
        graph = body if not shared else _around(body, shared)
        graph.input.extend(_info(value, kind) for value, kind in inputs.items())
        opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), ("com.microsoft", 1), (DOMAIN, 1))]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="offramp", ir_version=10)
        called = {node.op_type for node in nodes if node.domain == DOMAIN}
        model.functions.extend(function for name, function in self.parts.functions.items() if name in called)
        return model


def _around(body: GraphProto, shared: Sequence[TensorProto]) -> GraphProto:
    """Return a graph that holds weights of several levels, with the level in a branch that always runs.

    ONNX Runtime packs a copy of the weights that a graph reads itself, for every level again. What a branch reads from
    outside stays mapped from the file, as in the nested graph.
    """
    graph = GraphProto(name="around", initializer=shared)
    graph.input.append(_info(ALWAYS, BOOL, []))
    never = GraphProto(name="never")
    for value in body.output:
        empty = helper.make_tensor(f"{value.name}.empty", value.type.tensor_type.elem_type, [0], [])
        never.node.append(helper.make_node("Constant", [], [f"never.{value.name}"], value=empty))
        never.output.append(_info(f"never.{value.name}", value.type.tensor_type.elem_type))
        graph.output.append(_info(value.name, value.type.tensor_type.elem_type))
    outputs = [value.name for value in body.output]
    inner = GraphProto()
    inner.CopyFrom(body)
    graph.node.append(helper.make_node("If", [ALWAYS], outputs, ALWAYS, then_branch=inner, else_branch=never))
    return graph


def _info(name: str, kind: int, shape: Sequence[int] | None = None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
