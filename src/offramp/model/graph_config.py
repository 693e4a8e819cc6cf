"""The part of a model's configuration that an exported graph needs, read without torch and transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from offramp.data.batching import COUNTED_FROM_PAD
from offramp.data.label_names import text_names
from offramp.model.backbones.registry import BACKBONES
from offramp.model.files import ADAPTER_FILE
from offramp.types.file_format import CONFIG_FORMAT
from offramp.types.fingerprint import layers_of
from offramp.types.model_content import CONFIG_FILE
from offramp.types.problem_types import PROBLEM_TYPES, SINGLE_LABEL

if TYPE_CHECKING:
    from offramp.model.config import MultiExitConfig


@final
@dataclass(frozen=True)
class EncoderSizes:
    """The sizes of an encoder of texts.

    Attributes:
        model_type: its family, as transformers names it.
        vocab_size: rows of its embedding.
        max_position_embeddings: rows of its embedding of positions.
        pad_token_id: None where it has none.
    """

    model_type: str
    vocab_size: int
    max_position_embeddings: int
    pad_token_id: int | None


@final
@dataclass(frozen=True)
class GraphConfig:
    """The part of the configuration of a model of texts that its graph needs; names are those of `MultiExitConfig`.

    Attributes:
        folder: of the model.
        backbone: sizes of the encoder.
        layers: the layer number of each exit; 0 = before the first layer.
        problem_type: one of PROBLEM_TYPES.
        id2label: the class of each output.
        certainty: True if the model has a gate.
    """

    folder: str
    backbone: EncoderSizes
    layers: list[int]
    problem_type: str
    id2label: Mapping[int, str]
    certainty: bool

    @property
    def num_labels(self) -> int:
        """Return the number of outputs."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """Return the number of each class."""
        return {name: number for number, name in self.id2label.items()}

    @property
    def exit_layers(self) -> list[int]:
        """Return the layer number of each exit behind a layer."""
        return [layer for layer in self.layers if layer]

    @property
    def vocab_size(self) -> int:
        """Return the number of rows of the encoder's embedding."""
        return self.backbone.vocab_size

    @property
    def pad_token_id(self) -> int | None:
        """Return the token that fills a batch."""
        return self.backbone.pad_token_id

    def full(self) -> MultiExitConfig:
        """Load the whole configuration."""
        from offramp.model.hub import load_config

        return load_config(self.folder)


def load_graph_config(folder: str | os.PathLike[str]) -> MultiExitConfig | GraphConfig:
    """Load the configuration of a folder or hub name for its graph, without transformers where that is possible.

    Raises:
        InvalidInput: nothing can be loaded from there, or it is a model without exits.
    """
    config = read_graph_config(folder)
    if config is not None:
        return config
    from offramp.model.hub import load_config

    return load_config(folder)


def read_graph_config(folder: str | os.PathLike[str]) -> GraphConfig | None:
    """Read a local folder's config.json; None where transformers has to, or has to say what is wrong.

    A graph is refused beside another config.json than the one that it was made of, so what is not needed here is not
    checked.
    """
    path = Path(folder)
    if (path / ADAPTER_FILE).exists():
        return None
    try:
        data = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        encoder = data["backbone"]
        sizes = EncoderSizes(
            encoder["model_type"], encoder["vocab_size"], encoder["max_position_embeddings"], encoder["pad_token_id"]
        )
        names = zip(data["id2label"], text_names(data["id2label"].values()), strict=True)
        config = GraphConfig(
            os.path.abspath(folder),
            sizes,
            layers_of(data),
            data["problem_type"],
            {int(number): name for number, name in names},
            data["certainty"],
        )
        return config if _is_plain(data) and _is_right(config) else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _is_plain(data: Mapping[str, Any]) -> bool:
    """Return whether transformers would take the values of a configuration as they are."""
    formats = tuple(range(1, CONFIG_FORMAT + 1))
    return data["model_type"] == "multi_exit" and data.get("format", 1) in formats and "num_labels" not in data


def _is_right(config: GraphConfig) -> bool:
    """Return whether the values of a configuration fit together."""
    encoder, layers = config.backbone, config.layers
    rows, positions, pad = encoder.vocab_size, encoder.max_position_embeddings, encoder.pad_token_id
    counted = encoder.model_type in COUNTED_FROM_PAD
    return (
        encoder.model_type in BACKBONES
        and type(rows) is type(positions) is int
        and (not counted if pad is None else type(pad) is int and pad < rows)
        and all(type(layer) is int for layer in layers)
        and all(low < high for low, high in pairwise((-1, *layers)))
        and config.problem_type in PROBLEM_TYPES
        and not (config.problem_type == SINGLE_LABEL and config.num_labels == 1)
        and sorted(config.id2label) == list(range(config.num_labels))
        and isinstance(config.certainty, bool)
    )
