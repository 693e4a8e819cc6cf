"""A model in pieces of ONNX: what embeds, each block with its exit, the cut of the batch, the steps of a policy.

Each piece is the code that runs in torch (`Segments`, `Carry.take`, `Policy.step`, `stays`), exported and not written
again. `engine/assemble.py` makes one graph of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from offramp.errors import UnsupportedBackbone
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.inference.onnx.pieces import ModelParts, Subgraph
from offramp.inference.onnx.torch_export import KINDS, SIZES, Pair, _bare, _export, _out, _shape, silence_exporter
from offramp.types.carry import Carry

if TYPE_CHECKING:
    from offramp.model.modeling import MultiExitModel

FIELDS = tuple(field.name for field in fields(Carry) if field.name != "exit_input")
"""What goes from block to block; what an exit reads has been read by then."""
SHARED_BYTES = 1024  # smaller weights are kept where they are used


Prepare = Callable[[ModelProto], ModelProto]


@dataclass(frozen=True)
class ExportedGraph:
    """One export: a graph whose values bear local names.

    Attributes:
        model: what the exporter gave.
        prefix: of all its values and nodes in the whole graph.
        names: of its inputs and outputs there.
    """

    model: ModelProto
    prefix: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class ExportedBlock:
    """One exit's pieces, and what goes on from there.

    Attributes:
        block: the block that leads to the exit, and what the exit says.
        cut: of the batch; None behind the last exit.
        carried: the fields that go on, with their element types.
        written: those of them that the block has written.
    """

    block: ExportedGraph
    cut: ExportedGraph | None
    carried: Mapping[str, int]
    written: tuple[str, ...]


@torch.no_grad()
def export_parts(
    model: MultiExitModel, digest: str, precision: str = "float32", prepare: Prepare | None = None
) -> ModelParts:
    """The pieces of a model, without policies.

    Args:
        model: in eval mode, on the CPU, in float32.
        digest: names its weights.
        precision: what `prepare` makes of them, in a word.
        prepare: what is done to the embedding and to each block, such as quantizing them; None = nothing.
    """
    prepare = prepare or (lambda piece: piece)
    examples = [_example(model, *size) for size in SIZES]
    inputs = {name: (examples[0][name], examples[1][name]) for name in examples[0]}
    levels: list[ExportedBlock] = []
    cuts: dict[Any, ModelProto] = {}
    with _plain_attention(model), silence_exporter():
        carries = [model.embed(example) for example in examples]
        held = _held(carries[0])
        embed = prepare(_export(model, partial(_embed, tuple(inputs), held), inputs, held))
        for exit in range(len(model.layers)):
            after = [model.block(exit, carry) for carry in carries]
            levels.append(_level(model, exit, carries, after, prepare, cuts))
            carries = [carry.take(torch.arange(len(carry.hidden))) for carry in after]
    pieces = [
        ExportedGraph(embed, "embed", {_out(name): f"carry0.{name}" for name in held}),
        *(each.block for each in levels),
    ]
    shared = _shared(pieces)
    placed = [_placed(piece, shared) for piece in pieces]
    return ModelParts(
        inputs=tuple(
            helper.make_tensor_value_info(name, KINDS[pair[0].dtype], _shape(pair)) for name, pair in inputs.items()
        ),
        embed=placed[0],
        levels=tuple(placed[1:]),
        cuts=tuple(_placed(level.cut, {}) for level in levels if level.cut is not None),
        shared=tuple(shared.values()),
        functions={},
        about=GraphMetadata(
            model=digest,
            precision=precision,
            policy={},
            layers=tuple(model.layers),
            outputs=model.config.num_labels,
            certainty=model.gate is not None,
            problem_type=model.config.problem_type,
            carried=tuple(level.carried for level in levels[:-1]),
            written=tuple(level.written for level in levels),
        ),
    )


@torch.no_grad()
def export_whole(
    model: MultiExitModel, function: Callable[[MultiExitModel, Mapping[str, Tensor]], Tensor]
) -> ModelProto:
    """A function of a model and its inputs as one graph, such as the model without its exits.

    Args:
        model: in eval mode, on the CPU, in float32.
        function: of the model and what it reads, (B, T) each.
    """
    examples = [_example(model, *size) for size in SIZES]
    inputs = {name: (examples[0][name], examples[1][name]) for name in examples[0]}

    def call(model: MultiExitModel, *values: Tensor) -> tuple[Tensor, ...]:
        return (function(model, dict(zip(inputs, values, strict=True))),)

    with _plain_attention(model), silence_exporter():
        return _export(model, call, inputs, ["logits"])


def _level(
    model: MultiExitModel,
    exit: int,
    before: Sequence[Carry],
    after: Sequence[Carry],
    prepare: Prepare,
    cuts: dict[Any, ModelProto],
) -> ExportedBlock:
    """Export one level; `cuts` holds the cuts that there are, since they are the same behind most blocks."""
    last = exit == len(model.layers) - 1
    held, goes_on = _held(before[0]), () if last else _held(after[0])
    written = tuple(name for name in goes_on if getattr(after[0], name) is not getattr(before[0], name))
    said = ("logits", "certainty") if model.gate is not None else ("logits",)
    block = _export(model, partial(_block, exit, held, written), _fields(before, held), (*written, *said))
    names = {name: f"carry{exit}.{name}" for name in held} | {_out(name): f"seen{exit}.{name}" for name in written}
    names |= {_out(name): f"{name}{exit}" for name in said}
    piece = ExportedGraph(prepare(block), f"level{exit}", names)
    if last:
        return ExportedBlock(piece, None, {}, ())
    if ("attention" in held) != ("attention" in goes_on):
        raise UnsupportedBackbone(f"layer {model.layers[exit]} leaves too few tokens: its masks cannot be exported")
    rows = (torch.arange(0, len(after[0].hidden), 2), torch.arange(len(after[1].hidden) - 1))
    given = {"rows": rows, **_fields(after, goes_on)}
    key = tuple((name, *(each.shape for each in pair)) for name, pair in given.items())
    if key not in cuts:
        cuts[key] = _export(model, partial(_cut, goes_on), given, goes_on)
    seen = {name: f"{'seen' if name in written else 'carry'}{exit}.{name}" for name in goes_on}
    names = {"rows": f"row{exit}"} | seen | {_out(name): f"cut{exit}.{name}" for name in goes_on}
    carried = {name: KINDS[getattr(after[0], name).dtype] for name in goes_on}
    return ExportedBlock(piece, ExportedGraph(cuts[key], f"cut{exit}", names), carried, written)


def _embed(inputs: Sequence[str], held: Sequence[str], model: MultiExitModel, *values: Tensor) -> tuple[Tensor, ...]:
    return _values(model.embed(dict(zip(inputs, values, strict=True))), held)


def _block(
    exit: int, held: Sequence[str], written: Sequence[str], model: MultiExitModel, *values: Tensor
) -> tuple[Tensor, ...]:
    carry = model.block(exit, Carry(**dict(zip(held, values, strict=True))))
    said = model.exit(exit, carry)
    return (*_values(carry, written), said.logits, *(() if said.certainty is None else (said.certainty,)))


def _cut(held: Sequence[str], _: MultiExitModel, rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return _values(Carry(**dict(zip(held, values, strict=True))).take(rows), held)


def _held(carry: Carry) -> tuple[str, ...]:
    """The fields that are there."""
    return tuple(name for name in FIELDS if getattr(carry, name) is not None)


def _values(carry: Carry, names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(getattr(carry, name) for name in names)


def _fields(carries: Sequence[Carry], names: Sequence[str]) -> dict[str, Pair]:
    return {name: (getattr(carries[0], name), getattr(carries[1], name)) for name in names}


def _example(model: MultiExitModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Inputs of so many rows and tokens, or of images."""
    config = model.config.backbone
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 4 * tokens)
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(rows, config.num_channels, height, width)}
    ids = torch.randint(config.vocab_size, (rows, tokens))
    lengths = torch.arange(rows, 0, -1) * tokens // rows  # far apart: some padding is left wherever tokens leave
    mask = (torch.arange(tokens) < lengths.unsqueeze(1)).long()
    typed = {"token_type_ids": torch.zeros_like(ids)} if getattr(config, "type_vocab_size", 0) > 1 else {}
    return {"input_ids": ids, "attention_mask": mask, **typed}


def _shared(pieces: Sequence[ExportedGraph]) -> dict[str, TensorProto]:
    """Weights that are in several pieces, by digest, as they are called in the whole graph."""
    seen: set[str] = set()
    shared: dict[str, TensorProto] = {}
    for piece in pieces:
        for digest, weight in {_digest(each): each for each in piece.model.graph.initializer if _large(each)}.items():
            if digest in seen and digest not in shared:
                shared[digest] = numpy_helper.from_array(numpy_helper.to_array(weight), f"shared/{digest[:16]}")
            seen.add(digest)
    return shared


def _large(weight: TensorProto) -> bool:
    return bool(weight.ByteSize() > SHARED_BYTES)


def _digest(weight: TensorProto) -> str:
    return hashlib.sha256(numpy_helper.to_array(weight).tobytes() + repr(list(weight.dims)).encode()).hexdigest()


def _placed(piece: ExportedGraph, shared: Mapping[str, TensorProto]) -> Subgraph:
    """A piece with the names that it has in the whole graph."""
    names = dict(piece.names)
    nodes: list[NodeProto] = []
    read = set(names)
    for node in reversed(piece.model.graph.node):  # ONNX Runtime does not clear branches of what nobody reads
        if not read.isdisjoint(node.output):
            nodes.insert(0, _bare(node))
            read.update(node.input)
    weights = []
    for weight in piece.model.graph.initializer:
        if weight.name not in read:
            continue
        one = shared.get(_digest(weight)) if _large(weight) else None
        names[weight.name] = one.name if one is not None else f"{piece.prefix}/{weight.name}"
        if one is None:
            kept = TensorProto()
            kept.CopyFrom(weight)
            kept.name = names[weight.name]
            weights.append(kept)
    for node in nodes:
        names |= {value: f"{piece.prefix}/{value}" for value in node.output if value and value not in names}
    for number, node in enumerate(nodes):
        node.name = f"{piece.prefix}/{number}"
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    return Subgraph(tuple(nodes), tuple(weights))


@contextmanager
def _plain_attention(model: MultiExitModel) -> Iterator[None]:
    """Attention as plain products and a softmax, which ONNX Runtime runs fastest; token exit keeps its own."""
    encoder = model.backbone
    before = encoder.config._attn_implementation
    plain = before is not None and model.config.token_exit is None
    if plain:
        encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        if plain:
            encoder.set_attn_implementation(before)
