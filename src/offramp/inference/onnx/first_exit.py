"""The exit before the first layer alone, for whoever answers at once what leaves there. No torch, no transformers.

It is the first level of the graph (`levels.py`), so its decisions and its logits are those of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from offramp.data.padding import Array, padded
from offramp.inference.graph_inputs import GraphInputs
from offramp.inference.onnx.level_sessions import Level, load_levels
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.inference.onnx.session import OnnxSession
from offramp.types.graph_file import read_metadata


@final
@dataclass(frozen=True)
class FirstExit:
    """The exit before the first layer, loaded.

    Attributes:
        level: the first one of the graph.
        inputs: of the graph.
        pad_token_id: of the model.
    """

    level: Level
    inputs: GraphInputs
    pad_token_id: int | None

    @classmethod
    def load(cls, path: str, pad_token_id: int | None) -> FirstExit | None:
        """Load it from an exported graph; None where the graph's policy does not begin with such an exit.

        Raises:
            InvalidInput: `offramp export` did not write the file.
        """
        metadata = GraphMetadata.of(read_metadata(Path(path)))
        if metadata.layers_read[0] != 0:
            return None
        level = load_levels(OnnxSession(metadata, path, 1), only_first=True)[0]
        axes = dict.fromkeys(level.spec.reads.values(), 2)
        return cls(level, GraphInputs(axes, len(metadata.layers), lambda tokens: max(tokens, 2)), pad_token_id)

    def answer(self, tokens: Sequence[Mapping[str, Any]], limits: Array) -> tuple[Array, Array]:
        """Return the logits (B, C) of the exit and whether a row leaves there, (B,) bool.

        Args:
            tokens: of each row, as `offramp.data.batching.encode` returns them.
            limits: (B,) float32, the threshold of each row; or (1,), of all.
        """
        logits, continues, *_ = self.level.run(self.inputs.arrays(padded(tokens, self.pad_token_id)), limits)
        leaves: Array = np.logical_not(continues)
        return logits, leaves
