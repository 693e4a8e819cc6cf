"""Run the levels of a saved graph: numpy in, numpy out. No torch, no transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from offramp.data.padding import Array, padded
from offramp.errors import InvalidInput, one_line
from offramp.inference.flight import Flight, LeftRows
from offramp.inference.graph_inputs import GraphInputs
from offramp.inference.onnx.carried import Fields, count_tokens, merge, take
from offramp.inference.onnx.levels import ALWAYS, LevelSpec, level_graphs
from offramp.inference.onnx.pieces import disassemble
from offramp.inference.onnx.runtime import onnxruntime
from offramp.inference.onnx.session import SLOW, WEIGHTS_FOLDER, OnnxSession, session_options, weights_beside
from offramp.types.graph_file import WEIGHTS, with_data_at

YES = np.array(True)


@dataclass(frozen=True)
class Level:
    """One level, loaded.

    Attributes:
        session: of ONNX Runtime.
        spec: its inputs and outputs.
    """

    session: onnxruntime.InferenceSession
    spec: LevelSpec

    def run(self, fields: Fields, limit: Array) -> list[Array]:
        """Return the outputs of `spec` for a batch at a threshold, (1,) or (B,)."""
        spec = self.spec
        inputs = {value: fields[name] for value, name in spec.reads.items()}
        if spec.limit is not None:
            inputs[spec.limit] = limit
        if spec.around:
            inputs[ALWAYS] = YES
        outputs: list[Array] = self.session.run(spec.outputs, inputs)
        return outputs


def load_levels(graph: OnnxSession, full_depth: bool = False, only_first: bool = False) -> tuple[Level, ...]:
    """Load the levels of a graph, or the first one, over the file of its weights; see `level_graphs`.

    Raises:
        InvalidInput: the file is no longer there, or cannot be loaded.
    """
    count = 1 if only_first else None
    if isinstance(graph.source, bytes):
        return tuple(islice(_load(graph.source, graph.threads, full_depth), count))
    path = Path(graph.source)
    try:
        with weights_beside(path) as weights:
            content = with_data_at(path.read_bytes(), path.name + WEIGHTS, weights.name)
            return tuple(islice(_load(content, graph.threads, full_depth, weights.parent), count))
    except Exception as error:  # ONNX Runtime's own have no common root
        raise InvalidInput(f"{path}: its levels cannot be loaded ({one_line(error)})") from None


def _load(content: bytes, threads: int | None, full_depth: bool, folder: Path | None = None) -> Iterator[Level]:
    """Load the levels of a file's content; its weights are in a file of `folder`."""
    for model, spec in level_graphs(disassemble(ModelProto.FromString(content)), full_depth):
        options = session_options(threads)
        options.enable_mem_pattern = False  # it plans anew for every shape
        if folder is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(folder))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOW]
        )
        yield Level(session, spec)


@dataclass(frozen=True)
class LevelRunner:
    """The levels of a graph at an operating point.

    Attributes:
        levels: in their order.
        limits: the threshold of each level, (1,) float32.
        inputs: of the graph.
        pad_token_id: of the model.
    """

    levels: tuple[Level, ...]
    limits: tuple[Array, ...]
    inputs: GraphInputs
    pad_token_id: int | None

    @classmethod
    def of(
        cls, graph: OnnxSession, thresholds: Sequence[float] | Array | None, pad_token_id: int | None
    ) -> LevelRunner:
        """Load the levels of a graph in its place, at thresholds of its exits but the last; None = full depth.

        Raises:
            InvalidInput: the file is no longer there, or cannot be loaded.
        """
        graph.release()
        levels = load_levels(graph, full_depth=thresholds is None)
        limits = np.full(len(graph.metadata.layers), math.inf, np.float32)
        if thresholds is not None:
            limits[:-1] = thresholds
        return cls(levels, tuple(limits[level.spec.exit][None] for level in levels), graph.inputs, pad_token_id)

    @property
    def stages(self) -> int:
        """Return the number of levels."""
        return len(self.levels)

    def start(self, rows: Array, tokens: Sequence[Mapping[str, Any]]) -> LevelFlight:
        """Return rows that stand before the first level."""
        return self.start_batch(rows, padded(tokens, self.pad_token_id))

    def start_batch(self, rows: Array, inputs: Mapping[str, Array]) -> LevelFlight:
        """Return rows that stand before the first level; see `OnnxSession.run` for the inputs."""
        return LevelFlight(rows, 0, self.levels, self.limits, self.inputs.arrays(inputs))


@dataclass(frozen=True)
class LevelFlight:
    """Rows that stand before the same level.

    Attributes:
        rows: (B,) int64, the caller's numbers.
        stage: the level, 0-based.
        levels: of the graph.
        limits: the threshold of each level, (1,) float32.
        fields: what the level reads, and what goes on past it.
    """

    rows: Array
    stage: int
    levels: Sequence[Level]
    limits: Sequence[Array]
    fields: Fields

    @property
    def tokens(self) -> Array:
        """Return the real tokens of each row, (B,) int64."""
        return count_tokens(self.fields)

    def advance(self) -> tuple[LeftRows | None, Flight | None]:
        """Run the level on all rows; return those that leave and those that go on."""
        level = self.levels[self.stage]
        logits, *others = level.run(self.fields, self.limits[self.stage])
        if self.stage == len(self.levels) - 1:
            return self._left(slice(None), logits), None
        continues, *written = others
        unchanged = {name: self.fields[name] for name in level.spec.unchanged}
        fields = unchanged | dict(zip(level.spec.written, written, strict=True))
        onward = replace(self, stage=self.stage + 1, fields=fields)
        if continues.all():
            return None, onward
        left = self._left(~continues, logits)
        return left, onward.take(np.flatnonzero(continues)) if continues.any() else None

    def take(self, positions: Array) -> LevelFlight:
        """Return the rows at these positions, (K,)."""
        return replace(self, rows=self.rows[positions], fields=take(self.fields, positions))

    def merge(self, others: Sequence[LevelFlight]) -> LevelFlight:
        """Return these rows and those of others before the same level."""
        flights = (self, *others)
        rows = np.concatenate([flight.rows for flight in flights])
        return replace(self, rows=rows, fields=merge([flight.fields for flight in flights]))

    def _left(self, leaving: slice | Array, logits: Array) -> LeftRows:
        rows, answers = self.rows[leaving], logits[leaving]
        layer = self.levels[self.stage].spec.layer
        failed = np.logical_not(np.isfinite(answers).all(axis=-1))
        return LeftRows(rows, answers, np.full(len(rows), layer), failed)
