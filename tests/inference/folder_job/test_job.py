"""A folder's answers are those of its files one by one; a job that was stopped goes on, and trusts content alone."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from offramp.data.columns import Columns
from offramp.errors import DataError, InvalidInput
from offramp.inference.folder_job.answered import AnsweredBlock, to_lines
from offramp.inference.folder_job.blocks import FileRead, read_blocks
from offramp.inference.folder_job.job import FolderJob, run_job
from offramp.inference.folder_job.manifest import Manifest
from offramp.inference.folder_job.writer import unfinished_path
from offramp.inference.pipeline import Fault
from support.files import file_limit

Answering = Callable[[Sequence[FileRead]], Generator[AnsweredBlock, None, None]]


class Stopped(Exception):
    """Stands for a kill between two blocks."""


class Counting:
    """Answers with the text itself, and notes which files and rows it was asked for."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.files: list[str] = []
        self.rows: list[str] = []
        self._left = stop_after

    def __call__(self, reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
        for number, read in enumerate(reads):
            self.files.append(read.shard.name)
            for block in read_blocks(number, read):
                if self._left == 0:
                    raise Stopped
                if self._left is not None:
                    self._left -= 1
                answers = [
                    {"error": item.error} if isinstance(item, Fault) else {"label": item, "exit_layer": len(item) % 3}
                    for item in block.items
                ]
                self.rows += [str(answer.get("label", "error")) for answer in answers]
                yield to_lines(block, answers)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderJob:
    monkeypatch.setattr("offramp.inference.folder_job.blocks.BLOCK_ROWS", 2)
    (tmp_path / "in").mkdir()
    for name in "abc":
        write(tmp_path / "in" / f"{name}.csv", [f"{name}{row}" for row in range(5)])
    return FolderJob(tmp_path / "in", tmp_path / "out")


def write(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(f"{text}\n" for text in ("text", *texts)))


def run(job: FolderJob, identity: str = "model", answering: Answering | None = None) -> Counting:
    counting = Counting()
    run_job(job, {"model_sha256": identity}, answering or counting)
    return counting


def labels(job: FolderJob, name: str) -> list[Any]:
    return [json.loads(line).get("label") for line in (job.output / f"{name}.jsonl").read_text().splitlines()]


def contents(job: FolderJob) -> dict[str, bytes]:
    return {str(path.relative_to(job.output)): path.read_bytes() for path in job.output.rglob("*") if path.is_file()}


def all_right(job: FolderJob) -> bool:
    whole = all(labels(job, name) == [f"{name}{row}" for row in range(5)] for name in "abc")
    return whole and not list(job.output.rglob(".unfinished-*"))


@pytest.mark.parametrize("blocks", range(14))
def test_a_job_that_was_stopped_after_any_block_answers_the_other_rows_alone(blocks: int, job: FolderJob) -> None:
    first, second = Counting(blocks), Counting()
    if blocks < 12:  # three files of three blocks and one that ends them
        with pytest.raises(Stopped):
            run(job, answering=first)
    else:
        run(job, answering=first)
    run(job, answering=second)
    assert all_right(job)
    assert sorted(first.rows + second.rows) == sorted(f"{name}{row}" for name in "abc" for row in range(5))


def test_a_run_that_has_nothing_to_do_changes_no_byte(job: FolderJob) -> None:
    run(job)
    before = contents(job)
    os.utime(job.source / "a.csv", (1, 1))
    again = Counting()
    assert run_job(job, {"model_sha256": "model"}, again)["files_done_before"] == 3
    assert (again.files, contents(job)) == ([], before)


def test_one_changed_byte_of_a_file_or_of_its_answers_does_this_file_again(job: FolderJob) -> None:
    run(job)
    write(job.source / "a.csv", ["a0", "a1", "a2", "a3", "ax"])
    assert run(job).files == ["a.csv"]
    assert labels(job, "a")[-1] == "ax"
    (job.output / "b.jsonl").write_text((job.output / "b.jsonl").read_text().replace("b2", "bx"))
    (job.output / "c.jsonl").unlink()
    assert run(job).files == ["b.csv", "c.csv"]
    assert labels(job, "b") == ["b0", "b1", "b2", "b3", "b4"]


def test_another_model_or_option_does_all_again(job: FolderJob) -> None:
    run(job)
    assert run(job, "another").files == ["a.csv", "b.csv", "c.csv"]
    assert run(FolderJob(job.source, job.output, Columns(text="text")), "another").files == []  # as it was guessed
    for name in "abc":
        (job.source / f"{name}.csv").write_text("text,body\nx,y\n")
    assert run(FolderJob(job.source, job.output, Columns(text="body")), "another").files == ["a.csv", "b.csv", "c.csv"]
    assert labels(job, "a") == ["y"]


def test_the_same_model_under_another_path_goes_on(job: FolderJob) -> None:
    run_job(job, {"model": "here", "model_sha256": "1"}, Counting())
    again = Counting()
    run_job(job, {"model": "/there", "model_sha256": "1"}, again)
    assert again.files == []


@pytest.mark.parametrize(
    ("change", "answered"),
    [
        (lambda data: data[:-3], 4),  # the torn line is answered again
        (lambda data: data + b"\0" * 5000, 3),  # as a power cut leaves it
        (lambda data: b"\0" * len(data), 5),
        (lambda data: b"{}\n" + data, 5),
        (lambda data: None, 5),
    ],
    ids=["torn", "zeros behind", "zeros", "edited", "gone"],
)
def test_lines_of_an_unfinished_file_count_up_to_the_first_that_is_none(
    change: Callable[[bytes], bytes | None], answered: int, job: FolderJob
) -> None:
    with pytest.raises(Stopped):
        run(job, answering=Counting(1))  # two rows
    path = unfinished_path(job.output, "a.jsonl")
    data = change(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    second = run(job)
    assert all_right(job)
    assert sum(row.startswith("a") for row in second.rows) == answered


def test_lines_of_another_content_or_model_are_not_trusted(job: FolderJob) -> None:
    for identity, texts in (("model", ["x0", "x1", "x2"]), ("another", ["a0", "a1"])):
        with pytest.raises(Stopped):
            run(job, answering=Counting(1))
        write(job.source / "a.csv", texts)
        run(job, identity)
        assert labels(job, "a") == texts
        shutil.rmtree(job.output)


def test_lines_left_by_another_model_are_gone_before_the_manifest_takes_the_file_up(
    job: FolderJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        run(job, answering=Counting(1))
    save = Manifest.save

    def stop(self: Manifest, now: bool = False) -> None:
        save(self, now=True)
        if self.files["a.csv"].state == "unfinished":
            monkeypatch.undo()
            raise Stopped

    monkeypatch.setattr(Manifest, "save", stop)
    with pytest.raises(Stopped):
        run(job, "another")
    assert unfinished_path(job.output, "a.jsonl").read_bytes() == b""


def test_the_manifest_of_a_long_file_is_kept_while_it_is_answered(
    job: FolderJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.inference.folder_job.manifest.RARELY", 0)
    seen: list[int] = []
    for count in (1, 2, 3):
        with pytest.raises(Stopped):
            run(job, answering=_peeking(job, seen, count))
        shutil.rmtree(job.output)
    assert seen == [2, 4, 5]


def _peeking(job: FolderJob, seen: list[int], count: int) -> Answering:
    """Answer so many blocks, and note what the manifest says of their file as if the process were killed then."""

    def answer(reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
        for number, block in enumerate(Counting()(reads)):
            if number == count:
                found = Manifest.read(job.output)
                assert found is not None
                seen.append(found.files["a.csv"].rows)
                raise Stopped
            yield block

    return answer


def test_a_file_that_breaks_off_keeps_its_rows_counts_as_failed_and_is_tried_again(job: FolderJob) -> None:
    lines = "".join(f"{os.urandom(8).hex()}\n" for _ in range(3000))
    packed = gzip.compress(f"text\n{lines}".encode())
    (job.source / "b.csv").unlink()
    (job.source / "b.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"^1 of 3 files cannot be read to the end; the first: \S*b\.csv\.gz, line \d+"):
        run(job)
    kept = labels(job, "b")
    assert kept[:-1] == lines.splitlines()[: len(kept) - 1]
    assert len(kept) > 100
    assert (kept[-1], labels(job, "c")) == (None, ["c0", "c1", "c2", "c3", "c4"])
    (job.source / "b.csv.gz").write_bytes(packed)
    assert run(job).files == ["b.csv.gz"]
    assert labels(job, "b") == lines.splitlines()


@pytest.mark.parametrize("kind", ["gone", "pipe", "column", "pair", "no gzip"])
def test_a_file_that_cannot_be_read_fails_alone(kind: str, job: FolderJob) -> None:
    bad = job.source / ("b.csv.gz" if kind == "no gzip" else "b.csv")
    (job.source / "b.csv").unlink()
    match kind:
        case "gone":
            bad.symlink_to(job.source / "nowhere")
        case "pipe":
            os.mkfifo(bad)
        case "column":
            bad.write_text("id,other\n1,2\n")
        case "pair":  # a second text would be dropped
            bad.write_text("text,text_pair\nx,y\n")
        case "no gzip":
            bad.write_text("text\nx\n")
    with pytest.raises(DataError, match=r"^1 of 3 files cannot be read to the end; the first: \S*b\.csv"):
        run(job)
    assert labels(job, "c") == ["c0", "c1", "c2", "c3", "c4"]
    assert not list(job.output.rglob(".unfinished-*"))
    found = Manifest.read(job.output)
    assert found is not None
    assert [record.state for record in found.files.values()] == ["done", "failed", "done"]


def test_files_without_rows_have_answers_without_lines(job: FolderJob) -> None:
    (job.source / "a.csv").write_text("")
    (job.source / "b.csv").write_text("text\n")
    assert run_job(job, {}, Counting())["files_done"] == 3
    assert [(job.output / f"{name}.jsonl").read_bytes() for name in "ab"] == [b"", b""]
    assert run_job(job, {}, Counting())["files_done_before"] == 3


def test_strict_stops_at_a_row_without_an_answer_in_every_run(job: FolderJob) -> None:
    write(job.source / "b.csv", ["b0", "b1", '" "', "b3"])
    strict = FolderJob(job.source, job.output, strict=True)
    for _ in range(2):
        with pytest.raises(DataError, match=r"b\.csv, line 4: "):
            run(strict)
    run(job)
    assert labels(job, "b") == ["b0", "b1", None, "b3"]
    with pytest.raises(DataError, match=r"b\.csv, line 4: "):
        run(strict)


def test_answers_that_no_manifest_knows_are_not_replaced(job: FolderJob) -> None:
    job.output.mkdir()
    (job.output / "b.jsonl").write_text("mine")
    with pytest.raises(InvalidInput, match=r"b\.jsonl: it would be replaced, and \.manifest\.json does not know it"):
        run(job)
    assert (job.output / "b.jsonl").read_text() == "mine"


def test_answers_stay_where_their_input_is_gone_and_count_when_it_comes_back(
    job: FolderJob, caplog: pytest.LogCaptureFixture
) -> None:
    run(job)
    (job.source / "b.csv").rename(job.source / ".b.csv")
    assert run_job(job, {"model_sha256": "model"}, Counting())["rows"] == 10
    assert f"{job.output}: answers that stay though their input is gone: 1, such as b.jsonl" in caplog.messages
    (job.source / ".b.csv").rename(job.source / "b.csv")
    assert run(job).files == []


def test_a_second_process_in_the_folder_is_refused(job: FolderJob) -> None:
    def answer(reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
        with pytest.raises(InvalidInput, match="another process is writing there"):
            run(job)
        yield from Counting()(reads)

    run(job, answering=answer)
    assert all_right(job)


def test_an_output_that_is_a_file_is_refused(job: FolderJob) -> None:
    job.output.write_text("mine")
    with pytest.raises(InvalidInput, match="out: cannot be made a folder: File exists"):
        run(job)


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(job: FolderJob) -> None:
    write(job.source / "a.csv", [f"a{row}" for row in range(5)])
    write(job.source / "b.csv", ["b" * 4000, "b1", "b2", "b3", "b4"])
    with file_limit(3000), pytest.raises(InvalidInput, match=r"b\.jsonl: cannot be written: .*; what is there stays"):
        run(job)
    second = run(job)
    assert not [row for row in second.rows if row.startswith("a")]
    assert labels(job, "b") == ["b" * 4000, "b1", "b2", "b3", "b4"]


def test_a_label_that_utf_8_has_not_is_its_escape(job: FolderJob) -> None:
    def answer(reads: Sequence[FileRead]) -> Iterator[AnsweredBlock]:
        for number, read in enumerate(reads):
            for block in read_blocks(number, read):
                yield to_lines(block, [{"label": "\ud83d grün", "exit_layer": 1} for _ in block.items])

    run(job, answering=answer)
    assert labels(job, "a") == ["\ud83d grün"] * 5
    assert run(job).files == []


def test_many_short_files_write_the_manifest_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for number in range(600):
        write(tmp_path / "in" / f"{number:04}.csv", ["x", "y", "z"])
    times, dump = [], json.dump

    def counted(*arguments: Any, **options: Any) -> None:
        times.append(1)
        dump(*arguments, **options)

    monkeypatch.setattr(json, "dump", counted)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    totals = run_job(FolderJob(tmp_path / "in", tmp_path / "out"), {}, Counting())
    assert (totals["rows"], totals["files_done"]) == (1800, 600)
    assert len(times) < 60
