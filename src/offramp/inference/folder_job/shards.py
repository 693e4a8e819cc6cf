"""The files of a folder, and the names of their answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from offramp.data.records import Reading
from offramp.errors import DataError, InvalidInput
from offramp.types.whole_file import UNFINISHED

KINDS = ("csv", "tsv", "jsonl", "parquet")
"""Kinds of files that are read from a folder; each may be packed by gzip."""
LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems in use."""

log = logging.getLogger("offramp")


@dataclass(frozen=True)
class Shard:
    """A file of rows.

    Attributes:
        name: its path in the input folder, with "/".
        path: where it is read.
        output: the path of its answers in the output folder, with "/".
    """

    name: str
    path: str
    output: str


def find_shards(source: Path, output: Path, reading: Reading) -> list[Shard]:
    """Return the files of a folder and of the folders in it, by name.

    Files and folders whose names begin with a dot hold no rows. Left out are also those that begin with an underscore,
    and files of other kinds than KINDS, unless `reading` says which format the files have; both are counted in the log.

    Args:
        source: the input folder.
        output: the output folder, which may be missing.
        reading: how the files are read.

    Raises:
        InvalidInput: no folder, or one that cannot be listed, or one folder is in the other.
        DataError: no files, two whose answers would have one name, or one whose answers' name would be too long.
    """
    if not source.is_dir():
        raise InvalidInput(f"{source}: no such folder; --input takes a folder of {', '.join(KINDS)} files")
    inner, outer = output.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InvalidInput(f"{output}: the answers need a folder of their own, apart from the input {source}")
    candidates = _without_marked(source, sorted(_names(source, output)))
    names = [name for name in candidates if reading.format is not None or _kind(name) in KINDS]
    if not names:
        others = ", ".join(candidates[:3]) or "nothing"
        raise DataError(f"{source}: no {', '.join(KINDS)} files, packed by gzip or not; it holds {others}")
    if len(names) < len(candidates):
        first = next(name for name in candidates if _kind(name) not in KINDS)
        log.info("%s: left out, as files of other kinds: %d, such as %s", source, len(candidates) - len(names), first)
    shards: dict[str, Shard] = {}
    for name in names:
        shard = Shard(name, str(source / name), _output_of(name))
        if len(os.fsencode(UNFINISHED + PurePosixPath(shard.output).name)) > LONGEST_NAME:
            raise DataError(f"{shard.path}: a name too long for its answers, {shard.output}; give it a shorter one")
        other = shards.setdefault(shard.output, shard)
        if other is not shard:
            raise DataError(f"{source}: the answers to {other.name} and to {name} would both be {shard.output}")
    return list(shards.values())


def _without_marked(source: Path, names: Sequence[str]) -> list[str]:
    """Return the names in which nothing begins with an underscore, as `_SUCCESS`; log how many files of rows do."""
    marked = [name for name in names if any(part.startswith("_") for part in name.split("/"))]
    if rows := [name for name in marked if _kind(name) in KINDS]:
        log.info("%s: left out, as their names begin with an underscore: %d, such as %s", source, len(rows), rows[0])
    return sorted(set(names) - set(marked))


def _names(source: Path, output: Path) -> Iterator[str]:
    """Yield the paths of the files in a folder whose names begin with no dot; links to folders are followed once."""

    def refuse(error: OSError) -> None:
        raise InvalidInput(f"{error.filename}: cannot be listed: {error.strerror}")

    visited = {os.path.realpath(output)}  # a link may lead there
    for folder, folders, files in os.walk(source, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real in visited:
            continue
        visited.add(real)
        inside = Path(folder).relative_to(source)
        yield from ((inside / name).as_posix() for name in files if not name.startswith("."))


def _kind(name: str) -> str:
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix[1:]


def _output_of(name: str) -> str:
    path = PurePosixPath(name[:-3] if name.lower().endswith(".gz") else name)
    return str(path.with_name(f"{path.stem}.jsonl"))
