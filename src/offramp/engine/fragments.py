"""A model in pieces of ONNX: what embeds, each block with its exit, the cut of the batch, the steps of a policy.

Each piece is the code that runs in torch (`Segments`, `Carry.take`, `Policy.step`, `stays`), exported and not written
again. `engine/assemble.py` makes one graph of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from offramp.engine.about import About, StepCall
from offramp.engine.assemble import DOMAIN, OPSET, Fragment, Parts
from offramp.errors import UnsupportedBackbone
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.decision import continues, nan_where_invalid
from offramp.policies.registry import load_policy
from offramp.types.carry import Carry
from offramp.types.outputs import ExitOutput

if TYPE_CHECKING:
    from offramp.model.modeling import MultiExitModel

FIELDS = tuple(field.name for field in fields(Carry) if field.name != "read")
"""What goes from block to block; what an exit reads has been read by then."""
SIZES = ((3, 24), (4, 40))  # rows and tokens of two examples: axes on which they differ may have any length
KINDS = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64, torch.bool: TensorProto.BOOL}
SHARED_BYTES = 1024  # smaller weights are kept where they are used
Pair = tuple[Tensor, Tensor]
"""A value in the two examples."""


Prepare = Callable[[ModelProto], ModelProto]


@dataclass(frozen=True)
class Piece:
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
class Level:
    """One exit's pieces, and what goes on from there.

    Attributes:
        block: the block that leads to the exit, and what the exit says.
        cut: of the batch; None behind the last exit.
        carried: the fields that go on, with their element types.
        written: those of them that the block has written.
    """

    block: Piece
    cut: Piece | None
    carried: Mapping[str, int]
    written: tuple[str, ...]


@torch.no_grad()
def export_parts(
    model: MultiExitModel, digest: str, precision: str = "float32", prepare: Prepare | None = None
) -> Parts:
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
    levels: list[Level] = []
    cuts: dict[Any, ModelProto] = {}
    with _plain_attention(model), quiet():
        carries = [model.embed(example) for example in examples]
        held = _held(carries[0])
        embed = prepare(_export(model, partial(_embed, tuple(inputs), held), inputs, held))
        for exit in range(len(model.layers)):
            after = [model.block(exit, carry) for carry in carries]
            levels.append(_level(model, exit, carries, after, prepare, cuts))
            carries = [carry.take(torch.arange(len(carry.hidden))) for carry in after]
    pieces = [
        Piece(embed, "embed", {_out(name): f"carry0.{name}" for name in held}),
        *(each.block for each in levels),
    ]
    shared = _shared(pieces)
    placed = [_placed(piece, shared) for piece in pieces]
    return Parts(
        inputs=tuple(
            helper.make_tensor_value_info(name, KINDS[pair[0].dtype], _shape(pair)) for name, pair in inputs.items()
        ),
        embed=placed[0],
        levels=tuple(placed[1:]),
        cuts=tuple(_placed(level.cut, {}) for level in levels if level.cut is not None),
        shared=tuple(shared.values()),
        functions={},
        about=About(
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

    with _plain_attention(model), quiet():
        return _export(model, call, inputs, ["logits"])


def _level(
    model: MultiExitModel,
    exit: int,
    before: Sequence[Carry],
    after: Sequence[Carry],
    prepare: Prepare,
    cuts: dict[Any, ModelProto],
) -> Level:
    """Export one level; `cuts` holds the cuts that there are, since they are the same behind most blocks."""
    last = exit == len(model.layers) - 1
    held, goes_on = _held(before[0]), () if last else _held(after[0])
    written = tuple(name for name in goes_on if getattr(after[0], name) is not getattr(before[0], name))
    said = ("logits", "certainty") if model.gate is not None else ("logits",)
    block = _export(model, partial(_block, exit, held, written), _fields(before, held), (*written, *said))
    names = {name: f"carry{exit}.{name}" for name in held} | {_out(name): f"seen{exit}.{name}" for name in written}
    names |= {_out(name): f"{name}{exit}" for name in said}
    piece = Piece(prepare(block), f"level{exit}", names)
    if last:
        return Level(piece, None, {}, ())
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
    return Level(piece, Piece(cuts[key], f"cut{exit}", names), carried, written)


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


@lru_cache(maxsize=64)
def export_steps(
    policy: str, layers: tuple[int, ...], outputs: int, problem_type: str, certainty: bool
) -> tuple[tuple[StepCall, ...], dict[str, FunctionProto]]:
    """The steps of a policy as functions of an ONNX file, and how they are called at each exit.

    Args:
        policy: its key (see `policy_key`).
        layers: the layer number of each exit.
        outputs: C of the logits.
        problem_type: as in transformers.
        certainty: whether the model has a gate.

    Raises:
        NotApplicable: the policy has no meaning for this kind of problem.
    """
    rule = load_policy(json.loads(policy))
    memory: tuple[Memory, ...] = ((),) * len(SIZES)
    calls: list[StepCall] = []
    functions: dict[str, FunctionProto] = {}
    before: _Step | None = None
    for exit, layer in enumerate(layers):
        step = _Step(rule, exit, layer, problem_type, certainty, last=exit == len(layers) - 1)
        given = step.example(outputs, memory)
        taken = [step.take([pair[example] for pair in given.values()]) for example in range(len(SIZES))]
        answers = taken[0].logits is not given["logits"][0]
        remembered = tuple(() if step.last else each.memory for each in taken)
        if before is not None and _alike(before, step, given):
            calls.append(calls[-1])
        elif step.last and not answers:
            calls.append(StepCall(None))
        else:
            function = _step_function(step, given, answers, len(remembered[0]))
            functions[function.name] = function
            calls.append(StepCall(function.name, answers, tuple(KINDS[each.dtype] for each in remembered[0])))
        before = step if _shapes(memory) == _shapes(remembered) else None
        memory = remembered
    return tuple(calls), functions


def _shapes(memory: Sequence[Memory]) -> list[list[torch.Size]]:
    return [[each.shape for each in one] for one in memory]


def _alike(one: _Step, other: _Step, given: Mapping[str, Pair]) -> bool:
    """Whether a policy does the same at two exits, where it is given the same."""
    if one.last != other.last:
        return False
    values = [pair[0] for pair in given.values()]
    a, b = one.take(values), other.take(values)
    return all(
        torch.equal(x, y) for x, y in zip((a.score, a.logits, *a.memory), (b.score, b.logits, *b.memory), strict=True)
    )


def _step_function(step: _Step, given: Mapping[str, Pair], answers: bool, memories: int) -> FunctionProto:
    writes = [*([] if step.last else ["stays"]), *(["answer"] if answers else [])]
    writes += [f"memory{number}" for number in range(memories)]
    with quiet():
        return _function(_export(None, partial(_told, step, answers), given, writes), list(given), writes)


@dataclass(frozen=True)
class _Step:
    """A policy at one exit, as a function of tensors."""

    policy: Policy
    exit: int
    layer: int
    problem_type: str
    certainty: bool
    last: bool

    def example(self, outputs: int, memory: Sequence[Memory]) -> dict[str, Pair]:
        """What it is given in the two examples: logits, certainty where there is a gate, limits, what it remembers."""
        rows = [rows for rows, _ in SIZES]
        given = {"logits": (torch.randn(rows[0], outputs), torch.randn(rows[1], outputs))}
        vectors = [*(["certainty"] if self.certainty else []), *([] if self.last else ["limit"])]
        given |= {name: (torch.rand(rows[0]), torch.rand(rows[1])) for name in vectors}
        return given | {f"memory{number}": (memory[0][number], memory[1][number]) for number in range(len(memory[0]))}

    def take(self, values: Sequence[Tensor]) -> Step:
        """Its step; values: logits, certainty where there is a gate, limit but at the last exit, memory."""
        logits, *rest = values
        certainty = rest.pop(0) if self.certainty else None
        memory = tuple(rest if self.last else rest[1:])
        out = ExitOutput(logits, certainty, layer=self.layer, problem_type=self.problem_type, last=self.last)
        return self.policy.step(self.exit, out, memory)


def _told(step: _Step, answers: bool, _: None, *values: Tensor) -> tuple[Tensor, ...]:
    taken = step.take(values)
    answer = (taken.logits,) if answers else ()
    if step.last:
        return answer
    limit = values[1 + step.certainty]
    return (continues(nan_where_invalid(taken.score.float(), taken.logits), limit), *answer, *taken.memory)


def _function(model: ModelProto, reads: Sequence[str], writes: Sequence[str]) -> FunctionProto:
    """An export as a function, which has constants in place of weights; named by its content."""
    constants = [helper.make_node("Constant", [], [each.name], value=each) for each in model.graph.initializer]
    nodes = [*constants, *(_bare(node) for node in model.graph.node)]
    content = b"".join(node.SerializeToString(deterministic=True) for node in nodes)
    name = f"step_{hashlib.sha256(content + repr((reads, writes)).encode()).hexdigest()[:16]}"
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, list(reads), [_out(each) for each in writes], nodes, opsets)


class _Call(nn.Module):
    """A function of a model and tensors as a module, as the exporter wants it."""

    def __init__(self, model: MultiExitModel | None, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.function(self.model, *values)


def _export(
    model: MultiExitModel | None,
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Mapping[str, Pair],
    outputs: Sequence[str],
) -> ModelProto:
    """A function's graph; axes on which the examples differ may have any length, but those of length 1 stay so."""
    free = tuple({axis: Dim.DYNAMIC for axis in _free(pair)} for pair in inputs.values())
    program = torch.onnx.export(
        _Call(model, function).eval(),
        tuple(pair[0] for pair in inputs.values()),
        input_names=list(inputs),
        output_names=[_out(name) for name in outputs],
        dynamic_shapes=(free,),  # of one variadic argument
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    exported: ModelProto = program.model_proto
    _fix_shapes(exported)
    return exported


def _fix_shapes(model: ModelProto) -> None:
    """Let reshapes copy the axes that they keep (0) and work out one more (-1), with nothing to compute."""
    sizes: dict[str, list[int | str]] = {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if all(axes):  # 0 is an axis of which nothing is known
            sizes[value.name] = axes
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[0] not in sizes or node.output[0] not in sizes:
            continue
        before, after = sizes[node.input[0]], sizes[node.output[0]]
        kept = [0 if axis < len(before) and before[axis] == size else size for axis, size in enumerate(after)]
        shape = [-1 if isinstance(size, str) else size for size in kept]
        if shape.count(-1) <= 1:
            node.input[1] = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(np.array(shape), node.input[1]))
            del node.attribute[:]  # such as that a 0 means 0


def _out(name: str) -> str:
    """The local name of an output; inputs have the plain names."""
    return f"new.{name}"


def _free(pair: Pair) -> list[int]:
    return [axis for axis, (one, other) in enumerate(zip(pair[0].shape, pair[1].shape, strict=True)) if one != other]


def _shape(pair: Pair) -> list[int | str]:
    """An input's shape, with names for what may have any length."""
    names = {0: "batch", 1: "tokens"} if pair[0].dim() == 2 else {0: "batch", 2: "height", 3: "width"}
    return [names[axis] if axis in _free(pair) else size for axis, size in enumerate(pair[0].shape)]


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


def _shared(pieces: Sequence[Piece]) -> dict[str, TensorProto]:
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


def _placed(piece: Piece, shared: Mapping[str, TensorProto]) -> Fragment:
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
    return Fragment(tuple(nodes), tuple(weights))


def _bare(node: NodeProto) -> NodeProto:
    """A node without what the exporter tells of where it is from."""
    bare = NodeProto()
    bare.CopyFrom(node)
    del bare.metadata_props[:]
    bare.doc_string = ""
    return bare


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


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter and the quantizer tell of packages that are not installed, and of their own old ways."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx._internal.exporter._registration", "onnxscript")]
    before = [logger.level for logger in loggers]
    handlers = logging.root.handlers[:]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        logging.root.handlers[:] = handlers  # the quantizer's `logging.warning` gives the root one
