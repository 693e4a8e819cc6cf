"""Load a model with exits from a folder or a hub name."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedTokenizerBase

from offramp.model.hub import from_pretrained_or_raise, load_config, load_tokenizer, refuse_images
from offramp.model.modeling import MultiExitModel


def load_model(folder: str | os.PathLike[str]) -> MultiExitModel:
    """Load a model with exits from a folder or a hub name, in eval mode; on the GPU if there is one.

    Raises:
        InvalidInput: nothing can be loaded from there, or it is a model without exits.
    """
    load_config(folder)
    model: MultiExitModel = from_pretrained_or_raise(MultiExitModel, folder).eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model


def load_folder(folder: str | os.PathLike[str]) -> tuple[MultiExitModel, PreTrainedTokenizerBase]:
    """Load a model of texts with exits, as `load_model` does, and its tokenizer.

    Raises:
        InvalidInput: nothing can be loaded from there, it is a model without exits, or one of images.
    """
    config = load_config(folder)
    refuse_images(folder, config)
    tokenizer = load_tokenizer(folder, config.backbone)
    return load_model(folder), tokenizer
