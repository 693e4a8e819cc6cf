"""The format of config.json, and the refusal of a file whose format is too new. Needs no torch."""

from __future__ import annotations

import os

from offramp.errors import InvalidInput

CONFIG_FORMAT = 2
"""The newest format of a model folder's config.json that this version reads.

In format 1 the head "attention" has one tanh, in format 2 both of FastBERT's; nothing else differs, so that models with
other heads are written in format 1.
"""


def newer_format(file: str | os.PathLike[str], number: object, newest: int) -> InvalidInput:
    """Return the error for a file of format `number`, where `newest` is the newest that this version reads."""
    return InvalidInput(
        f"{os.fspath(file)}: format {number!r}; this version of offramp reads up to {newest}; a newer offramp reads it"
    )
