"""A file's rows in blocks: read once, in order, with the digest of the file."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from offramp.data.columns import GUESSED, Columns
from offramp.data.examples import read_rows
from offramp.data.readers import open_source
from offramp.data.records import AS_NAMED, NoRows, Reading
from offramp.data.rows import Row, Text, closing_source, with_columns
from offramp.errors import DataError, one_line
from offramp.inference.folder_job.shards import Shard
from offramp.inference.pipeline import Fault

BLOCK_ROWS = 2048
"""Rows of a block: several windows of texts sorted by length, and half a second to seconds of work for one core."""
BLOCK_CHARACTERS = 1 << 22
"""Characters of a block, about; what bounds it where texts are long."""


@dataclass(frozen=True)
class FileRead:
    """How a file is read.

    Attributes:
        shard: the file.
        digest: of the file when it was read before; "" = it was not.
        rows: that were answered then; they are not answered again if the file is the same.
        columns: see `offramp.data.examples.read_rows`.
        reading: likewise.
    """

    shard: Shard
    digest: str = ""
    rows: int = 0
    columns: Columns = GUESSED
    reading: Reading = AS_NAMED


@dataclass(frozen=True)
class RowBlock:
    """Rows of a file that follow one another.

    Attributes:
        file: the number of the file in its job.
        digest: the file's SHA-256.
        start: rows of the file before these.
        items: the texts, or why a row has none.
        lines: the number of each row in its file, for messages.
        where: what comes before that number in messages, such as "reviews.csv, line ".
        last: nothing follows; `items` may be empty.
        error: why the file was not read to its end.
    """

    file: int
    digest: str
    start: int
    items: list[Text | Fault] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    where: str = ""
    last: bool = False
    error: str = ""


def choose_columns_of(shards: Sequence[Shard], columns: Columns, reading: Reading) -> Columns:
    """Return the columns that all files of a folder are read from: guessed once, from the first file that has rows."""
    for shard in shards:
        try:
            source = open_source(shard.path, "test", reading)
            with closing_source(source):
                chosen, _ = with_columns(source, columns, labelled=False, lenient=True)
        except (DataError, OSError):  # its own rows will say so
            continue
        if chosen.text is not None or chosen.pair is not None:
            return replace(columns, text=chosen.text, pair=chosen.pair, guessed=columns.text is None)
    return columns


def read_blocks(number: int, read: FileRead) -> Iterator[RowBlock]:
    """Yield the rows of a file that are not answered yet, and an empty block that ends it.

    Args:
        number: of the file in its job.
        read: the file.
    """
    path = read.shard.path
    try:
        digest = file_digest(path)
    except OSError as error:
        yield RowBlock(number, "", 0, last=True, error=f"{path}: cannot be read: {one_line(error)}")
        return
    end = RowBlock(number, digest, read.rows if digest == read.digest else 0, last=True)
    try:
        rows = read_rows(path, read.columns, split="test", labelled=False, reading=read.reading, lenient=True)
        rows = islice(rows, end.start, None)
        for some in _blocks(rows):
            end = replace(end, start=end.start + len(some), error=_broken(some[-1]))
            yield _block(replace(end, start=end.start - len(some), last=False, error=""), some)
    except NoRows:
        pass
    except (DataError, OSError) as error:
        end = replace(end, error=one_line(error))
    yield end


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which could be waited for in vain.
    """
    digest = hashlib.sha256()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "no regular file", path)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield rows in blocks; an error comes after the rows before it."""
    some: list[Row] = []
    characters = 0
    try:
        for row in rows:
            some.append(row)
            characters += len(row.text) if isinstance(row.text, str) else sum(map(len, row.text))
            if len(some) == BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
                yield some
                some, characters = [], 0
    except (DataError, OSError):
        if some:
            yield some
        raise
    if some:
        yield some


def _block(empty: RowBlock, rows: list[Row]) -> RowBlock:
    items = [row.text if row.error is None else Fault(row.error) for row in rows]
    where = rows[0].location.removesuffix(str(rows[0].line))
    return replace(empty, items=items, lines=[row.line for row in rows], where=where)


def _broken(row: Row) -> str:
    return f"{row.location}: {row.error}" if row.broken else ""
