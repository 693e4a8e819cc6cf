"""Answer all files of a folder: `offramp predict --input DIR --output DIR`.

find the files -> read blocks of rows -> answer them (here, or on a cluster) -> write lines in order, and the manifest.

A job that was stopped goes on where it was: a file whose content and whose answers are those of the manifest is not
read again, and of an unfinished one the rows that have lines are not answered again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offramp.data.columns import GUESSED, Columns
from offramp.data.records import AS_NAMED, Reading
from offramp.errors import DataError, InvalidInput
from offramp.inference.folder_job.answered import AnsweredBlock, answer_blocks
from offramp.inference.folder_job.blocks import FileRead, choose_columns_of, read_blocks
from offramp.inference.folder_job.manifest import MANIFEST, FileRecord, Manifest
from offramp.inference.folder_job.shards import Shard, files_of_other_kinds, find_shards
from offramp.inference.folder_job.writer import AnswerWriter, is_whole, unfinished_path, whole_lines
from offramp.inference.predictor import Predictor
from offramp.types.whole_file import alone_in

log = logging.getLogger("offramp")

Answering = Callable[[Sequence[FileRead]], Generator[AnsweredBlock, None, None]]
"""Reads files and returns their answers, file by file and in the order of the rows."""


@dataclass(frozen=True)
class FolderJob:
    """A folder to be answered.

    Attributes:
        source: the input folder.
        output: the folder of the answers, which is made.
        columns: of the texts.
        reading: how the files are read.
        strict: stop at the first row that has no answer.
    """

    source: Path
    output: Path
    columns: Columns = GUESSED
    reading: Reading = AS_NAMED
    strict: bool = False


def run_job(job: FolderJob, identity: Mapping[str, Any], answer: Answering) -> dict[str, Any]:
    """Answer all files of a folder, and return the manifest's totals with the number of files that were done before.

    Args:
        job: the folder.
        identity: what the answers depend on besides the texts (see `offramp.inference.folder_job.identity`).
        answer: answers files.

    Raises:
        InvalidInput: no such folder, an output that cannot be written, another process that writes there.
        DataError: no files; after all others are answered, files that cannot be read; strict, a row without an answer.
    """
    shards = find_shards(job.source, job.output, job.reading)
    if job.reading.format is None and (others := files_of_other_kinds(job.source)):
        log.info("%s: left out, as files of other kinds: %d, such as %s", job.source, len(others), others[0])
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{job.output}: cannot be made a folder: {error.strerror}") from None
    job = replace(job, columns=choose_columns_of(shards, job.columns, job.reading))
    with alone_in(job.output):
        manifest = _manifest(job, identity, shards)
        reads = [_file_read(job, shard, manifest.files[shard.name]) for shard in shards]
        manifest.save(now=True)
        writer = AnswerWriter(job.output, reads, manifest)
        try:
            _write(job, writer, answer(reads))
        finally:
            writer.close()
            manifest.save(now=True)
    failed = [record.error for record in manifest.files.values() if record.state == "failed"]
    if failed:
        raise DataError(f"{len(failed):,} of {len(shards):,} files cannot be read to the end; the first: {failed[0]}")
    return {**manifest.totals(), "files_done_before": writer.unchanged, "first_error": writer.tally.first}


def answer_here(predictor: Predictor, batch_size: int | None, top_k: int | None) -> Answering:
    """Return what answers files in this process."""

    def answer(reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
        blocks = (block for number, read in enumerate(reads) for block in read_blocks(number, read))
        return answer_blocks(predictor, blocks, batch_size, top_k)

    return answer


def _manifest(job: FolderJob, identity: Mapping[str, Any], shards: Sequence[Shard]) -> Manifest:
    """Return the manifest of a job: with what an earlier run has done, if its answers would be the same.

    Raises:
        InvalidInput: answers would replace a file that no manifest knows.
    """
    before = Manifest.read(job.output)
    known = {} if before is None else before.files
    ours = {record.output for record in known.values()}
    for shard in shards:
        if shard.output not in ours and (job.output / shard.output).exists():
            path = job.output / shard.output
            raise InvalidInput(f"{path}: it would be replaced, and {MANIFEST} does not know it; choose another folder")
    same = before is not None and before.job == {**identity, **_options(job)}
    if known and not same:
        log.info("%s: model, engine, operating point or options differ from the last run; all files anew", job.output)
    names = {shard.name for shard in shards}
    if gone := [record.output for name, record in known.items() if name not in names]:
        log.warning("%s: answers that stay though their input is gone: %d, such as %s", job.output, len(gone), gone[0])
    records = {
        shard.name: known[shard.name] if same and shard.name in known else FileRecord(shard.output) for shard in shards
    }
    return Manifest(job.output, {**identity, **_options(job)}, records)


def _options(job: FolderJob) -> dict[str, Any]:
    reading = job.reading
    return {
        "text_column": job.columns.text,
        "pair_column": job.columns.pair,
        "format": reading.format,
        "delimiter": reading.delimiter,
        "encoding": reading.encoding,
    }


def _file_read(job: FolderJob, shard: Shard, record: FileRecord) -> FileRead:
    """Return how a file is read, with what an earlier run has answered of it."""
    read = FileRead(shard, columns=job.columns, reading=job.reading)
    if is_whole(job.output, record):
        return replace(read, digest=record.input_sha256, rows=record.rows, finished=True)
    rows = whole_lines(unfinished_path(job.output, shard.output)) if record.state == "unfinished" else 0
    return replace(read, digest=record.input_sha256 if rows else "", rows=rows)


def _write(job: FolderJob, writer: AnswerWriter, answered: Generator[AnsweredBlock, None, None]) -> None:
    """Write blocks as they come, with a bar that counts their rows."""
    from tqdm import tqdm

    with tqdm(desc="predict", unit="text", disable=None) as bar, closing(answered):
        for block in answered:
            writer.write(block)
            bar.update(block.tally.rows)
            if job.strict and writer.tally.errors:
                raise DataError(writer.tally.first)
