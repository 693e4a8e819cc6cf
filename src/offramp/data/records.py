"""Records, sources, and how to read them: the types that all readers share."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offramp.errors import DataError, InvalidInput

FORMATS = ("csv", "tsv", "jsonl", "json", "txt", "parquet")
DELIMITERS = {"tab": "\t", "\\t": "\t"}  # words that stand for a delimiter


@dataclass(frozen=True)
class Reading:
    r"""How to read a file; None is guessed from its name and its first lines.

    Attributes:
        format: one of FORMATS.
        delimiter: what separates the cells of csv and tsv, one character; "tab" and "\t" stand for a tab.
        encoding: such as "utf-8", "latin-1" or "utf-16".

    Raises:
        InvalidInput: no such format or encoding, or a delimiter of several characters.
    """

    format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise InvalidInput(f"unknown format {self.format!r}; expected one of {', '.join(FORMATS)}")
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", DELIMITERS.get(self.delimiter, self.delimiter))
            if len(str(self.delimiter)) != 1 or self.delimiter in '"\r\n':
                raise InvalidInput(f"a delimiter is one character, such as , or ; or tab, got {self.delimiter!r}")
        if self.encoding is not None:
            try:
                codec = codecs.lookup(self.encoding)
                text = codec._is_text_encoding and codec.incrementaldecoder is not None
            except (LookupError, ValueError):
                text = False
            if not text:
                raise InvalidInput(f"unknown encoding {self.encoding!r}; such as utf-8, latin-1, cp1252 or utf-16")


AS_NAMED = Reading()


class NoRows(DataError):
    """A source that can be read and holds no rows."""


def by_name(header: Sequence[str]) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Return what makes values of cells: nameless columns are left out, names of several columns are unusable."""
    counts = Counter(header)
    if "" not in counts and len(counts) == len(header):
        return lambda cells: dict(zip(header, cells, strict=True))
    once = [(name, index) for index, name in enumerate(header) if name and counts[name] == 1]
    several = {
        name: Unusable(f'{count} columns are named "{name}"', column=True)
        for name, count in counts.items()
        if name and count > 1
    }
    return lambda cells: {name: cells[index] for name, index in once} | several


@dataclass(frozen=True)
class Unusable:
    """Stands for a value that a record has and that cannot be used.

    Attributes:
        reason: in words.
        column: the whole column is like that, as where several have one name.
    """

    reason: str
    column: bool = False


@dataclass(frozen=True)
class Record:
    """One record of a source, or what stands in its place if it cannot be read.

    Attributes:
        location: such as "reviews.csv, line 12".
        line: the number in `location`: of a line, a row or an element, from 1.
        values: the value of every column; None where the record cannot be read.
        error: why it cannot be read, without the location; None where it can.
        broken: the source breaks off here; what follows is not read.
    """

    location: str
    line: int
    values: dict[str, Any] | None
    error: str | None = None
    broken: bool = False


@dataclass(frozen=True)
class Source:
    """A stream of records, read once.

    Attributes:
        name: the source in messages.
        records: in the order of the source. A source that breaks off ends with a record that has an error.
        class_names: for a column, the names of its classes in the order of their numbers, where the source itself
            names them; the key "" stands for whichever column holds the numbers.
    """

    name: str
    records: Iterator[Record]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
