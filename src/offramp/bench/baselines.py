"""Full-depth contestants in torch and in ONNX Runtime, the encoder cut at a layer, and the lexical exit alone.

All that do not run in torch are made of one exported graph without decisions, which has an output for each exit; a
contestant gets the part of it that leads to its own exit. Attention is plain products, and ONNX Runtime runs with and
without the fusion that is slow on some CPUs. Its transformer optimizer (`onnxruntime.transformers.optimizer`) is not
among them: on these graphs it makes the fusions that a session makes by itself. On a graph of torch's older exporter it
makes attention nodes, too, which take 0.97 / 1.06 / 1.09 of the time in float32 and 1.08 / 1.28 / 1.30 in int8 (batch 1
/ 8 / 32, a six-layer MiniLM, 16 tokens, one thread, AMD EPYC, ONNX Runtime 1.32).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from offramp.bench.contestant import Kind
from offramp.bench.texts import Batch, BatchRun, PlainModel
from offramp.data.batching import Tokens
from offramp.data.padding import Array
from offramp.errors import InvalidInput, one_line
from offramp.inference.workers import cores
from offramp.model.activation_ranges import EMBEDDING, measure_ranges
from offramp.model.modeling import MultiExitModel

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger("offramp")

NEEDED = ("onnx", "onnxruntime", "onnxscript")


def forward(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run transformers' own forward of the encoder, then the last head; logits (B, C)."""
    hidden = model.backbone(**inputs).last_hidden_state
    logits: Tensor = model.heads(len(model.config.exit_layers) - 1, hidden, inputs["attention_mask"])
    return logits


@torch.inference_mode()
def plain(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run `forward` in inference mode."""
    return forward(model, inputs)


# --- torch ------------------------------------------------------------------------------------------------------------


def in_torch(model: MultiExitModel) -> list[PlainModel]:
    """Return the full-depth contestants in torch: eager, and compiled where that works; a log line says where not."""
    depth = model.config.exit_layers[-1]
    eager = PlainModel("plain torch", "full-depth", "torch", depth, partial(_load_torch, plain, model))
    compiled = torch.no_grad()(torch.compile(forward, dynamic=True))
    log.info("compiling the plain model with torch.compile")
    try:
        run = _load_torch(compiled, model, cores(), 1)  # the number of threads is compiled in
        for rows, tokens in ((2, 8), (1, 5)):
            run(_example(rows, tokens, model))
    except Exception as error:  # compilers fail in many ways: none is installed, or it cannot trace the encoder
        log.info("torch.compile is not among the contestants: %s", one_line(error))
        return [eager]
    load = partial(_load_torch, compiled, model)
    return [eager, PlainModel("plain torch.compile", "full-depth", "torch.compile", depth, load)]


def _load_torch(
    function: Callable[[MultiExitModel, Mapping[str, Tensor]], Tensor],
    model: MultiExitModel,
    threads: int,
    workers: int,
) -> BatchRun:
    if workers > 1:
        raise InvalidInput(f"torch computes one batch at a time, with threads: workers must be 1, got {workers}")

    def run(batch: Batch) -> Array:
        if torch.get_num_threads() != threads:  # of the whole process
            torch.set_num_threads(threads)
        inputs = {name: torch.from_numpy(values).to(model.device) for name, values in batch.items()}
        logits: Array = function(model, inputs).float().cpu().numpy()
        return logits

    return run


def _example(rows: int, tokens: int, model: MultiExitModel) -> Batch:
    names = ("input_ids", "attention_mask", "token_type_ids")[
        : 2 + (getattr(model.config.backbone, "type_vocab_size", 0) > 1)
    ]
    return {name: np.full((rows, tokens), int(name == "attention_mask"), np.int64) for name in names}


# --- exported graphs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runtime:
    """A way to run an exported graph.

    Attributes:
        name: of the full-depth contestant, see `Contestant.name`.
        engine: the runtime with its precision.
        prepare: the graph in float32 with all exits -> the graph that runs.
        load: one output of that graph, threads and workers -> the run.
    """

    name: str
    engine: str
    load: Callable[[str, int, int], BatchRun]

    def at(self, layer: int, kind: Kind = "full-depth", name: str | None = None) -> PlainModel:
        """Return the contestant that answers at a layer."""
        return PlainModel(name or self.name, kind, self.engine, layer, partial(self.load, output_at(layer)))


def output_at(layer: int) -> str:
    """Return the name of an exit's output in the graphs of `export_exits` and `lexical_alone`."""
    return f"new.{_output(layer)}"  # as `torch_export.output_name`, which needs onnx


def _output(layer: int) -> str:
    return f"logits_{layer}"


def missing() -> str | None:
    """Return why nothing can be exported; None where it can."""
    if any(find_spec(name) is None for name in NEEDED):
        return "without ONNX Runtime, the strongest baseline on many CPUs: pip install 'offramp[onnx]'"
    return None


def export_exits(model: MultiExitModel) -> ModelProto:
    """Export the encoder with the head of every exit behind a layer, without decisions; one output an exit.

    Where tokens exit, it is transformers' own forward with the last head alone.
    """
    from offramp.inference.onnx.export_blocks import export_whole

    layers = exit_layers(model)
    function = _all_exits if model.config.token_exit is None else _last_exit
    return export_whole(copy.deepcopy(model).float().cpu(), function, [_output(layer) for layer in layers])


def exit_layers(model: MultiExitModel) -> list[int]:
    """Return the layers at which an exported encoder without decisions can be cut, the last one among them."""
    layers = list(model.config.exit_layers)
    return layers if model.config.token_exit is None else layers[-1:]


def _all_exits(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    carry, logits = model.embed(inputs), []
    for exit, layer in enumerate(model.layers):
        if layer:
            carry = model.block(exit, carry)
            logits.append(model.exit(exit, carry).logits)
    return tuple(logits)


def _last_exit(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (forward(model, inputs),)


def in_onnx_runtime(graph: ModelProto, model: MultiExitModel, rows: Sequence[Tokens]) -> list[Runtime]:
    """Return the ways to run exits in ONNX Runtime: float32 and two kinds of int8, each with and without the fusion.

    Args:
        graph: of `export_exits`.
        model: that it was exported from.
        rows: from which exact int8, which `offramp export --int8` writes, takes the ranges of activations.
    """
    from offramp.bench.dynamic_int8 import dynamic_int8
    from offramp.inference.onnx.quantize import exact_int8
    from offramp.inference.onnx.torch_export import silence_exporter

    @cache
    def dynamic() -> ModelProto:
        with silence_exporter():
            return dynamic_int8(graph)

    @cache
    def exact() -> ModelProto:
        modules = {name: name for name, _ in model.backbone.named_modules()}
        return exact_int8(measure_ranges(model, rows))(graph, (EMBEDDING, *exit_layers(model)), modules)

    graphs: dict[tuple[str, str], Callable[[], ModelProto]] = {
        ("plain onnx", "onnx"): lambda: graph,
        ("plain exact int8", "onnx-int8"): exact,
        ("plain dynamic int8", "onnx-int8"): dynamic,
    }
    return [
        Runtime(name + suffix, engine, partial(load_output, content, fused))
        for (name, engine), content in graphs.items()
        for fused, suffix in ((False, ""), (True, ", norms fused"))
    ]


def load_output(graph: Callable[[], ModelProto], fused: bool, output: str, threads: int, workers: int) -> BatchRun:
    """Load the part of a graph that leads to one output in ONNX Runtime; the workers share one session.

    Args:
        graph: returns the graph.
        fused: with the fusion of sums and norms that `OnnxSession` switches off.
        output: its name.
        threads: of the session.
        workers: that call it.
    """
    from onnx.utils import Extractor

    from offramp.inference.onnx.runtime import onnxruntime
    from offramp.inference.onnx.session import SLOW, session_options

    whole = graph()
    part = Extractor(whole).extract_model([value.name for value in whole.graph.input], [output])
    session = onnxruntime.InferenceSession(
        part.SerializeToString(),
        session_options(threads),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[] if fused else [SLOW],
    )
    names = [value.name for value in session.get_inputs()]

    def run(batch: Batch) -> Array:
        logits: Array = session.run(None, {name: batch[name] for name in names})[0]
        return logits

    return run


# --- the exit before the first layer ----------------------------------------------------------------------------------


def lexical_alone(model: MultiExitModel) -> PlainModel:
    """Return the exit before the first layer alone: in ONNX Runtime where it is installed, else in torch."""
    if missing() is not None:
        return PlainModel("lexical", "lexical", "torch", 0, partial(_load_torch, _lexical_logits, model))
    from offramp.inference.onnx.export_blocks import export_whole

    graph = export_whole(copy.deepcopy(model).float().cpu(), _lexical, [_output(0)])
    return PlainModel("lexical", "lexical", "onnx", 0, partial(load_output, lambda: graph, False, output_at(0)))


@torch.inference_mode()
def _lexical_logits(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.lexical(inputs).logits


def _lexical(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (model.lexical(inputs).logits,)


def cuts(runtime: Runtime, layers: Sequence[int]) -> list[PlainModel]:
    """Return the encoder cut behind each layer but the last, with that exit's own head."""
    return [runtime.at(layer, "cut", f"cut at layer {layer}") for layer in layers[:-1]]
