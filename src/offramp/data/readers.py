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

from offramp.data.records import AS_NAMED, Reading, Record, Source
from offramp.errors import DataError

SAMPLE = "helpdesk"
SPLITS = ("train", "validation", "test")


def open_source(source: str, split: str, reading: Reading = AS_NAMED) -> Source:
    """Open any kind of source; "NAME:SPLIT" overrules `split`.

    Raises:
        DataError: there is no such source, or it cannot be read; from a file, possibly after some records.
    """
    name, _, named_split = source.partition(":")
    if source == "-":
        return Source(name_of("-"), _standard_input())
    if Path(source).is_dir():
        return _hub(source, source, split)
    if Path(source).exists() or _suffix(source) in READERS:
        return Source(source, _file(source), _names_beside(source))
    if name == SAMPLE:
        return Source(source, _sample(named_split or split))
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise DataError(f"{source}: no such file or folder")
    return _hub(source, name, named_split or split)


def _names_beside(source: str) -> dict[str, tuple[str, ...]]:
    """Return the class names that `labels.json` beside a file lists in the order of their numbers."""
    path = Path(source).with_name("labels.json")
    if not path.is_file() or path.samefile(source):
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return {"": tuple(names)} if isinstance(names, list) and all(isinstance(name, str) for name in names) else {}


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


def _csv_rows(source: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, with the line on which each starts."""
    reader = csv.reader(_file_lines(source), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source}, line {line}: not {_suffix(source)[1:]}: {_one_line(error)}") from error


def _csv(source: str, delimiter: str) -> Iterator[Record]:
    rows = _csv_rows(source, delimiter)
    line, cells = next(rows, (1, []))
    header = [cell.strip() for cell in cells]
    for name in header:
        if header.count(name) > 1:
            raise DataError(f'{source}, line {line}: two columns are named "{name}"')
    for line, cells in rows:
        location = f"{source}, line {line}"
        if len(cells) != len(header):
            raise DataError(f"{location}: {len(cells)} fields, where the header has {len(header)}")
        yield Record(location, line, dict(zip(header, cells, strict=True)))


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
        yield Record(f"{name}, line {number}", number, record)


def _text_lines(name: str, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        yield Record(f"{name}, line {number}", number, {"text": line.rstrip("\r\n")})


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
                yield Record(f"{source}, row {number}", number, record)
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


def _hub(source: str, name: str, split: str) -> Source:
    """Open a Hugging Face data set, memory-mapped."""
    data = _load(source, name, split)
    rows = enumerate(data, start=1)
    records = (Record(f"{source}, row {number}", number, values) for number, values in rows)
    return Source(source, records, {name: names for name, names in map(_names_of, data.features.items()) if names})


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


def _names_of(column: tuple[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return a column with the names of its classes, or of the classes in its lists; () where it has none."""
    name, feature = column
    feature = getattr(feature, "feature", feature)  # List; Sequence before datasets 4
    return name, tuple(getattr(feature, "names", None) or ())
