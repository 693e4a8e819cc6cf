"""`offramp predict --input`: each file's answers are those of `offramp predict FILE`, whatever ends a run before."""

import fcntl
import gzip
import io
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from offramp.types.operating_point import OperatingPoint, write_points
from support.command_line import offramp
from support.models import balanced, save_folder, texts, tiny_model

COMMAND = (sys.executable, "-m", "offramp")
NAMES = {0: "schlecht", 1: "grün", 2: "\ud83d"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_folder(tmp_path_factory.mktemp("model"), balanced(tiny_model(id2label=NAMES)))
    write_points({"default": OperatingPoint({"name": "entropy"}, (0.05, 0.06, 0.07))}, folder / "operating_points.json")
    return folder


def write(path: Path, rows: list[Any], encoding: str = "utf-8") -> None:
    """Write texts or pairs of texts in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("text", "text_pair")
    records = [dict(zip(names, row if isinstance(row, tuple) else (row,), strict=False)) for row in rows]
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(records), file)
        data = file.getvalue()
    elif kind == "jsonl":
        data = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    else:
        cells = [list(records[0]), *(record.values() for record in records)]
        data = "".join(f"{('	' if kind == 'tsv' else ',').join(line)}\n" for line in cells).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.name.endswith("gz") else data)


def same_one_by_one(model: Path, folder: Path, *options: Any) -> int:
    """Compare the answers to a folder with those to its files; return how many answers there are."""
    result = offramp("predict", model, "--input", folder / "in", "--output", folder / "out", *options)
    assert result.exit_code == 0, result.output
    count = 0
    for path in sorted((folder / "in").rglob("*.*")):
        name = path.relative_to(folder / "in").as_posix().removesuffix(".gz").rpartition(".")[0]
        offramp("predict", model, path, "-o", folder / "one.jsonl", *options)
        expected = [json.loads(line) for line in (folder / "one.jsonl").read_text("utf-8").splitlines()]
        lines = (folder / "out" / f"{name}.jsonl").read_text("utf-8").splitlines()
        for answer, other in zip(map(json.loads, lines), expected, strict=True):
            assert list(answer) == list(other)
            scores = ("score", "value", "scores")
            assert {key: answer[key] for key in answer if key not in scores} == {
                key: other[key] for key in other if key not in scores
            }
            for key in set(scores) & set(answer):
                assert answer[key] == pytest.approx(other[key], abs=1e-6)
        count += len(lines)
    return count


KINDS = [f"{kind}{packed}" for kind in ("csv", "tsv", "jsonl", "parquet") for packed in ("", ".gz")]


def test_files_of_all_kinds_are_answered_as_one_by_one(model: Path, tmp_path: Path) -> None:
    for number, kind in enumerate(KINDS):
        rows = [*texts(12, seed=number), " "]
        write(tmp_path / "in" / "sub" / str(number) / f"a.b.{kind}", rows)
    assert same_one_by_one(model, tmp_path) == 4 * 12 + 4 * 13  # a blank line of csv and tsv is no row


def test_pairs_and_scores_are_answered_as_one_by_one(model: Path, tmp_path: Path) -> None:
    for seed, kind in enumerate(("csv", "jsonl.gz")):
        pairs = list(zip(texts(9, seed=seed), texts(9, seed=5), strict=True))
        write(tmp_path / "in" / f"{seed}.{kind}", pairs)
    assert same_one_by_one(model, tmp_path, "--scores") == 18


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_other_problems_are_answered_as_one_by_one(kind: str, tmp_path: Path) -> None:
    outputs = 1 if kind == "regression" else 3
    save_folder(tmp_path / "model", tiny_model(num_labels=outputs, problem_type=kind))
    write(tmp_path / "in" / "a.csv", texts(9))
    assert same_one_by_one(tmp_path / "model", tmp_path) == 9


def test_options_of_reading_are_those_of_one_file(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.csv", ["the grün cat", "a dog"], "latin-1")
    assert same_one_by_one(model, tmp_path, "--encoding", "latin-1") == 2
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "note.log").write_text("the cat\na dog\n\n")
    shutil.rmtree(tmp_path / "out")
    assert same_one_by_one(model, tmp_path, "--format", "txt") == 3


def test_totals_are_printed_as_json_or_in_words(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", [*texts(5), " "])
    command = ("predict", model, "--input", tmp_path / "in", "--output", tmp_path / "out")
    first = offramp(*command, "--json")
    totals = json.loads(first.stdout)
    assert totals["rows"] == 6
    assert (totals["errors"], totals["files_done"], totals["files_done_before"], totals["files_failed"]) == (1, 1, 0, 0)
    assert sum(totals["exit_layers"].values()) == 5
    assert totals["first_error"].startswith(f"{tmp_path / 'in' / 'a.jsonl'}, line 6: ")
    assert totals["manifest"] == str(tmp_path / "out" / ".manifest.json")
    words = offramp(*command)
    assert words.stdout == ""
    assert words.stderr.startswith("rows: 6; files: 1, 1 of them before; ")
    assert "predict:" not in first.stderr  # no bar without a terminal


def test_wrong_usage_has_exit_code_2(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.csv", texts(1))
    for options in (("--input", tmp_path / "in"), ("x.txt", "--input", tmp_path / "in", "--output", tmp_path / "out")):
        assert offramp("predict", model, *options).exit_code == 2
    assert offramp("predict", model, "--ray").exit_code == 2


# Ends of a run.


@pytest.fixture
def long(model: Path, tmp_path: Path) -> tuple[Any, ...]:
    for number in range(4):
        write(tmp_path / "in" / f"{number}.csv", texts(2500, seed=number))
    return (*COMMAND, "predict", model, "--input", tmp_path / "in", "--output", tmp_path / "out", "--batch-size", "8")


def started(command: tuple[Any, ...], out: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a job, and return when its second file has lines."""
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, **hears, **options)
    began = time.monotonic()
    while not (unfinished := out / ".unfinished-1.jsonl").exists() or not unfinished.stat().st_size:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - began < 100
        time.sleep(0.005)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, -15)], ids=["9", "int", "term"]
)
def test_a_job_that_a_signal_ends_goes_on(number: int, code: int, long: tuple[Any, ...], tmp_path: Path) -> None:
    with started(long, tmp_path / "out") as process:
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr.read() == b""
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[0-9].jsonl")}
    assert set(done) == {"0.jsonl"}
    result = offramp(*long[3:])
    assert result.exit_code == 0
    assert "rows: 10,000; files: 4" in result.stderr
    if number == signal.SIGINT:  # which has written the manifest
        assert "1 of them before" in result.stderr
        assert (tmp_path / "out" / "0.jsonl").stat().st_mtime_ns == done["0.jsonl"]
    for row in range(4):
        expected = offramp("predict", long[4], tmp_path / "in" / f"{row}.csv").stdout.splitlines()
        answers = (tmp_path / "out" / f"{row}.jsonl").read_text("utf-8").splitlines()
        for line, other in zip(map(json.loads, answers), map(json.loads, expected), strict=True):
            assert (line["label"], line["exit_layer"]) == (other["label"], other["exit_layer"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".manifest.json", *(f"{n}.jsonl" for n in range(4))}


@pytest.mark.slow
def test_two_runs_at_once_are_one_line(long: tuple[Any, ...], tmp_path: Path) -> None:
    with started(long, tmp_path / "out") as process:
        second = offramp(*long[3:])
        assert (second.exit_code, second.stderr.splitlines()[-1]) == (
            1,
            f"Error: {tmp_path / 'out'}: another process is writing there",
        )
        assert process.wait(100) == 0
        process.stderr.close()


def test_a_terminal_shows_rows_and_files(model: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "in" / f"{number}.csv", texts(7, seed=number))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [*COMMAND, "predict", str(model), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    subprocess.run(command, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    while b"layers a row" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert b"predict: 0text" in shown
    assert b"files: 0" in shown
    assert b"predict: 21text" in shown
    assert b"files: 3" in shown
