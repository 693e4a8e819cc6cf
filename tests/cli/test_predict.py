"""`offramp predict`: a row's fault stays its own, pipes are answered when they pause, and other ends are quiet."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.cli.options import silence_transformers
from offramp.inference.predictor import Predictor
from support.command_line import offramp
from support.models import balanced, save_folder, tiny_model

COMMAND = (sys.executable, "-m", "offramp")
NAMES = {0: "schlecht", 1: "grün", 2: "schön 🙂"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("model"), balanced(tiny_model(id2label=NAMES)))


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


# One row's fault.


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("blank.txt", b"the cat\n\na dog\n", 2),
        ("spaces.txt", b"the cat\n \t \na dog\n", 2),
        ("half.jsonl", b'{"text": "the cat"}\n{"text": "the \\ud83d"}\n{"text": "a dog"}\n', 2),
        ("missing.jsonl", b'{"text": "the cat"}\n{"txt": "the"}\n{"text": "a dog"}\n', 2),
        ("null.jsonl", b'{"text": "the cat"}\n{"text": null}\n{"text": "a dog"}\n', 2),
        ("number.jsonl", b'{"text": "the cat"}\n{"text": 7}\n{"text": "a dog"}\n', 2),
        ("empty.csv", b"id,text\n1,the cat\n2,\n3,a dog\n", 3),
        ("pair.csv", b"text,text_pair\nthe cat,the cat\n,a dog\na dog,a dog\n", 3),
        ("first.txt", b"\nthe cat\na dog\n", 1),
    ],
)
def test_every_row_gets_a_line_in_order(name: str, content: bytes, bad: int, folder: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    result = offramp("predict", folder, tmp_path / name)
    assert result.exit_code == 0, result.output
    answers = lines(result.stdout)
    (error,) = [answer for answer in answers if "error" in answer]
    assert (len(answers), set(error), error["line"]) == (3, {"error", "line"}, bad)
    good = [answer for answer in answers if "error" not in answer]
    texts = [("the cat", "the cat"), ("a dog", "a dog")] if name == "pair.csv" else ["the cat", "a dog"]
    assert good == Predictor.load(folder)(texts)
    assert answers.index(error) == (bad - 1 if not name.endswith("csv") else bad - 2)
    said = f"1 of 3 rows have no answer; the first is {tmp_path / name}, line {bad}: {error['error']}"
    assert result.stderr.splitlines()[-1] == said


def test_the_number_of_rows_without_an_answer_has_its_thousands(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat\n" * 1097 + "\n \n\n")
    result = offramp("predict", folder, tmp_path / "x.txt", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    assert [answer.get("line") for answer in lines((tmp_path / "out.jsonl").read_text())][-4:] == [
        None,
        1098,
        1099,
        1100,
    ]
    assert "3 of 1,100 rows have no answer; the first is" in result.stderr


def test_logits_that_are_not_finite_are_an_error_with_a_line(tmp_path: Path) -> None:
    model = tiny_model(num_labels=3)
    with torch.no_grad():
        model.heads.classifiers[-1].bias.fill_(torch.nan)
    result = offramp("predict", save_folder(tmp_path / "model", model), given="the cat\n")
    assert lines(result.stdout) == [{"error": "the model's logits are not finite", "exit_layer": 4, "line": 1}]


def test_strict_stops_at_the_first_row_without_an_answer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat\na dog\n\nthe mat\n")
    result = offramp("predict", folder, tmp_path / "x.txt", "--strict")
    assert result.exit_code == 1
    assert len(lines(result.stdout)) == 2
    assert result.stderr.startswith(f"Error: {tmp_path / 'x.txt'}, line 3: ")
    assert len(result.stderr.splitlines()) == 1
    (tmp_path / "out.jsonl").write_text("the old one")
    assert offramp("predict", folder, tmp_path / "x.txt", "--strict", "-o", tmp_path / "out.jsonl").exit_code == 1
    assert (tmp_path / "out.jsonl").read_text() == "the old one"
    assert {path.name for path in tmp_path.iterdir()} == {"x.txt", "out.jsonl"}
    (tmp_path / "x.txt").write_text("the cat\n")
    assert offramp("predict", folder, tmp_path / "x.txt", "--strict").exit_code == 0


@pytest.mark.parametrize("to_file", [False, True])
def test_a_source_that_breaks_off_loses_nothing_that_was_read(to_file: bool, folder: Path, tmp_path: Path) -> None:
    texts = "".join(f"the cat {os.urandom(8).hex()}\n" for _ in range(2000))
    content = gzip.compress(texts.encode())
    (tmp_path / "x.txt.gz").write_bytes(content[: len(content) // 2])
    options = ("-o", tmp_path / "out.jsonl") if to_file else ()
    result = offramp("predict", folder, tmp_path / "x.txt.gz", *options)
    assert result.exit_code == 1
    answers = lines((tmp_path / "out.jsonl").read_text() if to_file else result.stdout)
    assert len(answers) > 500
    assert all("label" in answer for answer in answers[:-1])
    assert set(answers[-1]) == {"error", "line"}
    assert f"1 of {len(answers):,} rows have no answer" in result.stderr
    end = f"; the source breaks off at {tmp_path / 'x.txt.gz'}, line {len(answers)}"
    assert result.stderr.splitlines()[-1].endswith(end)
    assert offramp("predict", folder, tmp_path / "x.txt.gz", "--strict").exit_code == 1


@pytest.mark.parametrize(
    ("kind", "given", "code", "rows"),
    [
        ("txt", " \n\n", 0, 2),
        ("txt", "the cat\n\n", 0, 2),
        ("json", '["the cat", "a dog", ', 1, 3),
        ("json", '["the cat"] 7', 1, 2),
        ("json", '["the cat"]', 0, 1),
    ],
)
def test_the_exit_code_is_1_where_the_source_breaks_off(
    kind: str, given: str, code: int, rows: int, folder: Path
) -> None:
    result = offramp("predict", folder, "--format", kind, given=given)
    assert (result.exit_code, len(lines(result.stdout))) == (code, rows)


@pytest.mark.parametrize(
    ("closing", "message"),
    [("<&-", "standard input is closed"), pytest.param(">&-", "standard output is", marks=pytest.mark.slow)],
)
def test_a_standard_stream_that_is_closed_is_an_error(closing: str, message: str, folder: Path) -> None:
    command = ["bash", "-c", f'echo the cat | "$@" {closing}', "-", *COMMAND, "predict", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: {message}")


@pytest.mark.parametrize(("terminal", "expected"), [(False, "1"), (True, None)])
def test_a_log_gets_no_progress_of_data_sets(
    terminal: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "")  # so that it is restored
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    silence_transformers()
    assert os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS") == expected


# What an answer holds.


def test_scores_are_every_labels_probability(folder: Path) -> None:
    (answer,) = lines(offramp("predict", folder, "--scores", given="the cat\n").stdout)
    assert list(answer) == ["label", "score", "exit_layer", "scores"]
    assert set(answer["scores"]) == set(NAMES.values())
    assert next(iter(answer["scores"].items())) == (answer["label"], answer["score"])
    assert sum(answer["scores"].values()) == pytest.approx(1)


def test_scores_of_a_regression_are_refused(tmp_path: Path) -> None:
    path = save_folder(tmp_path / "values", tiny_model(num_labels=1))
    result = offramp("predict", path, "--scores", "--format", "txt", given="the cat\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: a regression answers with values; it has no labels and no probabilities\n"


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_are_a_number_of_at_least_one(threads: str, folder: Path) -> None:
    assert offramp("predict", folder, "--threads", threads, given="the cat\n").exit_code == 2


def test_threads_reach_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert offramp("predict", folder, "--threads", 2, given="the cat\n").exit_code == 0
    assert threads == [2]


def test_texts_that_were_cut_are_counted_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat\n" * 1030 + "the cat " * 20 + "\n" + "a dog\n" + "the dog " * 20 + "\n")
    result = offramp("predict", folder, tmp_path / "x.txt")  # two windows
    assert "2 of 1033 texts were cut to 32 tokens" in result.stderr
    assert result.stderr.count("cut to") == 1


# Pipes.


def started(folder: Path, **options: Any) -> Any:
    """Start the command with pipes; its standard output is not UTF-8 by itself."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "predict", str(folder), "--scores", "--format", "txt"]
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    return subprocess.Popen(command, bufsize=0, env=environment, preexec_fn=hears, **pipes)


def test_a_pipe_is_answered_when_it_pauses_and_ctrl_c_ends_it_quietly(folder: Path) -> None:
    with started(folder) as process:
        delays = []
        for text in ("the cat", "a dog", "the mat", "a tree"):
            began = time.perf_counter()
            process.stdin.write(text.encode() + b"\n")
            answer = process.stdout.readline()
            delays.append(time.perf_counter() - began)
            assert answer.endswith(b"}\n")
            assert set(json.loads(answer.decode("utf-8"))["scores"]) == set(NAMES.values())
        assert min(delays) < 0.5  # after the first, which waits for the model; another process may hold one up
        process.send_signal(signal.SIGINT)  # the reading thread waits for the next line meanwhile
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


def test_a_closed_pipe_ends_the_answers_quietly(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat\n" * 3000)
    with (tmp_path / "x.txt").open("rb") as texts, started(folder, stdin=texts) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["predict", "--help"], pytest.param(["info", "MODEL"], marks=pytest.mark.slow)],
)
def test_a_closed_pipe_ends_every_command_quietly(arguments: list[str], folder: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    arguments = [str(folder) if argument == "MODEL" else argument for argument in arguments]
    result = subprocess.run([*COMMAND, *arguments], stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert (result.returncode, result.stderr) == (141, b"")
