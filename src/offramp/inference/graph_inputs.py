"""The inputs and outputs of an exported graph, for every runtime: numpy in, numpy out. No torch, no transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.data.padding import Array
from offramp.errors import InvalidInput


@dataclass(frozen=True)
class GraphOutput:
    """A graph's answers to a batch.

    Attributes:
        logits: (B, C) of the answers.
        exit_layers: (B,) int64 layer numbers.
        logits_by_exit: (B, L, C), NaN after the exit at which a row has left.
        certainty_by_exit: (B, L) likewise; None where the model has no gate.
    """

    logits: Array
    exit_layers: Array
    logits_by_exit: Array
    certainty_by_exit: Array | None


@dataclass(frozen=True)
class GraphInputs:
    """The inputs of a graph.

    Attributes:
        axes: name of each input but the thresholds -> how many axes it has; the first one must be among a batch's.
        exits: number of the graph's exits.
        columns: number of tokens of a batch -> to how many it is padded.
    """

    axes: Mapping[str, int]
    exits: int
    columns: Callable[[int], int]

    def arrays(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return a batch's inputs, checked, padded and in the graph's dtypes.

        Without a mask every token is real, without types all are 0.

        Raises:
            InvalidInput: no rows or no tokens; inputs that do not fit.
        """
        first, axes = next(iter(self.axes.items()))
        if first not in inputs:
            raise InvalidInput(f"the graph reads {first}, got {', '.join(inputs) or 'nothing'}")
        shape = np.shape(inputs[first])
        if len(shape) != axes or 0 in shape:
            raise InvalidInput(f"{first} must have {axes} axes, none of them empty; got {shape}")
        fillers = {"attention_mask": np.ones, "token_type_ids": np.zeros}
        arrays = {}
        for name in self.axes:
            value = inputs[name] if name in inputs else fillers[name](shape, np.int64)
            arrays[name] = np.ascontiguousarray(value, np.float32 if name == "pixel_values" else np.int64)
            if arrays[name].shape != shape:
                raise InvalidInput(f"{name} must be of shape {shape} as {first} is, got {arrays[name].shape}")
        if axes == 2 and (missing := self.columns(shape[1]) - shape[1]):
            arrays = {name: np.pad(value, ((0, 0), (0, missing))) for name, value in arrays.items()}
        return arrays

    def limits(self, thresholds: float | Sequence[float] | Array, rows: int) -> Array:
        """Return thresholds as the graph takes them, (1 or B, L-1).

        Raises:
            InvalidInput: the wrong number of thresholds, or a NaN.
        """
        exits = self.exits
        values = np.asarray(thresholds, np.float32)
        if values.ndim < 2:
            values = np.full((1, exits - 1), values) if values.ndim == 0 else values[None]
        if values.shape not in ((1, exits - 1), (rows, exits - 1)):
            raise InvalidInput(
                f"{exits} exits take 1 or {exits - 1} thresholds (all exits but the last), for all or for each of "
                f"{rows} rows; got {values.shape}"
            )
        if math.isnan(values.min(initial=math.inf)):
            raise InvalidInput(f"a threshold must be a number, got {values.tolist()}")
        return values
