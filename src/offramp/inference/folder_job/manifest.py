"""What a folder job has done so far: a file beside the answers, from which it resumes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from offramp.errors import InvalidInput, one_line
from offramp.types.file_format import newer_format
from offramp.types.whole_file import whole_file

MANIFEST = ".manifest.json"
FORMAT = 1
RARELY = 20
"""A manifest is written at most so often that it takes the 20th part of the time."""

State = Literal["waiting", "unfinished", "done", "failed"]


@dataclass
class FileRecord:
    """What is known of a file and of its answers.

    Attributes:
        output: the path of the answers in the output folder.
        state: "done" where all rows have their lines; "failed" where the file cannot be read to its end.
        input_sha256: of the file that was read; "" = it was not read.
        output_sha256: of the answers; "" = they are not complete.
        rows: with lines.
        errors: rows of these without an answer.
        exit_layers: rows by the layer after which they left.
        error: why it failed.
        finished: when it was done or had failed, in UTC.
        offramp: the version that answered it.
    """

    output: str
    state: State = "waiting"
    input_sha256: str = ""
    output_sha256: str = ""
    rows: int = 0
    errors: int = 0
    exit_layers: dict[str, int] = field(default_factory=dict)
    error: str = ""
    finished: str = ""
    offramp: str = ""


class Manifest:
    """The record of a job.

    Attributes:
        job: what the answers depend on besides the texts: model, engine, operating point, options.
        files: by their paths in the input folder.
        gone: files of earlier runs that are not in the input folder any more; their answers stay.
    """

    def __init__(
        self, folder: Path, job: Mapping[str, Any], files: Mapping[str, FileRecord], gone: Mapping[str, FileRecord]
    ) -> None:
        self.job, self.files, self.gone = dict(job), dict(files), dict(gone)
        self._path = folder / MANIFEST
        self._next = 0.0

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest of a folder; None where there is none.

        Raises:
            InvalidInput: it cannot be read.
        """
        path = folder / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] > FORMAT:
                raise newer_format(path, data["format"], FORMAT)
            files, gone = ({name: _record(record) for name, record in data[key].items()} for key in ("files", "gone"))
            return cls(folder, data["job"], files, gone)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"{path}: no manifest of a job ({one_line(error)}); choose another folder") from None

    def totals(self) -> dict[str, Any]:
        """Return the sums over all files, for people and machines."""
        records = self.files.values()
        layers: dict[int, int] = {}
        for record in records:
            for layer, rows in record.exit_layers.items():
                layers[int(layer)] = layers.get(int(layer), 0) + rows
        answered = sum(layers.values())
        return {
            "rows": sum(record.rows for record in records),
            "errors": sum(record.errors for record in records),
            "exit_layers": {str(layer): layers[layer] for layer in sorted(layers)},
            "mean_exit_layer": sum(layer * rows for layer, rows in layers.items()) / answered if answered else None,
            "files_done": sum(record.state == "done" for record in records),
            "files_failed": sum(record.state == "failed" for record in records),
        }

    def save(self, now: bool = False) -> None:
        """Write the file; not `now`, only if enough time has passed since it was written.

        What a kill takes from it is done again.

        Raises:
            InvalidInput: it cannot be written.
        """
        begin = time.monotonic()
        if not now and begin < self._next:
            return
        records = {
            key: {name: asdict(record) for name, record in some.items()}
            for key, some in (("files", self.files), ("gone", self.gone))
        }
        data = {"format": FORMAT, "job": self.job, **self.totals(), **records}
        with refuse_full_disk(self._path), whole_file(self._path) as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        end = time.monotonic()
        self._next = end + RARELY * (end - begin)


@contextmanager
def refuse_full_disk(path: Path) -> Iterator[None]:
    """Say which file of a job cannot be written.

    Raises:
        InvalidInput: in place of an error of the system.
    """
    try:
        yield
    except OSError as error:
        more = "what is there stays, and the same command goes on from it"
        raise InvalidInput(f"{path}: cannot be written: {error.strerror or one_line(error)}; {more}") from None


def _record(data: Mapping[str, Any]) -> FileRecord:
    """Return a record of plain data.

    Raises:
        TypeError, ValueError: a field is missing, unknown or of another type.
    """
    record = FileRecord(**data)
    for item in fields(record):
        kind = {"int": int, "dict[str, int]": dict}.get(str(item.type), str)
        if type(getattr(record, item.name)) is not kind:
            raise TypeError(f'"{item.name}" is {getattr(record, item.name)!r}')
    if not all(type(rows) is int and int(layer) >= 0 for layer, rows in record.exit_layers.items()):
        raise ValueError(f'"exit_layers" is {record.exit_layers!r}')
    return record
