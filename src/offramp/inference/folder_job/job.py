"""Answer all files of a folder: `offramp predict --input DIR --output DIR`.

find the files -> read blocks of rows -> answer them (here, or on a cluster) -> write lines in order, and the manifest.

A job that was stopped goes on where it was: a file whose content and whose answers are those of the manifest is not
answered again, and of an unfinished one the rows that have lines are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offramp.data.columns import GUESSED, Columns
from offramp.data.records import AS_NAMED, Reading
from offramp.errors import DataError, InvalidInput
from offramp.inference.folder_job.answered import AnsweredBlock, answer_blocks
from offramp.inference.folder_job.blocks import FileRead, choose_columns_of, file_digest, read_blocks
from offramp.inference.folder_job.manifest import MANIFEST, FileRecord, Manifest
from offramp.inference.folder_job.shards import Shard, find_shards
from offramp.inference.folder_job.writer import AnswerWriter, unfinished_path, whole_lines
from offramp.inference.predictor import Predictor
from offramp.inference.workers import cores
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
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{job.output}: cannot be made a folder: {error.strerror}") from None
    job = replace(job, columns=choose_columns_of(shards, job.columns, job.reading))
    with alone_in(job.output):
        manifest = _manifest(job, identity, shards)
        reads = _files_to_read(job, shards, manifest)
        before = len(shards) - len(reads)
        writer = AnswerWriter(job.output, reads, manifest)
        manifest.save(now=True)
        if reads:
            try:
                _write(job, writer, answer(reads), before)
            finally:
                writer.close()
                manifest.save(now=True)
    failed = [record.error for record in manifest.files.values() if record.state == "failed"]
    if failed:
        raise DataError(f"{len(failed):,} of {len(shards):,} files cannot be read to the end; the first: {failed[0]}")
    return {**manifest.totals(), "files_done_before": before, "first_error": writer.tally.first}


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
    known = {} if before is None else before.gone | before.files
    known_outputs = {record.output for record in known.values()}
    for shard in shards:
        if shard.output not in known_outputs and (job.output / shard.output).exists():
            path = job.output / shard.output
            raise InvalidInput(f"{path}: it would be replaced, and {MANIFEST} does not know it; choose another folder")
    options = {**identity, **_options(job)}
    if before is not None and not _same_answers(before.job, options):
        log.info("%s: model, engine, operating point or options differ from the last run; all files anew", job.output)
        known = {name: FileRecord(record.output) for name, record in known.items()}
    files = {shard.name: known.pop(shard.name, FileRecord(shard.output)) for shard in shards}
    written = {shard.output for shard in shards}
    gone = {name: record for name, record in known.items() if record.output not in written}
    if gone:
        first = next(iter(gone.values())).output
        log.warning("%s: answers that stay though their input is gone: %d, such as %s", job.output, len(gone), first)
    return Manifest(job.output, options, files, gone)


def _same_answers(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two jobs answer alike; a model is known by its content, wherever it lies."""
    return {**before, "model": None} == {**now, "model": None}


def _options(job: FolderJob) -> dict[str, Any]:
    reading = job.reading
    return {
        "text_column": job.columns.text,
        "pair_column": job.columns.pair,
        "format": reading.format,
        "delimiter": reading.delimiter,
        "encoding": reading.encoding,
    }


def _files_to_read(job: FolderJob, shards: Sequence[Shard], manifest: Manifest) -> list[FileRead]:
    """Return the files that are not answered, with what an earlier run has answered of them.

    The others are read to compare their content, on all cores.
    """
    from tqdm import tqdm

    known = any(manifest.files[shard.name].state != "waiting" for shard in shards)
    with ThreadPoolExecutor(cores()) as pool:
        reads = pool.map(lambda shard: _file_read(job, shard, manifest.files[shard.name]), shards)
        bar = tqdm(reads, "check", len(shards), leave=False, unit="file", disable=None if known else True)
        unanswered = [read for read in bar if read is not None]
    for read in unanswered:
        if not read.rows:  # what is in the manifest of it is of no use
            manifest.files[read.shard.name] = FileRecord(read.shard.output)
    return unanswered


def _file_read(job: FolderJob, shard: Shard, record: FileRecord) -> FileRead | None:
    """Return how a file is read; None where an earlier run has answered it."""
    read = FileRead(shard, columns=job.columns, reading=job.reading)
    if record.state == "done" and not (job.strict and record.errors):
        return None if _is_answered(job, shard, record) else read
    rows = 0
    if record.state == "unfinished":
        rows = whole_lines(unfinished_path(job.output, shard.output), job.strict)
    return replace(read, digest=record.input_sha256, rows=rows) if rows else read


def _is_answered(job: FolderJob, shard: Shard, record: FileRecord) -> bool:
    """Return whether a file and its answers are those of its record."""
    files = ((shard.path, record.input_sha256), (str(job.output / shard.output), record.output_sha256))
    try:
        return all(file_digest(path) == digest for path, digest in files)
    except OSError:  # reading or writing it says so
        return False


def _write(job: FolderJob, writer: AnswerWriter, answered: Generator[AnsweredBlock, None, None], before: int) -> None:
    """Write blocks as they come, with a bar that counts the rows of this run and all files that are complete."""
    from tqdm import tqdm

    with closing(answered), tqdm(desc="predict", unit="text", miniters=0, disable=None) as bar:
        bar.set_postfix_str(f"files: {before:,}")
        for block in answered:
            if job.strict and block.tally.errors:
                raise DataError(block.tally.first)
            writer.write(block)
            bar.set_postfix_str(f"files: {before + writer.files:,}", refresh=False)
            bar.update(block.tally.rows)
