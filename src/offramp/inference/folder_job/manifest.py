"""What a folder job has done so far: a file beside the answers, from which it resumes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
    """

    output: str
    state: State = "waiting"
    input_sha256: str = ""
    output_sha256: str = ""
    rows: int = 0
    errors: int = 0
    exit_layers: dict[str, int] = field(default_factory=dict)
    error: str = ""


class Manifest:
    """The record of a job.

    Attributes:
        job: what the answers depend on besides the texts: model, engine, operating point, options.
        files: by their paths in the input folder.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], files: Mapping[str, FileRecord]) -> None:
        self.job, self.files = dict(job), dict(files)
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
            return cls(folder, data["job"], {name: FileRecord(**record) for name, record in data["files"].items()})
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
        """
        begin = time.monotonic()
        if not now and begin < self._next:
            return
        files = {name: asdict(record) for name, record in self.files.items()}
        data = {"format": FORMAT, "job": self.job, **self.totals(), "files": files}
        with whole_file(self._path) as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        end = time.monotonic()
        self._next = end + RARELY * (end - begin)
