"""The files of the answers: written in order under hidden names, and named once they are complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, final

from offramp.errors import OfframpError
from offramp.inference.folder_job.answered import AnsweredBlock, Tally
from offramp.inference.folder_job.blocks import FileRead
from offramp.inference.folder_job.manifest import FileRecord, Manifest, refuse_full_disk
from offramp.types.whole_file import UNFINISHED, give_name

VERSION = version("offramp")


@final
class AnswerWriter:
    """Writes answered blocks, which come file by file and within a file in order.

    Attributes:
        tally: of the rows that this run has answered.
        files: that are complete.
    """

    def __init__(self, folder: Path, reads: Sequence[FileRead], manifest: Manifest) -> None:
        self.tally, self.files = Tally(), 0
        self._folder, self._reads, self._manifest = folder, reads, manifest
        self._file: BinaryIO | None = None
        self._file_tally, self._hash = Tally(), hashlib.sha256()  # of the file that is open

    def write(self, block: AnsweredBlock) -> None:
        """Write a block; with the last one of a file its answers get their name.

        Raises:
            InvalidInput: the disk is full, or takes no file there.
            OfframpError: the block is not the next one.
        """
        read = self._reads[block.file]
        record = self._manifest.files[read.shard.name]
        if block.file != self.files:
            raise OfframpError(f"{read.shard.name}: came before {self._reads[self.files].shard.name} was complete")
        with refuse_full_disk(self._folder / read.shard.output):
            if self._file is None:
                self._begin(read, record, block)
            if block.start != record.rows:
                row = record.rows + 1
                raise OfframpError(f"{read.shard.name}: row {block.start + 1} came where row {row} should be")
            self._append(record, block)
            if block.last:
                self._end(read, record, block)
        self._manifest.save()

    def close(self) -> None:
        """Close an unfinished file, from which the next run goes on."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk, of which `write` has told
                self._file.close()
            self._file = None

    def _begin(self, read: FileRead, record: FileRecord, block: AnsweredBlock) -> None:
        """Open the file of the answers, with the lines of an earlier run where these are of the same rows."""
        path = unfinished_path(self._folder, read.shard.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if block.start else "wb")
        self._file_tally, self._hash = Tally(), hashlib.sha256()
        for _ in range(block.start):
            line = self._file.readline()
            self._file_tally.add(json.loads(line))
            self._hash.update(line)
        self._file.truncate(self._file.tell())
        # only now: lines of one content, model or option must not pass for those of another, whenever the run is killed
        replaced = record.input_sha256 not in ("", block.digest)
        record.state, record.input_sha256 = "unfinished", block.digest
        _count(record, self._file_tally)
        self._manifest.save(now=replaced)

    def _append(self, record: FileRecord, block: AnsweredBlock) -> None:
        assert self._file is not None
        data = block.text.encode("utf-8", "backslashreplace")  # half a character in a label becomes its JSON escape
        self._file.write(data)
        self._file.flush()
        self._hash.update(data)
        self.tally.update(block.tally)
        self._file_tally.update(block.tally)
        _count(record, self._file_tally)

    def _end(self, read: FileRead, record: FileRecord, block: AnsweredBlock) -> None:
        """Give the answers their name.

        The folder is not synchronised: after a power cut the next run finds an answer that is not there, or is not the
        manifest's, and answers the file again.
        """
        assert self._file is not None
        os.fsync(self._file.fileno())
        self.close()
        path = unfinished_path(self._folder, read.shard.output)
        if block.error and not record.rows:
            path.unlink()
        else:
            give_name(path, self._folder / read.shard.output)
            record.output_sha256 = self._hash.hexdigest()
        record.state, record.error = ("failed", block.error) if block.error else ("done", "")
        record.finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record.offramp = VERSION
        self.files += 1


def unfinished_path(folder: Path, output: str) -> Path:
    """Return the path of answers that are not complete."""
    path = folder / output
    return path.with_name(UNFINISHED + path.name)


def whole_lines(path: Path, strict: bool) -> int:
    """Return how many whole lines of answers a file begins with; 0 where there is none.

    Args:
        path: of the file.
        strict: a row without an answer does not count, nor do those that follow it.
    """
    count = 0
    with suppress(OSError, ValueError), path.open("rb") as file:  # what a power cut leaves may be no text
        for answer in _answers(file):
            if strict and "error" in answer:
                break
            count += 1
    return count


def _answers(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the answers of a file up to the first line that is none."""
    for line in file:
        answer = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(answer, dict) or not ("error" in answer or type(answer.get("exit_layer")) is int):
            return
        yield answer


def _count(record: FileRecord, tally: Tally) -> None:
    record.rows, record.errors = tally.rows, tally.errors
    record.exit_layers = {str(layer): tally.exit_layers[layer] for layer in sorted(tally.exit_layers)}
