"""Run an exported graph in OpenVINO."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from offramp.data.batching import position_limit
from offramp.inference.onnx_engine import GraphEngine

if TYPE_CHECKING:
    from offramp.inference.openvino.session import OpenVinoSession
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig


@final
@dataclass(frozen=True)
class OpenVinoEngine(GraphEngine):
    """A graph that `offramp export --openvino` wrote, in OpenVINO.

    The encoder runs in bf16 where the processor has it, else in float32, or in int8 where the file is; exits and
    decisions are in float32. In bf16 and in int8 an answer may depend on the rest of the batch.
    """

    graph: OpenVinoSession

    @property
    def name(self) -> str:
        """Return the engine's name with its precision."""
        int8 = self.graph.metadata.precision == "int8"
        return f"openvino-{'int8' if int8 else self.graph.precision}"

    @property
    def kind(self) -> str:
        """Return the engine's name as users type it."""
        return "openvino"


def load_openvino(
    path: str | os.PathLike[str],
    config: MultiExitConfig | GraphConfig,
    threads: int = 1,
    workers: int = 1,
    precision: str | None = None,
) -> OpenVinoEngine:
    """Load a graph of OpenVINO.

    Args:
        path: of the file.
        config: of the model that it was made of.
        threads: that compute a batch.
        workers: batches at the same time.
        precision: see `OpenVinoSession.load`.

    Raises:
        InvalidInput: `offramp export` did not write it, or OpenVINO cannot load it.
    """
    from offramp.inference.openvino.session import OpenVinoSession

    encoder = config.backbone
    positions = position_limit(encoder) if hasattr(encoder, "max_position_embeddings") else None
    return OpenVinoEngine(OpenVinoSession.load(path, positions, threads, workers, precision), config)
