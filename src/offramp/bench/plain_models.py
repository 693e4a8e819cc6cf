"""All contestants without early exit that this machine can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.bench.baselines import (
    Runtime,
    cuts,
    exit_layers,
    export_exits,
    in_onnx_runtime,
    in_torch,
    lexical_alone,
    log,
    missing,
)
from offramp.bench.contestant import Contestant
from offramp.bench.in_ctranslate2 import in_ctranslate2
from offramp.bench.in_openvino import in_openvino
from offramp.bench.texts import PlainModel, TextEncoder
from offramp.data.rows import Text
from offramp.model.modeling import MultiExitModel


@dataclass(frozen=True)
class PlainModels:
    """Contestants without early exit, of one model.

    Attributes:
        full: full-depth models; those of `runtimes` among them.
        runtimes: those that can be cut at a layer.
        lexical: the exit before the first layer; None where the model has none.
        layers: at which the encoder can be cut, and the last one.
        encoder: tokenizes for all of them.
    """

    full: Sequence[PlainModel]
    runtimes: Sequence[Runtime]
    lexical: PlainModel | None
    layers: Sequence[int]
    encoder: TextEncoder

    def cut_in(self, name: str) -> list[PlainModel]:
        """Return the encoder cut at each layer, in the runtime of this name; none where it has no such runtime."""
        return [cut for runtime in self.runtimes if runtime.name == name for cut in cuts(runtime, self.layers)]

    def by_name(self, name: str) -> PlainModel:
        """Return a full-depth model."""
        return next(model for model in self.full if model.name == name)

    def contestants(self) -> list[Contestant]:
        """Return the full-depth contestants."""
        return [model.contestant(self.encoder) for model in self.full]


def plain_models(model: MultiExitModel, encoder: TextEncoder, texts: Sequence[Text], folder: Path) -> PlainModels:
    """Return the contestants without early exit; a log line names each that this machine cannot run, and why.

    Args:
        model: in eval mode.
        encoder: of the texts.
        texts: examples of the texts to come, which int8 takes the ranges of activations from.
        folder: for exported files; it must stay as long as a contestant may be loaded.
    """
    full, runtimes = [*in_torch(model), *in_ctranslate2(model, encoder.tokenizer, folder)], list[Runtime]()
    lexical = None if model.lexical_exit is None else lexical_alone(model)
    layers = exit_layers(model)
    if (reason := missing()) is not None:
        log.info(reason)
        return PlainModels(full, runtimes, lexical, layers, encoder)
    log.info("exporting the plain model")
    graph = export_exits(model)
    rows = encoder.encode(texts)
    runtimes += in_onnx_runtime(graph, model, rows)
    runtimes += in_openvino(graph, folder, [encoder.batch([row]) for row in rows])
    full += [runtime.at(layers[-1]) for runtime in runtimes]
    return PlainModels(full, runtimes, lexical, layers, encoder)
