"""The pieces of a graph with fewer exits, made of those with more: no export, no torch.

The blocks that lead to an exit that is left out belong to the next one, as in an export that leaves it out
(`export_blocks.py`). Of the left-out exit's level stays what the blocks behind it read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import NodeProto, TensorProto

import offramp.inference.onnx.names as names
from offramp.inference.onnx.metadata import GraphMetadata, policy_key, read_policy_key
from offramp.inference.onnx.pieces import ModelParts, Subgraph, needed_nodes


def with_exits(parts: ModelParts, layers: Sequence[int]) -> ModelParts:
    """Return the pieces of a graph that holds some of the exits, with the policies that need no memory.

    Args:
        parts: of all exits.
        layers: of the exits that it holds, increasing; the last exit among them.
    """
    metadata, layers = parts.metadata, tuple(layers)
    groups = _groups(metadata, layers)
    ends = [group[-1] for group in groups]
    policies = {
        policy_key(policy): tuple(calls[number] for number in ends)
        for (policy, read), calls in ((read_policy_key(key), calls) for key, calls in metadata.policies.items())
        if read is None and not any(call.memory for call in calls)
    }
    written = [
        tuple(dict.fromkeys(field for number in group for field in metadata.written[number])) for group in groups
    ]
    written[-1] = ()
    embed = parts.embed
    if metadata.first_block and layers[0]:  # the embedding reads the inputs themselves
        values = {names.carry(1, value.name): value.name for value in parts.inputs}
        fields = (name for node in embed.nodes for name in node.output if name.startswith(names.carry(1, "")))
        values |= {name: names.carry(0, name.removeprefix(names.carry(1, ""))) for name in fields}
        embed = _renamed(embed, values, {})
    return replace(
        parts,
        embed=embed,
        levels=tuple(_level(parts, group, number) for number, group in enumerate(groups)),
        cuts=tuple(_cut(parts.cuts[end], end, number) for number, end in enumerate(ends[:-1])),
        metadata=replace(
            metadata,
            layers=layers,
            exit_layers=None,
            carried=tuple(metadata.carried[end] for end in ends[:-1]),
            written=tuple(written),
            policies=policies,
        ),
    )


def _groups(metadata: GraphMetadata, layers: Sequence[int]) -> list[list[int]]:
    """Return for the exit behind each of these layers the numbers of the levels that lead to it from the one before."""
    groups: list[list[int]] = [[]]
    for number, layer in enumerate(metadata.layers):
        if layer or layer in layers:  # the exit before the first layer has no blocks
            groups[-1].append(number)
        if layer in layers:
            groups.append([])
    return groups[:-1]


def _level(parts: ModelParts, group: Sequence[int], level: int) -> Subgraph:
    """Return the levels of a group as one, without the exits before the last."""
    metadata, end = parts.metadata, group[-1]
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    current: dict[str, str] = {}  # the value of each field that a level of the group wrote
    last_writer = {field: number for number in group for field in metadata.written[number]}
    for number in group:
        piece = parts.levels[number]
        if number != end:
            piece = _needed(piece, {names.after(number, field) for field in metadata.written[number]})
        values = {}
        for node in piece.nodes:
            for name in node.input:
                if name.startswith(names.carry(number, "")):
                    field = name.removeprefix(names.carry(number, ""))
                    values[name] = current.get(field, names.carry(level, field))
        for field in metadata.written[number]:
            is_last = last_writer[field] == number
            current[field] = names.after(level, field) if is_last else f"level{level}/{number}/{field}"
            values[names.after(number, field)] = current[field]
        values |= {write(number): write(level) for write in (names.logits, names.certainty)}
        piece = _renamed(piece, values, {f"level{number}/": f"level{level}/{number}/"})
        nodes += piece.nodes
        weights += piece.weights
    return Subgraph(tuple(nodes), tuple(weights))


def _cut(piece: Subgraph, number: int, level: int) -> Subgraph:
    """Return the cut after an exit with another number."""
    values = {names.rows(number): names.rows(level)}
    for node in piece.nodes:
        for name in (*node.input, *node.output):
            for write in (names.carry, names.after, names.cut):
                if name.startswith(write(number, "")):
                    values[name] = write(level, name.removeprefix(write(number, "")))
    return _renamed(piece, values, {f"cut{number}/": f"cut{level}/"})


def _needed(piece: Subgraph, outputs: set[str]) -> Subgraph:
    """Return the part of a piece that computes some values."""
    nodes = needed_nodes(piece.nodes, outputs)
    read = outputs.union(*(node.input for node in nodes))
    return Subgraph(tuple(nodes), tuple(weight for weight in piece.weights if weight.name in read))


def _renamed(piece: Subgraph, values: Mapping[str, str], prefixes: Mapping[str, str]) -> Subgraph:
    """Return a piece with other names of values, and other beginnings of all names."""

    def renamed(name: str) -> str:
        if name in values:
            return values[name]
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        return name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)

    nodes = []
    for node in piece.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = renamed(node.name)
        copy.input[:] = [renamed(name) for name in node.input]
        copy.output[:] = [renamed(name) for name in node.output]
        nodes.append(copy)
    weights = []
    for weight in piece.weights:
        moved = TensorProto()
        moved.CopyFrom(weight)
        moved.name = renamed(weight.name)
        weights.append(moved)
    return Subgraph(tuple(nodes), tuple(weights))
