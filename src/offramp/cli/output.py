"""Output files of commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from offramp.errors import InvalidInput
from offramp.types.whole_file import whole_file


@contextmanager
def finished_only(path: Path | None) -> Iterator[IO[str]]:
    """Open a file that replaces the file of its name once it is complete (see `whole_file`); None = standard output."""
    if path is None:
        if sys.stdout is None:
            raise InvalidInput("standard output is closed; -o names a file")
        yield sys.stdout
        return
    with whole_file(path) as file:
        yield file
