"""A model as pieces of ONNX: the embedding, the blocks with their exits, the cuts of the batch.

A graph may leave out some of a model's exits: the blocks that lead to one of these belong to the next exit.
Each piece is the code that runs in torch (`Segments`, `Carry.take`), exported and not written again; blocks that run
the same code are exported once (`same_code.py`), and all pieces in one call of the exporter. `assemble.py` makes one
graph of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import torch
from onnx import ModelProto, helper
from torch import Tensor

import offramp.inference.onnx.names as names
from offramp.errors import UnsupportedBackbone
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.inference.onnx.pieces import ExportedGraph, ModelParts, rename_values, shared_weights
from offramp.inference.onnx.same_code import BlockCode, bind, record_modules, weights_for
from offramp.inference.onnx.torch_export import (
    KINDS,
    SIZES,
    Function,
    Pair,
    axis_names,
    export_function,
    export_functions,
    optimize,
    output_name,
    silence_exporter,
    subgraph,
)
from offramp.types.carry import EXIT_FIELDS, Carry, take_inputs
from offramp.types.outputs import ExitOutput

if TYPE_CHECKING:
    from offramp.model.modeling import MultiExitModel

FIELDS = tuple(field.name for field in fields(Carry) if field.name not in EXIT_FIELDS)
"""The fields that a block passes on."""


Prepare = Callable[[ModelProto, Sequence[int], Mapping[str, str]], ModelProto]
"""Changes a piece. Takes the piece, the layers that it runs (0 = the embedding), and for each module of the encoder
that the piece names the module that runs in its place, both as paths in the encoder."""


@dataclass(frozen=True)
class ExitSpec:
    """One exit's functions, to be exported.

    Attributes:
        layers: those that lead to the exit, by the number of the exit behind them.
        block: the blocks that run them, with the exit.
        carried: the fields that go on to the next block, with their element types; none after the last exit.
        written: those of them that the block writes.
        cut: of the batch; None after the last exit.
    """

    layers: tuple[int, ...]
    block: BlockCode
    carried: Mapping[str, int]
    written: tuple[str, ...]
    cut: Function | None


@torch.no_grad()
def export_parts(
    model: MultiExitModel,
    digest: str,
    precision: str = "float32",
    prepare: Prepare | None = None,
    layers: Sequence[int] | None = None,
) -> ModelParts:
    """Export the pieces of a model, without policies.

    Args:
        model: in eval mode, on the CPU, in float32.
        digest: of its weights.
        precision: the name of what `prepare` does.
        prepare: changes the embedding and each block, for example quantizes them, but not the exit before the first
            layer; None = leave them as they are.
        layers: those whose exits the graph holds, the last one among them; None = all.
    """
    held = tuple(model.layers if layers is None else layers)
    first_block = int(held[0] == 0)
    with _plain_attention(model), silence_exporter():
        # 1) Run two examples through the model.
        inputs = _inputs(model)
        carries = [model.embed({name: pair[example] for name, pair in inputs.items()}) for example in range(len(SIZES))]
        present = _present(carries[0])
        embed = Function(partial(_embed, tuple(inputs), present), inputs, present)
        specs: list[ExitSpec] = []
        if first_block:
            specs.append(_lexical_spec(model, inputs))
        for blocks in _blocks_between(model.layers, held):
            spec, carries = _exit_spec(model, blocks, carries)
            specs.append(spec)
        # 2) Export, and optimize each piece with its own weights.
        pieces, cuts = _export_pieces(model, embed, specs, prepare or (lambda graph, *_: graph), first_block)
    # 3) Name the values as the whole graph does.
    shared = shared_weights(pieces, packed=precision == "int8")
    embedding, *levels = (rename_values(piece, shared) for piece in pieces)
    return ModelParts(
        inputs=tuple(
            helper.make_tensor_value_info(name, KINDS[pair[0].dtype], axis_names(pair)) for name, pair in inputs.items()
        ),
        embed=embedding,
        levels=tuple(levels),
        cuts=tuple(rename_values(cut, {}) for cut in cuts),
        shared=tuple(shared.values()),
        functions={},
        metadata=GraphMetadata(
            model=digest,
            precision=precision,
            policy={},
            layers=held,
            outputs=model.config.num_labels,
            certainty=model.gate is not None,
            problem_type=model.config.problem_type,
            carried=tuple(spec.carried for spec in specs[:-1]),
            written=tuple(spec.written for spec in specs),
        ),
    )


@torch.no_grad()
def export_whole(
    model: MultiExitModel,
    function: Callable[[MultiExitModel, Mapping[str, Tensor]], tuple[Tensor, ...]],
    outputs: Sequence[str] = ("logits",),
) -> ModelProto:
    """Export a function of a model and its inputs as one graph, for example the model without its decisions.

    Args:
        model: in eval mode, on the CPU, in float32.
        function: of the model and its inputs, (B, T) each.
        outputs: the names of what it returns; in the graph see `output_name`.
    """
    inputs = _inputs(model)

    def call(model: MultiExitModel, *values: Tensor) -> tuple[Tensor, ...]:
        return function(model, dict(zip(inputs, values, strict=True)))

    with _plain_attention(model), silence_exporter():
        return export_function(model, Function(call, inputs, outputs))


def _blocks_between(layers: Sequence[int], held: Sequence[int]) -> Iterator[range]:
    """Yield for each exit behind a block the blocks that lead to it from the exit held before, by their exits' numbers.

    Args:
        layers: of the model's exits.
        held: those of them whose exits the graph holds.
    """
    start = int(layers[0] == 0)
    for layer in (layer for layer in held if layer):
        stop = list(layers).index(layer) + 1
        yield range(start, stop)
        start = stop


def _lexical_spec(model: MultiExitModel, inputs: Mapping[str, Pair]) -> ExitSpec:
    """Return the functions of the exit before the first layer: its outputs, and the cut of the inputs."""
    outputs = ("logits",) if model.gate is None else ("logits", "certainty")
    block = BlockCode(Function(partial(_lexical, tuple(inputs), outputs), inputs, outputs), (), (), ())
    cut = Function(partial(_cut_inputs, tuple(inputs)), {"rows": _continuing_rows(*SIZES), **inputs}, tuple(inputs))
    return ExitSpec((), block, {name: KINDS[pair[0].dtype] for name, pair in inputs.items()}, (), cut)


def _exit_spec(model: MultiExitModel, blocks: range, before: Sequence[Carry]) -> tuple[ExitSpec, list[Carry]]:
    """Run blocks and the last one's exit on both examples; return their functions and the carries after the cut."""
    last = blocks[-1] == len(model.layers) - 1
    (after, output), modules = record_modules(model, partial(_run_blocks, model, blocks, before[0]))
    both = (after, _run_blocks(model, blocks, before[1])[0])
    read, present = _present(before[0]), _present(after)
    changed = tuple(name for name in present if getattr(after, name) is not getattr(before[0], name))
    written = () if last else changed
    outputs = ("logits",) if output.certainty is None else ("logits", "certainty")
    function = Function(partial(_blocks, blocks, read, written), _pairs(before, read), (*written, *outputs))
    results = (*_values(after, changed), *(getattr(output, name) for name in outputs))
    block, layers = BlockCode(function, changed, modules, results), tuple(model.layers[number] for number in blocks)
    if last:
        return ExitSpec(layers, block, {}, (), None), []
    if ("attention" in read) != ("attention" in present):
        raise UnsupportedBackbone(
            f"layer {model.layers[blocks[-1]]} leaves too few tokens: its masks cannot be exported"
        )
    cut = Function(partial(_cut, present), {"rows": _continuing_rows(*SIZES), **_pairs(both, present)}, present)
    carried = {name: KINDS[getattr(after, name).dtype] for name in present}
    return ExitSpec(layers, block, carried, written, cut), [
        carry.take(torch.arange(len(carry.hidden))) for carry in both
    ]


def _export_pieces(
    model: MultiExitModel, embed: Function, specs: Sequence[ExitSpec], prepare: Prepare, first_block: int
) -> tuple[list[ExportedGraph], list[ExportedGraph]]:
    """Return the embedding and the blocks, and the cuts; equal functions are exported once.

    With token exit every block has an export of its own: how many tokens stay depends on the layer's number, which no
    module knows.
    """
    functions = [embed]
    blocks: dict[int, BlockCode] = {}  # by number of the function
    cuts: dict[object, int] = {}  # number of the function, by shapes
    sources: list[tuple[int, Mapping[str, Tensor]]] = []  # each block's function, and its weights
    for spec in specs:
        templates = blocks if model.config.token_exit is None else {}
        candidates = ((number, weights_for(model, block, spec.block)) for number, block in templates.items())
        source = next(((number, weights) for number, weights in candidates if weights is not None), None)
        if source is None:
            source = (len(functions), {})
            blocks[len(functions)] = spec.block
            functions.append(spec.block.function)
        sources.append(source)
        if spec.cut is not None and _shapes(spec.cut) not in cuts:
            cuts[_shapes(spec.cut)] = len(functions)
            functions.append(spec.cut)
    exported = export_functions(model, functions)
    paths = {module: path for path, module in model.backbone.named_modules()}
    own = {path: path for path in paths.values()}
    embedding = prepare(optimize(subgraph(exported, 0, embed)), (0,), own)
    pieces = [ExportedGraph(embedding, "embed", _embed_names(embed, first_block))]
    for exit, (spec, (number, weights)) in enumerate(zip(specs, sources, strict=True)):
        graph = optimize(bind(subgraph(exported, number, spec.block.function), weights))
        pairs = zip(blocks[number].modules, spec.block.modules, strict=True)
        modules = {paths[one]: paths[other] for one, other in pairs if one in paths} if weights else own
        if spec.layers:  # the sums of an exit before the first layer are exact
            graph = prepare(graph, spec.layers, modules)
        pieces.append(ExportedGraph(graph, f"level{exit}", _block_names(exit, spec)))
    graphs = {number: optimize(subgraph(exported, number, functions[number])) for number in cuts.values()}
    return pieces, [
        ExportedGraph(graphs[cuts[_shapes(spec.cut)]], f"cut{exit}", _cut_names(exit, spec))
        for exit, spec in enumerate(specs)
        if spec.cut is not None
    ]


def _embed_names(embed: Function, first_block: int) -> dict[str, str]:
    """Return the names of the embedding's inputs, cut behind an exit before the first layer, and of its outputs."""
    inputs = {name: names.carry(first_block, name) for name in embed.inputs} if first_block else {}
    return inputs | {output_name(field): names.carry(first_block, field) for field in embed.outputs}


def _block_names(exit: int, spec: ExitSpec) -> dict[str, str]:
    inputs = {field: names.carry(exit, field) for field in spec.block.function.inputs}
    written = {output_name(field): names.after(exit, field) for field in spec.written}
    return inputs | written | {output_name(name): getattr(names, name)(exit) for name in ("logits", "certainty")}


def _cut_names(exit: int, spec: ExitSpec) -> dict[str, str]:
    inputs = {field: (names.after if field in spec.written else names.carry)(exit, field) for field in spec.carried}
    outputs = {output_name(field): names.cut(exit, field) for field in spec.carried}
    return {"rows": names.rows(exit)} | inputs | outputs


def _run_blocks(model: MultiExitModel, blocks: range, carry: Carry) -> tuple[Carry, ExitOutput]:
    for block in blocks:
        carry = model.block(block, carry)
    return carry, model.exit(blocks[-1], carry)


def _embed(inputs: Sequence[str], fields: Sequence[str], model: MultiExitModel, *values: Tensor) -> tuple[Tensor, ...]:
    return _values(model.embed(dict(zip(inputs, values, strict=True))), fields)


def _lexical(
    inputs: Sequence[str], outputs: Sequence[str], model: MultiExitModel, *values: Tensor
) -> tuple[Tensor, ...]:
    output = model.lexical(dict(zip(inputs, values, strict=True)))
    return tuple(getattr(output, name) for name in outputs)


def _blocks(
    blocks: range, read: Sequence[str], written: Sequence[str], model: MultiExitModel, *values: Tensor
) -> tuple[Tensor, ...]:
    carry, output = _run_blocks(model, blocks, Carry(**dict(zip(read, values, strict=True))))
    return (*_values(carry, written), output.logits, *(() if output.certainty is None else (output.certainty,)))


def _cut(fields: Sequence[str], _: MultiExitModel, rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return _values(Carry(**dict(zip(fields, values, strict=True))).take(rows), fields)


def _cut_inputs(fields: Sequence[str], _: MultiExitModel, rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    taken = take_inputs(dict(zip(fields, values, strict=True)), rows)
    return tuple(taken[name] for name in fields)


def _continuing_rows(one: tuple[int, int], other: tuple[int, int]) -> Pair:
    """Return the rows that continue in two examples of (rows, tokens): numbers that differ."""
    return torch.arange(0, one[0], 2), torch.arange(other[0] - 1)


def _present(carry: Carry) -> tuple[str, ...]:
    """Return the names of a carry's fields that are not None."""
    return tuple(name for name in FIELDS if getattr(carry, name) is not None)


def _values(carry: Carry, names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(getattr(carry, name) for name in names)


def _pairs(carries: Sequence[Carry], names: Sequence[str]) -> dict[str, Pair]:
    return {name: (getattr(carries[0], name), getattr(carries[1], name)) for name in names}


def _shapes(function: Function) -> tuple[object, ...]:
    return tuple((name, pair[0].shape, pair[1].shape, pair[0].dtype) for name, pair in function.inputs.items())


def _inputs(model: MultiExitModel) -> dict[str, Pair]:
    """Return a model's inputs in the two examples."""
    one, other = (_example(model, *size) for size in SIZES)
    return {name: (one[name], other[name]) for name in one}


def _example(model: MultiExitModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs of `rows` rows and `tokens` tokens, or of images."""
    config = model.config.backbone
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 4 * tokens)
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(rows, config.num_channels, height, width)}
    ids = torch.randint(config.vocab_size, (rows, tokens))
    lengths = torch.arange(rows, 0, -1) * tokens // rows  # far apart: some padding is left wherever tokens leave
    mask = (torch.arange(tokens) < lengths.unsqueeze(1)).long()
    types = {"token_type_ids": torch.zeros_like(ids)} if getattr(config, "type_vocab_size", 0) > 1 else {}
    return {"input_ids": ids, "attention_mask": mask, **types}


@contextmanager
def _plain_attention(model: MultiExitModel) -> Iterator[None]:
    """Run attention as plain products and a softmax, which ONNX Runtime runs fastest; token exit keeps its own."""
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
