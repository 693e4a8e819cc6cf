"""What lies in a model's folder or hub repository: encoder, configuration, tokenizer, operating points."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.utils import cached_file

from offramp.errors import InvalidInput, UnknownName
from offramp.model.backbones.registry import load_backbone
from offramp.model.config import MultiExitConfig
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, read_points

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_encoder(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """An encoder from a folder or hub name, in float32; with its head, if it was saved as a classifier.

    Raises:
        InvalidInput: nothing can be loaded from there.
        UnsupportedBackbone: an encoder that offramp cannot cut.
    """
    config = from_pretrained_or_raise(transformers.AutoConfig, folder)
    # an unknown family is refused before its weights are loaded
    of_texts = load_backbone(config.model_type).input_name == "input_ids"
    classifier = (
        transformers.AutoModelForSequenceClassification if of_texts else transformers.AutoModelForImageClassification
    )
    kind = classifier if is_classifier(config.architectures) else transformers.AutoModel
    encoder, told = from_pretrained_or_raise(kind, folder, dtype=torch.float32, output_loading_info=True)
    missing = sorted(name for name in told["missing_keys"] if "pooler" not in name)
    if missing:  # transformers would go on with random weights
        raise InvalidInput(
            f"{folder}: its weights have no {missing[0]} and {len(missing) - 1} more of {type(encoder).__name__}"
        )
    return encoder


def load_config(folder: str | os.PathLike[str]) -> MultiExitConfig:
    """The configuration of a model with exits.

    Raises:
        InvalidInput: nothing can be loaded from there, or it is a model without exits.
    """
    config = from_pretrained_or_raise(transformers.AutoConfig, folder)
    if not isinstance(config, MultiExitConfig):
        raise InvalidInput(f"{folder}: a {config.model_type} model without exits; `offramp train` puts exits on it")
    return config


def refuse_images(folder: str | os.PathLike[str], config: MultiExitConfig) -> None:
    """Raise InvalidInput for a model of images, where texts are read."""
    if load_backbone(config.backbone.model_type).input_name != "input_ids":
        raise InvalidInput(f"{folder}: a model of images; this takes texts (MultiExitModel.from_pretrained loads it)")


def load_points(folder: str | os.PathLike[str], **where: Any) -> dict[str, OperatingPoint]:
    """The operating points that were saved with a model, by name.

    Args:
        folder: or a hub name.
        where: arguments of transformers' own, such as `revision`.
    """
    path = find_file(folder, POINTS_FILE, **where)
    return read_points(path) if path else {}


def named_point(points: Mapping[str, OperatingPoint], name: str) -> OperatingPoint:
    """The point of that name.

    Raises:
        UnknownName: there is none; the message says which there are.
    """
    if name not in points:
        known = ", ".join(points) or "none; `offramp calibrate` makes them"
        raise UnknownName(f"no operating point {name!r}; there are: {known}")
    return points[name]


def find_file(folder: str | os.PathLike[str], name: str, **where: Any) -> str | None:
    """The path of a file in a model's folder or hub repository; None where there is no such file."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path: str | None = cached_file(folder, name, **where, **quiet)
    return path


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or hub name.

    Raises:
        InvalidInput: there is none.
    """
    return from_pretrained_or_raise(transformers.AutoTokenizer, folder)


def from_pretrained_or_raise(kind: Any, folder: str | os.PathLike[str], **options: Any) -> Any:
    """`kind.from_pretrained`, with one line where transformers would fill the screen."""
    try:
        return kind.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        what = {"AutoTokenizer": "tokenizer"}.get(kind.__name__, "model")
        raise InvalidInput(f"{folder}: no {what} can be loaded from there ({str(error).splitlines()[0]})") from None


def is_classifier(names: Sequence[str] | None) -> bool:
    """Whether classes of these names are transformers' classifiers."""
    kinds = ("ForSequenceClassification", "ForImageClassification")
    return any(name.endswith(kinds) for name in names or ())
