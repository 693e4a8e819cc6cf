"""Read a model's folder or hub repository: encoder, configuration, tokenizer, operating points."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from transformers.utils import cached_file, logging

from offramp.data.batching import check_vocabulary
from offramp.errors import InvalidInput, UnknownName, one_line
from offramp.model.backbones.registry import load_backbone
from offramp.model.config import MultiExitConfig, resolve_pad_token
from offramp.policies.registry import load_policy
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import DEFAULT, POINTS_FILE, OperatingPoint, read_points

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

logger = logging.get_logger(__name__)


def load_encoder(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load an encoder from a folder or hub name, in float32; with its head, if it was saved as a classifier.

    An adapter of PEFT is merged into its base model. A model with exits is loaded with its exits.

    Raises:
        InvalidInput: nothing can be loaded from there.
        UnsupportedBackbone: an encoder that offramp cannot run layer by layer.
    """
    from offramp.model.adapters import adapter_settings, load_merged  # which imports this module

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
    from offramp.model.adapters import adapter_settings  # which imports this module

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


def load_points(folder: str | os.PathLike[str], **options: Any) -> dict[str, OperatingPoint]:
    """Load the operating points of a model, by name; those of other weights are left out with a warning.

    Args:
        folder: or a hub name.
        options: transformers' arguments for the repository, such as `revision`.

    Raises:
        InvalidInput: a point that the model cannot run.
    """
    return _fresh_and_stale(folder, **options)[0]


def load_point(folder: str | os.PathLike[str], name: str) -> OperatingPoint | None:
    """Load one operating point of a model; None = full depth, where the point "default" is not there or stale.

    Raises:
        UnknownName: there is none of that name.
        InvalidInput: it was chosen for other weights; a point that the model cannot run.
    """
    points, stale = _fresh_and_stale(folder)
    if name in stale and name != DEFAULT:
        raise InvalidInput(
            f"{folder}: operating point {name!r} was chosen for {stale[name]}; `offramp calibrate` chooses it anew"
        )
    return None if name == DEFAULT and name not in points else named_point(points, name)


def _fresh_and_stale(
    folder: str | os.PathLike[str], **options: Any
) -> tuple[dict[str, OperatingPoint], dict[str, str]]:
    """Return the points of a model, and for the stale ones what they were chosen for; warn of those."""
    examined = examine_points(folder, **options)
    stale = {name: reason for name, (_, reason) in examined.items() if reason is not None}
    if stale:
        depth = "; answers run at full depth" if DEFAULT in stale else ""
        names = ", ".join(map(repr, stale))
        reason = next(iter(stale.values())) if len(set(stale.values())) == 1 else "another model"
        _warn_once(
            f"{folder}: operating points {names} were chosen for {reason} and are not used; "
            f"`offramp calibrate` chooses them anew{depth}"
        )
    return {name: point for name, (point, _) in examined.items() if name not in stale}, stale


def examine_points(folder: str | os.PathLike[str], **options: Any) -> dict[str, tuple[OperatingPoint, str | None]]:
    """Return the points of a model, by name, each with what it was chosen for instead ("other weights") or None.

    Raises:
        InvalidInput: a point that the model cannot run.
    """
    path = find_file(folder, POINTS_FILE, **options)
    if path is None:
        return {}
    content = ModelContent(Path(path).parent)
    points = {
        name: _known_point(point, f"{path}: point {name!r}", content) for name, point in read_points(path).items()
    }
    return {
        name: (point, None if point.fingerprint is None else content.difference(point.fingerprint))
        for name, point in points.items()
    }


@cache
def _warn_once(line: str) -> None:
    """Log a warning, once for a file: a model and its predictor read the same points."""
    logger.warning("%s", line)


def _known_point(point: OperatingPoint, where: str, content: ModelContent) -> OperatingPoint:
    """Return a point with a fingerprint, which points of earlier versions lack.

    Raises:
        InvalidInput: a policy that is not known, or the wrong number of thresholds.
    """
    try:
        load_policy(point.policy)
    except (InvalidInput, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: policy: {one_line(error)}") from None
    layers = content.layers or []
    if point.fingerprint is None:
        read = _layers_read(point, where, layers) if layers else None
        return replace(point, fingerprint=content.fingerprint(read, whole=False))
    if point.exit_layers is None and list(point.fingerprint.exit_layers) != layers:  # exits were added or removed since
        try:
            return replace(point, exit_layers=point.fingerprint.exit_layers)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: thresholds: {error}") from None
    if set(point.fingerprint.exit_layers) <= set(layers):
        _layers_read(point, where, layers)
    return point


def _layers_read(point: OperatingPoint, where: str, layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers of the exits that a point reads.

    Raises:
        InvalidInput: the model does not have them.
    """
    try:
        return point.layers_read(layers)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: thresholds: {error}") from None


def named_point(points: Mapping[str, OperatingPoint], name: str) -> OperatingPoint:
    """Return the point of that name.

    Raises:
        UnknownName: there is none; the message lists those that exist.
    """
    if name not in points:
        known = ", ".join(points) or "none; `offramp calibrate` makes them"
        raise UnknownName(f"no operating point {name!r}; there are: {known}")
    return points[name]


def find_file(folder: str | os.PathLike[str], name: str, **options: Any) -> str | None:
    """Return the path of a file in a model's folder or hub repository; None if there is no such file."""
    if not os.path.exists(folder) and not os.path.isabs(folder):
        _log_hub_name(os.fspath(folder))
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path: str | None = cached_file(folder, name, **options, **optional)
    return path


@cache
def _log_hub_name(name: str) -> None:
    """Log, once for a name, that the hub is asked for it: without a network that takes about a minute."""
    logger.info("%s: there is no such folder, so it is looked up on the hub", name)


def hub_digest(name: str, file: str, revision: str) -> str | None:
    """Return the SHA-256 of a large file of a hub repository, without loading it; None if it cannot be asked for."""
    try:
        tag: str | None = get_hf_file_metadata(hf_hub_url(name, file, revision=revision)).etag
    except Exception:  # offline, no such file, no access: the client's errors have no common root
        return None
    return tag if tag is not None and len(tag) == 64 else None


def load_tokenizer(folder: str | os.PathLike[str], encoder: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder or hub name.

    Args:
        folder: or a hub name.
        encoder: the configuration of the encoder that reads its tokens; None = they are not compared.

    Raises:
        InvalidInput: there is none, or it has tokens that the encoder does not know.
    """
    from offramp.model.adapters import adapter_settings  # which imports this module

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
