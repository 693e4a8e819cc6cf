"""Load the encoder, the configuration and the tokenizer of a model's folder or hub repository."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers

from offramp.data.batching import check_vocabulary
from offramp.errors import InvalidInput, one_line
from offramp.model.backbones.registry import load_backbone
from offramp.model.config import MultiExitConfig, resolve_pad_token
from offramp.model.files import adapter_settings, find_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_encoder(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load an encoder from a folder or hub name, in float32; with its head, if it was saved as a classifier.

    An adapter of PEFT is merged into its base model. A model with exits is loaded with its exits.

    Raises:
        InvalidInput: nothing can be loaded from there.
        UnsupportedBackbone: an encoder that offramp cannot run layer by layer.
    """
    from offramp.model.adapters import load_merged  # which imports this module

    adapter = adapter_settings(folder)
    if adapter is not None:
        return load_merged(folder, adapter)
    config = from_pretrained_or_raise(transformers.AutoConfig, folder)
    if isinstance(config, MultiExitConfig):
        model = from_pretrained_or_raise(transformers.AutoModelForSequenceClassification, folder, dtype=torch.float32)
        return cast("PreTrainedModel", model)
    # an unknown family is refused before its weights are loaded
    of_texts = load_backbone(config.model_type).input_name == "input_ids"
    classifier = (
        transformers.AutoModelForSequenceClassification if of_texts else transformers.AutoModelForImageClassification
    )
    kind = classifier if is_classifier(config.architectures) else transformers.AutoModel
    resolve_pad_token(config, _tokenizer_or_none(folder) if getattr(config, "pad_token_id", 0) is None else None)
    encoder, loading = from_pretrained_or_raise(
        kind, folder, config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    if missing:  # transformers would fill them with random numbers
        raise InvalidInput(
            f"{folder}: its weights have no {missing[0]} and {len(missing) - 1} more of {type(encoder).__name__}"
        )
    return encoder


def _tokenizer_or_none(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(folder)
    except InvalidInput:
        return None


def load_config(folder: str | os.PathLike[str]) -> MultiExitConfig:
    """Load the configuration of a model with exits.

    Raises:
        InvalidInput: nothing can be loaded from there, or it is a model without exits.
    """
    if adapter := adapter_settings(folder):
        raise InvalidInput(
            f"{folder}: an adapter of {adapter['base_model_name_or_path']}, no whole model; if that one has exits,"
            " MultiExitModel.from_backbone(folder) merges the two"
        )
    import_module("offramp.model.modeling")  # registers the configurations with transformers
    config = from_pretrained_or_raise(transformers.AutoConfig, folder)
    if isinstance(config, MultiExitConfig) and config.backbone is None:
        raise InvalidInput(f"{folder}: config.json has no backbone, the configuration of the encoder")
    if not isinstance(config, MultiExitConfig):
        raise InvalidInput(f"{folder}: a {config.model_type} model without exits; `offramp train` puts exits on it")
    return config


def refuse_images(folder: str | os.PathLike[str], config: MultiExitConfig) -> None:
    """Raise InvalidInput for a model of images, where texts are needed."""
    if load_backbone(config.backbone.model_type).input_name != "input_ids":
        raise InvalidInput(f"{folder}: a model of images; this takes texts (MultiExitModel.from_pretrained loads it)")


def load_tokenizer(folder: str | os.PathLike[str], encoder: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder or hub name.

    Args:
        folder: or a hub name.
        encoder: the configuration of the encoder that reads its tokens; None = they are not compared.

    Raises:
        InvalidInput: there is none, or it has tokens that the encoder does not know.
    """
    adapter = adapter_settings(folder)
    if adapter is not None and all(find_file(folder, name) is None for name in TOKENIZER_FILES):
        return load_tokenizer(adapter["base_model_name_or_path"], encoder)
    tokenizer: PreTrainedTokenizerBase = from_pretrained_or_raise(transformers.AutoTokenizer, folder)
    files = tokenizer.vocab_files_names.values()
    if files and all(find_file(folder, name) is None for name in files):  # transformers makes one without words
        raise InvalidInput(f"{folder}: no tokenizer can be loaded from there (none of the files {', '.join(files)})")
    if encoder is not None:
        try:
            check_vocabulary(tokenizer, encoder)
        except InvalidInput as error:
            raise InvalidInput(f"{folder}: {error}") from None
    return tokenizer


def from_pretrained_or_raise(kind: Any, folder: str | os.PathLike[str], **options: Any) -> Any:
    """Call `kind.from_pretrained`, with its errors in one line.

    Raises:
        InvalidInput: nothing can be loaded from there.
    """
    try:
        return kind.from_pretrained(folder, **options)
    except Exception as error:  # of transformers and of its parsers of files; they have no common root
        content = {"AutoTokenizer": "tokenizer"}.get(kind.__name__, "model")
        reason = one_line(error if isinstance(error, (OSError, ValueError, RuntimeError)) else repr(error))
        absent = "" if os.path.exists(folder) else "; there is no folder of that name either"
        raise InvalidInput(f"{folder}: no {content} can be loaded from there ({reason}){absent}") from None


def is_classifier(names: Sequence[str] | None) -> bool:
    """Return True if a class of these names is one of transformers' classifiers."""
    suffixes = ("ForSequenceClassification", "ForImageClassification")
    return any(name.endswith(suffixes) for name in names or ())
