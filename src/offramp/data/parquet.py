"""Records from parquet, with the class names in its metadata."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from offramp.data.lines import UNREADABLE, open_bytes
from offramp.data.records import Record, Source, Unusable, by_name
from offramp.errors import DataError, one_line

BATCH = 1024  # rows in memory


def open_parquet(source: str, name: str) -> Source:
    """Open a parquet file; a pipe, standard input and gzip are copied first, because parquet is read from its end.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    with ExitStack() as stack:
        try:
            file = parquet.ParquetFile(_seekable(source, stack))
        except (*UNREADABLE, ValueError, pyarrow.ArrowException) as error:
            raise DataError(f"{name}: cannot be read as parquet: {one_line(error)}") from error
        return Source(name, _records(name, file, stack.pop_all()), class_names(file.schema_arrow.metadata))


def _seekable(source: str, stack: ExitStack) -> Any:
    path = Path(source)
    if source != "-" and stat.S_ISREG(path.stat().st_mode):
        with path.open("rb") as plain:
            if plain.read(2) != b"\x1f\x8b":
                return source
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    with open_bytes(source) as file:
        shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _records(name: str, file: Any, stack: ExitStack) -> Iterator[Record]:
    number = 0
    with stack, file:
        values_of = by_name(file.schema_arrow.names)
        try:
            for batch in file.iter_batches(batch_size=BATCH):
                for cells in zip(*map(_cells, batch.columns), strict=True):
                    number += 1
                    yield Record(f"{name}, row {number}", number, values_of(cells))
        except Exception as error:  # pyarrow's own, OSError, and others of damaged pages
            yield Record(
                f"{name}, row {number + 1}", number + 1, None, f"cannot be read: {one_line(error)}", broken=True
            )


def _cells(column: Any) -> list[Any]:
    """Return the cells of a column; a cell that Python cannot hold, such as a date after the year 9999, is unusable."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_cell(cell) for cell in column]


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError) as error:
        return Unusable(f"the cell cannot be read: {one_line(error)}")


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes by column, as Hugging Face data sets write them; {} where there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        named = {column: _names(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: names for column, names in named.items() if names}


def _names(feature: Any) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of the ClassLabel in a list."""
    if isinstance(feature, list):  # the old way to write a list of them
        return _names(feature[0]) if feature else ()
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names") or ()))
    return _names(feature["feature"]) if isinstance(feature, dict) and "feature" in feature else ()
