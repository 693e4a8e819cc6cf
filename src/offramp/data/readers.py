"""Records from csv, tsv, jsonl, txt, parquet, Hugging Face data sets and the built-in sample.

A source is named by a string; every kind is read as a stream of records with their locations, with which
errors begin. Heavy imports wait until they are needed.
"""

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from offramp.errors import DataError

Record = tuple[str, dict[str, Any]]  # a location, such as "reviews.csv, line 12", and the value of every column

SAMPLE = "helpdesk"
SPLITS = ("train", "validation", "test")


def records(source: str, split: str) -> Iterator[Record]:
    """Stream the records of any kind of source; "NAME:SPLIT" overrules `split`.

    Raises:
        DataError: there is no such source, or it cannot be read; from a file, possibly after some records.
    """
    name, _, named_split = source.partition(":")
    if source == "-":
        return _standard_input()
    if Path(source).is_dir():
        return _hub(source, source, split)
    if Path(source).exists() or _suffix(source) in READERS:
        return _file(source)
    if name == SAMPLE:
        return _sample(named_split or split)
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise DataError(f"{source}: no such file or folder")
    return _hub(source, name, named_split or split)


def name_of(source: str) -> str:
    """Return the name of a source in messages."""
    return "standard input" if source == "-" else source


def _suffix(source: str) -> str:
    return Path(source.lower().removesuffix(".gz")).suffix


def _file(source: str) -> Iterator[Record]:
    if not Path(source).exists():
        raise DataError(f"{source}: no such file")
    if _suffix(source) not in READERS:
        raise DataError(f"{source}: unknown kind of file; expected one of {', '.join(READERS)}")
    return READERS[_suffix(source)](source)


def _file_lines(source: str) -> Iterator[str]:
    opener = gzip.open if source.lower().endswith(".gz") else open
    return _lines(source, partial(opener, source, "rb"))


def _lines(name: str, opened: Callable[[], AbstractContextManager[Iterable[bytes]]]) -> Iterator[str]:
    """Decode a file line by line, so that an error can name the line."""
    number = 0
    try:
        with opened() as file:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, line {number}: not UTF-8, which is expected ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}, line {number + 1}: cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _csv_rows(source: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not blank, with the line on which each starts."""
    reader = csv.reader(_file_lines(source), delimiter=delimiter, strict=True)
    location = f"{source}, line 1"
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield location, cells
            location = f"{source}, line {reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(f"{location}: not {_suffix(source)[1:]}: {_one_line(error)}") from error


def _csv(source: str, delimiter: str) -> Iterator[Record]:
    rows = _csv_rows(source, delimiter)
    location, cells = next(rows, ("", []))
    header = [cell.strip() for cell in cells]
    for name in header:
        if header.count(name) > 1:
            raise DataError(f'{location}: two columns are named "{name}"')
    for location, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{location}: {len(cells)} fields, where the header has {len(header)}")
        yield location, dict(zip(header, cells, strict=True))


def _json_lines(name: str, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number}: not JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number}: not a JSON object; expected one object a line")
        yield f"{name}, line {number}", record


def _text_lines(name: str, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        yield f"{name}, line {number}", {"text": line.rstrip("\r\n")}


def _standard_input() -> Iterator[Record]:
    name = name_of("-")
    lines = _lines(name, lambda: nullcontext(sys.stdin.buffer))
    first = next(lines, "")
    kind = _json_lines if first.startswith("{") else _text_lines
    return kind(name, itertools.chain([first] if first else [], lines))


def _sample(split: str) -> Iterator[Record]:
    if split not in SPLITS:
        raise DataError(f"{SAMPLE}: no split {split!r}; expected one of {', '.join(SPLITS)}")
    path = resources.files("offramp") / "data" / "sample" / f"{split}.jsonl"
    return _json_lines(f"{SAMPLE}:{split}", _lines(f"{SAMPLE}:{split}", lambda: path.open("rb")))


def _parquet(source: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, record in enumerate(rows, start=1):
                yield f"{source}, row {number}", record
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{source}: cannot be read as parquet: {_one_line(error)}") from error


READERS: dict[str, Callable[[str], Iterator[Record]]] = {
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
    ".jsonl": lambda source: _json_lines(source, _file_lines(source)),
    ".json": lambda source: _json_lines(source, _file_lines(source)),
    ".txt": lambda source: _text_lines(source, _file_lines(source)),
    ".parquet": _parquet,
}


def _hub(source: str, name: str, split: str) -> Iterator[Record]:
    """Yield the records of a Hugging Face data set, memory-mapped, with its classes by name."""
    data = _load(source, name, split)
    for number, record in enumerate(data, start=1):
        named = {column: _by_name(value, data.features[column]) for column, value in record.items()}
        yield f"{source}, row {number}", named


def _load(source: str, name: str, split: str) -> Any:
    """Load a folder, NAMESPACE/NAME or else NAME/CONFIG, or NAMESPACE/NAME/CONFIG."""
    import datasets

    head, _, last = name.rpartition("/")
    candidates = [(name, None), (head, last)]
    if not head or Path(name).is_dir():
        candidates = [(name, None)]
    elif "/" in head:
        candidates = [(head, last)]
    reasons = []
    for path, config in candidates:
        try:
            return datasets.load_dataset(path, config, split=split)
        except (FileNotFoundError, ConnectionError) as error:  # offline, the next may still be cached
            reasons.append(_one_line(error))
        except Exception as error:  # a data set can fail in any way
            reasons.append(_one_line(error))
            break
    raise DataError(f"{source}: cannot load this data set: {'; '.join(reasons)}")


def _by_name(value: Any, feature: Any) -> Any:
    """Return a class, or a list of classes, by name; -1, the label of rows whose labels are kept secret, is None."""
    from datasets import ClassLabel

    if isinstance(value, list) and hasattr(feature, "feature"):  # List; Sequence before datasets 4
        return [_by_name(item, feature.feature) for item in value]
    if not isinstance(feature, ClassLabel) or value is None:
        return value
    return feature.names[value] if value >= 0 else None
