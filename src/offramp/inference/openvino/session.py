"""Run a graph that was converted to OpenVINO's format: numpy in, numpy out. No torch, no transformers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import openvino

from offramp.data.padding import Array
from offramp.errors import InvalidInput, one_line
from offramp.inference.graph_inputs import GraphInputs, GraphOutput
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.types.graph_file import read_metadata

CPU = "CPU"
FLOAT32, BFLOAT16 = "float32", "bf16"
HINTS = {FLOAT32: "f32", BFLOAT16: "bf16"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
STEP = 8  # lengths are padded to a multiple of it up to COARSE tokens, and to an eighth of a power of two beyond
COARSE = 64
CACHE = "cache"
"""The folder beside the graph in which OpenVINO keeps what it has compiled."""


def best_precision() -> str:
    """Return BFLOAT16 where the processor computes in it, else FLOAT32."""
    return BFLOAT16 if "BF16" in openvino.Core().get_property(CPU, "OPTIMIZATION_CAPABILITIES") else FLOAT32


def padded_length(tokens: int, positions: int | None) -> int:
    """Return to how many tokens a batch is padded, so that few lengths are met, at most the encoder's positions."""
    step = STEP if tokens <= COARSE else max(STEP, 1 << (tokens - 1).bit_length() >> 3)
    rounded = -(-tokens // step) * step
    return rounded if positions is None else max(tokens, min(rounded, positions))


@dataclass(frozen=True)
class OpenVinoSession:
    """A converted model, ready to run, from several threads at the same time.

    Pickled, it is its source, which is loaded again.

    Attributes:
        compiled: of OpenVINO.
        metadata: of the file.
        path: of the file.
        threads: that compute a batch.
        streams: batches that are computed at the same time.
        precision: FLOAT32 or BFLOAT16, in which it computes what is not in int8.
        positions: the largest number of tokens that the encoder takes; None for images.
    """

    compiled: openvino.CompiledModel
    metadata: GraphMetadata
    path: str
    threads: int
    streams: int
    precision: str
    positions: int | None
    _requests: threading.local = field(default_factory=threading.local, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[..., OpenVinoSession], tuple[Any, ...]]:
        return OpenVinoSession.load, (
            os.path.abspath(self.path),
            self.positions,
            self.threads,
            self.streams,
            self.precision,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        positions: int | None,
        threads: int = 1,
        streams: int = 1,
        precision: str | None = None,
    ) -> OpenVinoSession:
        """Load a file; None as `precision` = float32 for a graph in int8, else `best_precision`.

        Raises:
            InvalidInput: `offramp export` did not write it, or OpenVINO cannot load it.
        """
        metadata = GraphMetadata.of(read_metadata(Path(path)))
        chosen = precision or (FLOAT32 if metadata.precision == "int8" else best_precision())
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[chosen],
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # other processes have cores too
            **_cache(Path(path).with_name(CACHE)),
        }
        try:
            compiled = openvino.Core().compile_model(os.fspath(path), CPU, settings)
        except Exception as error:  # OpenVINO raises RuntimeError for most, and others
            raise InvalidInput(f"{os.fspath(path)}: OpenVINO cannot load it ({one_line(error)})") from None
        return cls(compiled, metadata, os.fspath(path), threads, streams, chosen, positions)

    def run(self, inputs: Mapping[str, Array], thresholds: float | Sequence[float] | Array) -> GraphOutput:
        """Answer a batch; see `OnnxSession.run`."""
        arrays = self.inputs.arrays(inputs)
        arrays["thresholds"] = self.inputs.limits(thresholds, len(next(iter(arrays.values()))))
        outputs = self._request.infer(arrays)
        certainty = outputs["certainty_by_exit"] if self.metadata.certainty else None
        return GraphOutput(outputs["logits"], outputs["exit_layer"], outputs["logits_by_exit"], certainty)

    @property
    def _request(self) -> openvino.InferRequest:
        """Return the request of the thread that asks: one request answers one batch at a time."""
        if not hasattr(self._requests, "of_thread"):
            self._requests.of_thread = self.compiled.create_infer_request()
        request: openvino.InferRequest = self._requests.of_thread
        return request

    @cached_property
    def inputs(self) -> GraphInputs:
        """Return the graph's inputs but the thresholds; an input may have several names."""
        axes = {
            name: len(value.get_partial_shape())
            for value in self.compiled.inputs
            for name in INPUTS
            if name in value.get_names()
        }
        return GraphInputs(axes, len(self.metadata.layers), lambda tokens: padded_length(tokens, self.positions))


def _cache(folder: Path) -> dict[str, str]:
    """Return the setting for a cache of compiled models, where the folder can be written to."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return {}
    return {"CACHE_DIR": os.fspath(folder)} if os.access(folder, os.W_OK) else {}
