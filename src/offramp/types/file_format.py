"""The refusal of a file whose format is too new. Needs no torch."""

from __future__ import annotations

import os

from offramp.errors import InvalidInput


def newer_format(file: str | os.PathLike[str], number: object, newest: int) -> InvalidInput:
    """Return the error for a file of format `number`, where `newest` is the newest that this version reads."""
    return InvalidInput(
        f"{os.fspath(file)}: format {number!r}; this version of offramp reads up to {newest}; a newer offramp reads it"
    )
