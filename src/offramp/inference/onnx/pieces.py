"""The pieces of a model as ONNX, their weights, and the way back from a file to its pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

import offramp.inference.onnx.names as value_names
from offramp.inference.onnx.metadata import GraphMetadata

ENCODER = ".backbone."  # in the scopes of what belongs to the encoder
SHARED_BYTES = 1024  # smaller weights are kept where they are used
PRODUCTS = ("MatMul", "Gemm")
BESIDE_BYTES, PAGE = 1024, 4096  # smaller weights stay in the graph


@dataclass(frozen=True)
class Subgraph:
    """Nodes with their weights; they read and write values by name."""

    nodes: tuple[NodeProto, ...]
    weights: tuple[TensorProto, ...] = ()


@dataclass(frozen=True)
class ModelParts:
    """A model in pieces, and the steps of some policies.

    Attributes:
        inputs: of the graph, as ONNX describes them.
        embed: reads the inputs, writes what the first block reads.
        levels: one for each exit: the blocks that lead to it, and the exit's outputs.
        cuts: one for each exit but the last: reads `row{i}` and the fields that continue, writes `cut{i}.*`.
        shared: weights that several levels read.
        functions: the steps of policies, by name.
        metadata: of the file.
    """

    inputs: tuple[onnx.ValueInfoProto, ...]
    embed: Subgraph
    levels: tuple[Subgraph, ...]
    cuts: tuple[Subgraph, ...]
    shared: tuple[TensorProto, ...]
    functions: Mapping[str, FunctionProto]
    metadata: GraphMetadata


@dataclass(frozen=True)
class ExportedGraph:
    """One export: a graph whose values bear local names.

    Attributes:
        model: the exporter's.
        prefix: of all its values and nodes in the whole graph.
        names: of its inputs and outputs there.
    """

    model: ModelProto
    prefix: str
    names: Mapping[str, str]


def shared_weights(pieces: Sequence[ExportedGraph], packed: bool = False) -> dict[str, TensorProto]:
    """Return the large weights that several pieces have, by digest, with their names in the whole graph.

    Args:
        pieces: of the model.
        packed: not those of products of floats. ONNX Runtime packs only what the branch that reads it holds, and has
            for one row another kernel without packing: its sums differ in the last bit.
    """
    digests: set[str] = set()
    shared: dict[str, TensorProto] = {}
    for piece in pieces:
        graph = piece.model.graph
        factors = {value for node in graph.node if packed and node.op_type in PRODUCTS for value in node.input}
        weights = (weight for weight in graph.initializer if _large(weight) and weight.name not in factors)
        large = {_digest(weight): weight for weight in weights}
        for digest, weight in large.items():
            if digest in digests and digest not in shared:
                shared[digest] = numpy_helper.from_array(numpy_helper.to_array(weight), f"shared/{digest[:16]}")
        digests.update(large)
    return shared


def _large(weight: TensorProto) -> bool:
    return bool(weight.ByteSize() > SHARED_BYTES)


def _digest(weight: TensorProto) -> str:
    return hashlib.sha256(numpy_helper.to_array(weight).tobytes() + repr(list(weight.dims)).encode()).hexdigest()


def of_the_encoder(node: NodeProto) -> bool:
    """Return whether a node that the exporter wrote belongs to the encoder, not to an exit."""
    return any(ENCODER in entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes"))


def rename_values(piece: ExportedGraph, shared: Mapping[str, TensorProto]) -> Subgraph:
    """Return a piece with the names that it has in the whole graph; those of an exit's nodes have "/exit/"."""
    names = dict(piece.names)
    encoder = {node.name for node in piece.model.graph.node if of_the_encoder(node)}
    nodes = [without_origin(node) for node in needed_nodes(piece.model.graph.node, names)]
    read = set(names).union(*(node.input for node in nodes))
    weights = []
    for weight in piece.model.graph.initializer:
        if weight.name not in read:
            continue
        one = shared.get(_digest(weight)) if _large(weight) else None
        names[weight.name] = one.name if one is not None else f"{piece.prefix}/{weight.name}"
        if one is None:
            renamed = TensorProto()
            renamed.CopyFrom(weight)
            renamed.name = names[weight.name]
            weights.append(renamed)
    for node in nodes:
        names |= {value: f"{piece.prefix}/{value}" for value in node.output if value and value not in names}
    for number, node in enumerate(nodes):
        node.name = f"{piece.prefix}/{number}" if node.name in encoder else f"{piece.prefix}/exit/{number}"
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    return Subgraph(tuple(nodes), tuple(weights))


def needed_nodes(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return the nodes on which some value of `outputs` depends; ONNX Runtime keeps unused ones in branches."""
    read, needed = set(outputs), list[NodeProto]()
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            needed.append(node)
            read.update(node.input)
    return needed[::-1]


def without_origin(node: NodeProto) -> NodeProto:
    """Return a node without the exporter's notes on its source code."""
    bare = NodeProto()
    bare.CopyFrom(node)
    del bare.metadata_props[:]
    bare.doc_string = ""
    return bare


def disassemble(model: ModelProto) -> ModelParts:
    """Return the pieces of a graph that `assemble` made.

    Raises:
        InvalidInput: `offramp export` did not write it.
    """
    metadata = GraphMetadata.of({entry.key: entry.value for entry in model.metadata_props})
    scopes = list(_scopes(model.graph, len(metadata.layers)))
    weights = [{weight.name: weight for weight in scope.initializer} for scope in scopes]

    def piece(prefix: str, scope: GraphProto, weights: Mapping[str, TensorProto]) -> Subgraph:
        nodes = tuple(node for node in scope.node if node.name.startswith(prefix))
        return Subgraph(nodes, tuple(weight for name, weight in weights.items() if name.startswith(prefix)))

    cuts, functions = [], {function.name: function for function in model.functions}
    for number, scope in enumerate(scopes[1:]):
        if uncalled := functions.pop(value_names.uncalled_cut(number), None):  # the policy does not read this exit
            cuts.append(_from_function(uncalled))
            continue
        cut = _branch(_named(scope, value_names.if_all_continue(number)), "else_branch")
        cuts.append(piece(f"cut{number}/", cut, {weight.name: weight for weight in cut.initializer}))
    return ModelParts(
        inputs=tuple(value for value in model.graph.input if value.name != "thresholds"),
        embed=piece("embed/", scopes[metadata.first_block], weights[metadata.first_block]),
        levels=tuple(piece(f"level{i}/", scope, weights[i]) for i, scope in enumerate(scopes)),
        cuts=tuple(cuts),
        shared=tuple(weight for name, weight in weights[0].items() if name.startswith("shared/")),
        functions=functions,
        metadata=metadata,
    )


def with_weights_beside(parts: ModelParts, path: Path) -> ModelParts:
    """Move the weights of the pieces to a file of their own, which is to lie beside the graph.

    ONNX Runtime keeps a copy of what a branch holds for every branch around it, so that weights inside the graph would
    be in memory many times over.

    Args:
        parts: with weights inside.
        path: of the file, which is written.
    """
    with path.open("wb") as file:

        def moved(weight: TensorProto) -> TensorProto:
            content = numpy_helper.to_array(weight).tobytes()
            if len(content) < BESIDE_BYTES:
                return weight
            file.write(b"\0" * (-file.tell() % PAGE))  # ONNX Runtime maps whole pages
            beside = TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
            beside.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", file.tell()), ("length", len(content))):
                beside.external_data.add(key=key, value=str(value))
            file.write(content)
            return beside

        def lightened(fragment: Subgraph) -> Subgraph:
            return replace(fragment, weights=tuple(moved(weight) for weight in fragment.weights))

        return replace(
            parts,
            embed=lightened(parts.embed),
            levels=tuple(lightened(level) for level in parts.levels),
            shared=tuple(moved(weight) for weight in parts.shared),
        )


def data_spans(parts: ModelParts) -> list[list[int]]:
    """Return first byte and length of each weight in the file beside the graph."""
    fragments = (parts.embed, *parts.levels)
    weights = [*parts.shared, *(weight for fragment in fragments for weight in fragment.weights)]
    entries = [{entry.key: entry.value for entry in weight.external_data} for weight in weights]
    return sorted([int(entry["offset"]), int(entry["length"])] for entry in entries if entry)


def _scopes(graph: GraphProto, exits: int) -> Iterable[GraphProto]:
    """Yield the graph of each level, from the outermost; past an exit that is not read it is the same one."""
    for number in range(exits):
        yield graph
        branch = next((node for node in graph.node if node.name == value_names.if_continues(number)), None)
        if branch is not None:
            graph = _branch(branch, "then_branch")


def _named(graph: GraphProto, name: str) -> NodeProto:
    node: NodeProto = next(node for node in graph.node if node.name == name)
    return node


def _from_function(function: FunctionProto) -> Subgraph:
    """Return the nodes and the weights of a function: nodes have names, weights have none."""
    weights = [node.attribute[0].t for node in function.node if not node.name]
    return Subgraph(tuple(node for node in function.node if node.name), tuple(weights))


def _branch(node: NodeProto, name: str) -> GraphProto:
    graph: GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == name)
    return graph
