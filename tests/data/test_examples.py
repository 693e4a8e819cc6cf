import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.data.columns import GUESSED, Columns
from offramp.data.examples import read_column, read_data, read_examples, read_rows
from offramp.data.multi_label import HOW
from offramp.data.rows import Row, Text
from offramp.errors import DataError, UnknownName

Write = Callable[[list[Any]], str]

ONE, TAGS, NUMBER = "classification", "multi-label", "regression"
PROBLEM_TYPES = {ONE: "single_label_classification", TAGS: "multi_label_classification", NUMBER: "regression"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write records to a.jsonl, in an empty working directory, so that places are short."""
    monkeypatch.chdir(tmp_path)

    def to(records: list[Any]) -> str:
        Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return "a.jsonl"

    return to


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, offramp.data; print({'torch', 'transformers', 'datasets', 'pyarrow'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_rows_arrive_while_the_source_is_still_open(monkeypatch: pytest.MonkeyPatch) -> None:
    end, start = os.pipe()
    with open(end, encoding="utf-8") as stdin, open(start, "wb", buffering=0) as out:
        monkeypatch.setattr("sys.stdin", stdin)
        rows = read_rows("-", labelled=False)
        for line, text in enumerate(["again", "never"], start=1):
            out.write(f"{text}\n".encode())
            assert next(rows) == Row(text, None, f"standard input, line {line}", line)


def test_empty_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(DataError, match="standard input: there are no rows"):
        next(read_rows("-"))


def test_a_column_is_read_for_every_row(write: Write) -> None:
    source = write([{"text": "again", "site": "a"}, {"text": "never", "site": 7}])
    assert read_column(source, "site", split="test") == ["a", "7"]
    with pytest.raises(DataError, match=r'a\.jsonl, line 1: no column "sight"; the columns are "text", "site"'):
        read_column(source, "sight", split="test")
    with pytest.raises(DataError, match="standard input is read once"):
        read_column("-", "site", split="test")


# From a record to a row


@pytest.mark.parametrize(
    ("names", "asked", "text", "label"),
    [
        ("text label", GUESSED, "text", "label"),
        ("id Review Target", GUESSED, "Review", "Target"),
        ("content text intent urgency", GUESSED, "text", "intent"),
        ("Premise hypothesis label", GUESSED, ("Premise", "hypothesis"), "label"),
        ("sentence1 sentence2 score", GUESSED, ("sentence1", "sentence2"), "score"),
        ("text question2 question1 label", GUESSED, ("question1", "question2"), "label"),
        ("idx sentence question label", GUESSED, ("question", "sentence"), "label"),  # QNLI
        ("text text_pair label", GUESSED, ("text", "text_pair"), "label"),
        ("sentence hypothesis label", GUESSED, "sentence", "label"),  # half a pair is none
        ("id tweet label", GUESSED, "tweet", "label"),  # the only column of words
        ("text intent urgency", Columns(label="urgency"), "text", "urgency"),
        ("text other label gold", Columns("other", "text", "gold"), ("other", "text"), "gold"),
        ("question sentence label", Columns(text="question"), "question", "label"),
        ("sentence1 sentence2 label", Columns(pair="sentence2"), ("sentence1", "sentence2"), "label"),
    ],
)
def test_columns_are_those_asked_for_or_guessed_by_name(
    write: Write, names: str, asked: Columns, text: Text, label: str
) -> None:
    source = write([{name: 7 if name == "id" else name for name in names.split()}])
    assert list(read_rows(source, asked)) == [Row(text, label, "a.jsonl, line 1", 1)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (GUESSED, ['a.jsonl: text from "text", pair from "text_pair", label from "label"']),
        (Columns("text", None, "stars"), []),
        (Columns(label="stars"), ['a.jsonl: text from "text", pair from "text_pair", label from "stars"']),
    ],
)
def test_a_guess_is_said_aloud(write: Write, caplog: pytest.LogCaptureFixture, asked: Columns, said: list[str]) -> None:
    caplog.set_level(logging.INFO, logger="offramp")
    next(read_rows(write([{"text": "a", "text_pair": "b", "label": "c", "stars": 1}]), asked))
    assert caplog.messages == said


def test_without_need_of_labels_a_label_is_still_read(write: Write) -> None:
    source = write([{"text": "a", "label": 1}, {"text": "b", "label": None}, {"text": "c"}])
    assert [row.label for row in read_rows(source, labelled=False)] == [1, None, None]


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (["text", "label"], Columns(text="no"), 'no column "no"'),
        (["text", "label"], Columns(pair="no"), 'no column "no"'),
        (["text", "label"], Columns(label="no"), 'no column "no"'),
        (["tweet", "reply", "label"], GUESSED, "no column looks like the text, choose it with --text-column"),
        (
            ["text", "mood"],
            GUESSED,
            "no column looks like the label, choose it with --label-column (several times for columns of 0 and 1, "
            "one a label)",
        ),
    ],
)
def test_columns_that_cannot_be_told_are_listed(write: Write, names: list[str], asked: Columns, message: str) -> None:
    with pytest.raises(DataError) as caught:
        next(read_rows(write([dict.fromkeys(names, "a")]), asked))
    assert str(caught.value) == f"a.jsonl: {message}; the columns are {json.dumps(names)[1:-1]}"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], ": there are no rows"),
        ([{"text": "a", "label": 1}, {"label": 1}], ', line 2: there is no "text"'),
        ([{"text": 3, "label": 1}], ', line 1: "text" must be a text, found 3'),
        ([{"text": " \t", "label": 1}], ', line 1: "text" is blank'),
        ([{"text": "a", "text_pair": "", "label": 1}], ', line 1: "text_pair" is blank'),
        ([{"text": "a", "label": 1}, {"text": "b"}], ', line 2: the label, column "label", is missing'),
        ([{"text": "a", "label": None}], ', line 1: the label, column "label", is missing'),
        ([{"text": "a", "label": " "}], ', line 1: the label, column "label", is missing'),
        ([{"text": "a", "label": float("nan")}], ', line 1: the label, column "label", is missing'),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(write: Write, records: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_rows(write(records)))
    assert str(caught.value) == f"a.jsonl{message}"


# From a row to a label


@pytest.mark.parametrize(
    ("task", "known", "labels", "names", "expected"),
    [
        # the distinct classes, sorted
        (ONE, None, ["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1]),
        (ONE, None, [10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        (ONE, None, ["10", "9", "-2"], ("-2", "9", "10"), [2, 1, 0]),
        (ONE, None, ["1", "01", "0"], ("0", "01", "1"), [2, 1, 0]),
        (ONE, None, [2.0, 1, 2], ("1", "2"), [1, 0, 1]),
        (ONE, None, ["10", "9", "ten"], ("10", "9", "ten"), [0, 1, 2]),
        (ONE, None, [True, False], ("False", "True"), [1, 0]),
        (ONE, None, [" a", "b", "a"], ("a", "b"), [0, 1, 0]),
        (TAGS, None, [["red", "big"], [], ["big"]], ("big", "red"), [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]),
        (TAGS, None, [[10], [9, 10]], ("9", "10"), [[0.0, 1.0], [1.0, 1.0]]),
        # known classes
        (ONE, ["b", "a"], ["b", "a", "b"], ("b", "a"), [0, 1, 0]),
        (ONE, ["1", "0"], [1], ("1", "0"), [0]),
        (ONE, ["1", "2"], [2.0], ("1", "2"), [1]),
        (ONE, ["5", "1"], ["1.0"], ("5", "1"), [1]),
        (ONE, ["2.5", "x"], ["2.5"], ("2.5", "x"), [0]),
        (TAGS, ["b", "a"], [["a"], ["b", "a"]], ("b", "a"), [[0.0, 1.0], [1.0, 1.0]]),
        # numbers
        (NUMBER, None, [1, "-2.5", "1e-3"], (), [1.0, -2.5, 0.001]),
        (NUMBER, None, [[1, 2.5], ["3", 4]], (), [[1.0, 2.5], [3.0, 4.0]]),
    ],
)
def test_labels_become_numbers(
    write: Write, task: str, known: list[str] | None, labels: list[Any], names: tuple[str, ...], expected: list[Any]
) -> None:
    source = write([{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])
    examples = read_examples(source, split="train", task=task, label_names=known)
    assert (examples.label_names, examples.labels) == (names, expected)
    assert examples.problem_type == PROBLEM_TYPES[task]
    assert examples.texts == [f"text {i}" for i in range(len(labels))]
    assert len(examples) == len(labels)


KNOWN = "expected one of 'a', 'b'"
TEN = ", ".join(map(repr, "abcdefghij"))
NUMBERED = "the label {} is a number, the classes have names; say which by --label-names, in the order 0, 1, ..."
NO_CLASS = "is a number, not a class; numbers mean regression only with --task regression"
A_CLASS = "a class is a name or an integer, found"


@pytest.mark.parametrize(
    ("task", "known", "labels", "message"),
    [
        (ONE, ["a", "b"], ["a", "c"], f", line 2: unknown label 'c'; {KNOWN}"),
        (ONE, ["a", "b"], ["a", 1], f", line 2: {NUMBERED.format(1)}; {KNOWN}"),
        (ONE, ["a", "b"], ["a", "-2"], f", line 2: {NUMBERED.format(-2)}; {KNOWN}"),
        (TAGS, ["a", "b"], [["a"], [1]], f", line 2: {NUMBERED.format(1)}; {KNOWN}"),
        (ONE, ["a", "b"], ["a", "2.5"], f", line 2: unknown label '2.5'; {KNOWN}"),
        (ONE, ["1", "5"], [5, 0], ", line 2: unknown label '0'; expected one of '1', '5'"),
        (ONE, [*"abcdefghijkl"], ["x"], f", line 1: unknown label 'x'; expected one of {TEN}, ..."),
        (ONE, None, ["x", "x"], ": only one class, 'x'"),
        (ONE, None, [1, 2.5], f", line 2: 2.5 {NO_CLASS}"),
        (ONE, None, ["1", "nan"], ', line 2: the label is missing ("nan" beside numbers)'),
        (ONE, None, ["a", ["a"]], f", line 2: {A_CLASS} ['a']; lists are for --task multi-label"),
        (ONE, None, ["a", {"a": 1}], f", line 2: {A_CLASS} {{'a': 1}}; labels by column are for --task multi-label"),
        (TAGS, None, ["big"], f", line 1: multi-label needs a list of labels in every row, found 'big'; use {HOW}"),
        (TAGS, None, [[], []], ": no row has a label"),
        (TAGS, None, [[None]], f", line 1: {A_CLASS} None"),
        (NUMBER, None, [1.0, "high"], ", line 2: the label must be a finite number, found 'high'"),
        (NUMBER, None, [1.0, "0,0"], ", line 2: the label must be a finite number, found '0,0'; write a decimal point"),
        (NUMBER, None, [1.0, True], ", line 2: the label must be a finite number, found True"),
        (NUMBER, None, [1.0, float("inf")], ", line 2: the label must be a finite number, found inf"),
        (NUMBER, None, [1.0, [1.0]], ", line 2: the label must be a finite number, found [1.0]"),
        (NUMBER, None, [[1, 2], [1]], ", line 2: the label must be a list of 2 numbers, found [1]"),
        (NUMBER, None, [[1, 2], 3], ", line 2: the label must be a list of 2 numbers, found 3"),
        (NUMBER, None, [[], []], ", line 1: the label must be a list of some numbers, found []"),
    ],
)
def test_a_label_that_does_not_fit_is_named_with_its_place(
    write: Write, task: str, known: list[str] | None, labels: list[Any], message: str
) -> None:
    source = write([{"text": "a", "label": label} for label in labels])
    with pytest.raises(DataError) as caught:
        read_examples(source, split="train", task=task, label_names=known)
    assert str(caught.value) == f"a.jsonl{message}"


def test_a_task_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownName, match="unknown task 'ranking'; expected one of classification, "):
        read_examples("none.csv", split="train", task="ranking")


def test_a_pair_after_a_single_text_is_not_answered_without_its_second_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"text": "a"}\n{"text": "b", "text_pair": null}\n{"text": "c", "text_pair": "d"}\n{"text": "e"}\n'
    )
    rows = list(read_rows(str(tmp_path / "x.jsonl"), labelled=False, lenient=True))
    assert [row.text for row in rows] == ["a", "b", "", "e"]
    assert rows[2].error.startswith('it has a second text, "text_pair", and the first record has none')
    with pytest.raises(DataError, match=r"x.jsonl, line 3: it has a second text"):
        list(read_rows(str(tmp_path / "x.jsonl"), labelled=False))
    named = Columns(text="text")
    assert [row.text for row in read_rows(str(tmp_path / "x.jsonl"), named, labelled=False)] == ["a", "b", "c", "e"]


def test_columns_with_the_names_of_a_models_labels_are_its_labels(write: Write) -> None:
    file = write([{"text": "a", "rude": 1, "threat": 0}, {"text": "b", "rude": 0, "threat": 1}])
    for read in (read_examples, read_data):
        examples = read(file, split="test", task=TAGS, label_names=["threat", "rude"])
        assert (examples.texts, examples.labels) == (["a", "b"], [[0, 1], [1, 0]])  # in the model's order
    with pytest.raises(DataError, match="no column looks like the label"):
        read_examples(file, split="test", task=TAGS, label_names=["threat", "spam"])
    with pytest.raises(DataError, match="no column looks like the label"):
        read_examples(file, split="test", task=ONE, label_names=["threat", "rude"])
