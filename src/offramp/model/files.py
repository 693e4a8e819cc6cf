"""Find the files of a model's folder or hub repository. Needs no torch, and for a folder no transformers."""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from typing import Any

from offramp.errors import InvalidInput, one_line

ADAPTER_FILE = "adapter_config.json"

logger = logging.getLogger(__name__)


def find_file(folder: str | os.PathLike[str], name: str, **options: Any) -> str | None:
    """Return the path of a file in a model's folder or hub repository; None if there is no such file.

    Args:
        folder: or a hub name.
        name: of the file.
        options: transformers' arguments for the repository, such as `revision`.
    """
    if os.path.isdir(folder) and not options:
        path = os.path.join(folder, name)
        return path if os.path.isfile(path) else None
    from transformers.utils import cached_file

    if not os.path.exists(folder) and not os.path.isabs(folder):
        _log_hub_name(os.fspath(folder))
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    cached: str | None = cached_file(folder, name, **options, **optional)
    return cached


@cache
def _log_hub_name(name: str) -> None:
    """Log, once for a name, that the hub is asked for it: without a network that takes about a minute."""
    logger.info("%s: there is no such folder, so it is looked up on the hub", name)


def hub_digest(name: str, file: str, revision: str) -> str | None:
    """Return the SHA-256 of a large file of a hub repository, without loading it; None if it cannot be asked for."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        tag: str | None = get_hf_file_metadata(hf_hub_url(name, file, revision=revision)).etag
    except Exception:  # offline, no such file, no access: the client's errors have no common root
        return None
    return tag if tag is not None and len(tag) == 64 else None


def adapter_settings(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the content of a folder's adapter_config.json; None where it holds no adapter of PEFT.

    Raises:
        InvalidInput: the file is no JSON, or names no base model.
    """
    try:
        path = find_file(folder, ADAPTER_FILE)
    except (OSError, ValueError):  # no such folder, no hub name: what loads the model says so
        return None
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            settings: dict[str, Any] = json.load(file)
    except ValueError as error:
        raise InvalidInput(f"{path}: no JSON ({one_line(error)})") from None
    if not settings.get("base_model_name_or_path"):
        raise InvalidInput(f"{path}: an adapter that does not name its base model (base_model_name_or_path)")
    return settings
