"""The files of the answers: written in order under hidden names, and named once they are complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, final

from offramp.errors import OfframpError
from offramp.inference.folder_job.answered import AnsweredBlock, Tally
from offramp.inference.folder_job.blocks import FileRead, file_digest
from offramp.inference.folder_job.manifest import FileRecord, Manifest
from offramp.types.whole_file import UNFINISHED, give_name


@final
class AnswerWriter:
    """Writes answered blocks, which come file by file and within a file in order.

    Attributes:
        tally: of the rows that this run has answered.
        unchanged: files that were finished before, and are the same.
    """

    def __init__(self, folder: Path, reads: Sequence[FileRead], manifest: Manifest) -> None:
        self.tally, self.unchanged = Tally(), 0
        self._folder, self._reads, self._manifest = folder, reads, manifest
        self._file: BinaryIO | None = None
        self._next = 0  # the number of the file that is open, or comes
        self._hash = hashlib.sha256()

    def write(self, block: AnsweredBlock) -> None:
        """Write a block; with the last one of a file its answers get their name.

        Raises:
            OfframpError: the block is not the next one.
        """
        read = self._reads[block.file]
        record = self._manifest.files[read.shard.name]
        if block.file != self._next:
            raise OfframpError(f"{read.shard.name}: came before {self._reads[self._next].shard.name} was complete")
        if block.unchanged:
            self.unchanged += 1
            self._next += 1
            return
        if self._file is None:
            self._begin(read, record, block)
        if block.start != record.rows:
            raise OfframpError(f"{read.shard.name}: row {block.start + 1} came where row {record.rows + 1} should be")
        self._append(record, block)
        if block.last:
            self._end(read, record, block)

    def close(self) -> None:
        """Close an unfinished file, from which the next run goes on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, read: FileRead, record: FileRecord, block: AnsweredBlock) -> None:
        """Open the file of the answers, with the lines of an earlier run where these are of the same rows."""
        replaced = record.input_sha256 not in ("", block.digest)
        record.state, record.input_sha256, record.output_sha256, record.error = "unfinished", block.digest, "", ""
        self._manifest.save(now=replaced)  # lines of one content must not pass for those of another
        path = unfinished_path(self._folder, read.shard.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if block.start else "wb")
        tally, self._hash = Tally(), hashlib.sha256()
        for _ in range(block.start):
            line = self._file.readline()
            tally.add(json.loads(line))
            self._hash.update(line)
        self._file.truncate(self._file.tell())
        _count(record, tally)

    def _append(self, record: FileRecord, block: AnsweredBlock) -> None:
        assert self._file is not None
        data = block.text.encode()
        self._file.write(data)
        self._file.flush()
        self._hash.update(data)
        self.tally.update(block.tally)
        total = Tally(record.rows, record.errors)
        total.exit_layers.update({int(layer): rows for layer, rows in record.exit_layers.items()})
        total.update(block.tally)
        _count(record, total)

    def _end(self, read: FileRead, record: FileRecord, block: AnsweredBlock) -> None:
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
        self._next += 1
        self._manifest.save()


def unfinished_path(folder: Path, output: str) -> Path:
    """Return the path of answers that are not complete."""
    path = folder / output
    return path.with_name(UNFINISHED + path.name)


def whole_lines(path: Path) -> int:
    """Return how many whole lines of answers a file begins with; 0 where there is none."""
    count = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not isinstance(json.loads(line), dict):
                    break
                count += 1
    except (OSError, ValueError):  # what a power cut leaves may be no text
        pass
    return count


def is_whole(folder: Path, record: FileRecord) -> bool:
    """Return whether the answers to a file are all there."""
    if record.state != "done":
        return False
    try:
        return file_digest(str(folder / record.output)) == record.output_sha256
    except OSError:
        return False


def _count(record: FileRecord, tally: Tally) -> None:
    record.rows, record.errors = tally.rows, tally.errors
    record.exit_layers = {str(layer): tally.exit_layers[layer] for layer in sorted(tally.exit_layers)}
