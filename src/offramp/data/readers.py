"""Sources by name: csv, tsv, jsonl, json, txt, parquet, Hugging Face data sets and the built-in sample.

Every kind is read once, as a stream of records with their locations. The kind of a file is what the user says, or what
its name says, or else what its first lines look like, which is logged. Heavy imports wait until they are needed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import resources
from itertools import chain
from pathlib import Path

from offramp.data.delimited import delimited_records
from offramp.data.json_records import json_array, json_lines, json_records
from offramp.data.label_names import names_in_order
from offramp.data.lines import UNREADABLE, Lines, open_bytes
from offramp.data.records import AS_NAMED, FORMATS, Reading, Record, Source
from offramp.errors import DataError, one_line

SAMPLE = "helpdesk"
SPLITS = ("train", "validation", "test")
OBJECT = re.compile(r'\s*\{\s*("(\\.|[^"\\])*"\s*:|\}?\s*$)')  # the start of a JSON object in a line
ARRAY = re.compile(r"\s*\[\s*(\{\s*(\"|\}|$)|$)")  # of an array of objects

log = logging.getLogger("offramp")


def open_source(source: str, split: str, reading: Reading = AS_NAMED) -> Source:
    """Open any kind of source; "NAME:SPLIT" overrules `split`.

    Args:
        source: a file or a pipe, "-" for standard input, a folder, "helpdesk", or the name of a data set.
        split: train, validation or test, where the source holds several and does not name one itself.
        reading: how to read a file, or the csv files of a folder; other sources need none.

    Raises:
        DataError: there is no such source, or it cannot be read; from a file, possibly after some records.
    """
    if not source.strip():
        raise DataError("the name of the source is blank")
    name, _, named_split = source.partition(":")
    path = Path(source)
    if path.is_dir():
        return _data_set(source, source, split, reading)
    if source == "-" or path.exists() or _suffix(source) in FORMATS:
        return _file(source, reading)
    if Path(name).is_file():
        raise DataError(f"{source}: {name} is a file, which has no splits")
    if name == SAMPLE:
        return Source(source, _sample(named_split or split))
    if reading.format is not None or (name.startswith(("/", ".", "~")) and not Path(name).is_dir()):
        raise DataError(f"{source}: no such file or folder")
    return _data_set(source, name, named_split or split, reading)


def name_of(source: str) -> str:
    """Return the name of a source in messages."""
    return "standard input" if source == "-" else source


def is_read_once(source: str) -> bool:
    """Return whether a source is standard input or a pipe."""
    return source == "-" or (Path(source).exists() and not Path(source).is_dir() and not Path(source).is_file())


def _data_set(source: str, name: str, split: str, reading: Reading) -> Source:
    from offramp.data.hub import csv_files, open_data_set

    if Path(name).is_dir() and (files := csv_files(name, split)):
        return Source(source, _rows_of_files(source, files, reading), _listed_names(Path(name)))
    opened = open_data_set(source, name, split)
    return Source(opened.name, opened.records, _listed_names(Path(name)) | dict(opened.class_names))


def _rows_of_files(source: str, files: Sequence[str], reading: Reading) -> Iterator[Record]:
    """Yield the records of several files, numbered through."""
    opened = (_file_records(file, reading.format or _suffix(file), reading) for file in files)
    for number, record in enumerate(chain.from_iterable(opened), start=1):
        error = None if record.error is None else f"{record.error} ({record.location})"
        yield Record(f"{source}, row {number}", number, record.values, error, record.broken)


def _suffix(source: str) -> str:
    return Path(source.lower().removesuffix(".gz")).suffix[1:]


def _file(source: str, reading: Reading) -> Source:
    if source != "-" and not Path(source).exists():
        raise DataError(f"{source}: no such file")
    kind = reading.format or (_suffix(source) if _suffix(source) in FORMATS else None)
    if reading.format is None and reading.delimiter is not None and kind in (None, "txt"):
        kind = "csv"
    names = {} if source == "-" else _listed_names(Path(source).parent)
    if kind == "parquet":
        opened = _parquet(source)
        return Source(opened.name, opened.records, names | dict(opened.class_names))
    return Source(name_of(source), _file_records(source, kind, reading), names)


def _parquet(source: str) -> Source:
    from offramp.data.parquet import open_parquet

    return open_parquet(source, name_of(source))


def _listed_names(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the class names that `labels.json` in a folder names by number, for any column."""
    try:
        names = names_in_order(json.loads((folder / "labels.json").read_text(encoding="utf-8-sig")))
    except (OSError, ValueError):
        return {}
    return {"": names} if names else {}


def _file_records(source: str, kind: str | None, reading: Reading) -> Iterator[Record]:
    """Yield the records of a file that is text; one that breaks off ends with a record that says so."""
    name = name_of(source)
    try:
        with open_bytes(source) as file, closing(Lines(name, file, reading.encoding)) as lines:
            yield from _text_records(lines, kind or _guess(lines), reading.delimiter)
            if lines.broken:
                yield Record(f"{name}, line {lines.number + 1}", lines.number + 1, None, lines.broken, broken=True)
    except UNREADABLE as error:
        raise DataError(f"{name}: cannot be read: {one_line(error)}") from error


def _text_records(lines: Lines, kind: str, delimiter: str | None) -> Iterator[Record]:
    if kind in ("csv", "tsv"):
        return delimited_records(lines, delimiter, tsv=kind == "tsv")
    return {"jsonl": json_lines, "json": json_records, "array": json_array, "txt": _text_lines}[kind](lines)


def _guess(lines: Lines) -> str:
    """Return what the first lines look like, and log it: an array of objects, an object a line, or texts."""
    head = lines.head()
    first = head[-1] if head else ""
    if "\0" in first:
        raise DataError(f"{lines.name}: not text, and --format does not say what it is")
    kinds = {"jsonl": OBJECT, "array": ARRAY}
    kind = next((kind for kind, start in kinds.items() if start.match(first)), "txt")
    words = {"jsonl": "an object a line", "array": "a JSON array", "txt": "text lines"}[kind]
    if first:
        log.info("%s: read as %s; --format says otherwise", lines.name, words)
    return kind


def _text_lines(lines: Lines) -> Iterator[Record]:
    """Yield a text a line, blank ones too."""
    for line in lines:
        error = lines.undecoded(line)
        values = {"text": line.removesuffix("\n").removesuffix("\r")} if error is None else None
        yield Record(f"{lines.name}, line {lines.number}", lines.number, values, error)


def _sample(split: str) -> Iterator[Record]:
    if split not in SPLITS:
        raise DataError(f"{SAMPLE}: no split {split!r}; expected one of {', '.join(SPLITS)}")
    name, path = f"{SAMPLE}:{split}", resources.files("offramp") / "data" / "sample" / f"{split}.jsonl"
    with path.open("rb") as file, closing(Lines(name, file)) as lines:  # type: ignore[arg-type]
        yield from json_lines(lines)
