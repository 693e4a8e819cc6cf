"""Load what a predictor needs beside its engine; without torch and transformers, where an exported graph runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from offramp.data.batching import check_vocabulary
from offramp.data.file_tokenizer import FileTokenizer
from offramp.errors import InvalidInput
from offramp.model.graph_config import EncoderSizes, GraphConfig, load_graph_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from offramp.model.config import MultiExitConfig


def load_text_config(folder: str | os.PathLike[str]) -> MultiExitConfig | GraphConfig:
    """Load the configuration of a model of texts from a folder or hub name (see `load_graph_config`).

    Raises:
        InvalidInput: nothing can be loaded from there, or it is a model without exits, or one of images.
    """
    config = load_graph_config(folder)
    if not isinstance(config, GraphConfig):
        from offramp.model.hub import refuse_images

        refuse_images(folder, config)
    return config


def load_text_tokenizer(
    folder: str | os.PathLike[str], encoder: PreTrainedConfig | EncoderSizes
) -> PreTrainedTokenizerBase | FileTokenizer:
    """Load the tokenizer of a folder or hub name: from its file alone, where transformers would do the same.

    Raises:
        InvalidInput: there is none, or it has tokens that the encoder does not know.
    """
    tokenizer = FileTokenizer.read(folder)
    if tokenizer is None:
        from offramp.model.hub import load_tokenizer

        return load_tokenizer(folder, encoder)
    try:
        check_vocabulary(tokenizer, encoder)
    except InvalidInput as error:
        raise InvalidInput(f"{os.fspath(folder)}: {error}") from None
    return tokenizer
