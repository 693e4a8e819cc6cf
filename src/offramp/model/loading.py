"""Load a model with exits from a folder or a hub name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from offramp.errors import InvalidInput
from offramp.model.hub import from_pretrained_or_raise, load_config, load_tokenizer, refuse_images
from offramp.model.modeling import MultiExitModel
from offramp.types.fingerprint import LEXICAL


def load_model(folder: str | os.PathLike[str]) -> MultiExitModel:
    """Load a model with exits from a folder or a hub name, in eval mode; on the GPU if there is one.

    Raises:
        InvalidInput: nothing can be loaded from there, it is a model without exits, or its weights are those of
            another configuration.
    """
    load_config(folder)
    model: MultiExitModel
    model, loading = from_pretrained_or_raise(
        MultiExitModel, folder, output_loading_info=True, ignore_mismatched_sizes=True
    )
    _refuse_other_weights(folder, loading)
    model.eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model


def _refuse_other_weights(folder: str | os.PathLike[str], loading: Mapping[str, Any]) -> None:
    """Raise InvalidInput where transformers would fill weights with random numbers, or leave exits out."""
    for name, there, here in sorted(loading["mismatched_keys"]):
        raise InvalidInput(f"{folder}: weight {name} has the shape {list(there)}, and config.json means {list(here)}")
    missing = sorted(loading["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidInput(f"{folder}: its weights have no {missing[0]}{more}")
    for name in sorted(loading["unexpected_keys"]):
        if name.startswith(("heads.", "bypasses.", "gate.", LEXICAL)):
            raise InvalidInput(f"{folder}: its weights have {name}, and config.json means a model without it")


def load_folder(folder: str | os.PathLike[str]) -> tuple[MultiExitModel, PreTrainedTokenizerBase]:
    """Load a model of texts with exits, as `load_model` does, and its tokenizer.

    Raises:
        InvalidInput: nothing can be loaded from there, it is a model without exits, or one of images.
    """
    config = load_config(folder)
    refuse_images(folder, config)
    tokenizer = load_tokenizer(folder, config.backbone)
    return load_model(folder), tokenizer
