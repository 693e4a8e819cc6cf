"""Kinds of input: what a source is guessed to be, pipes, encodings, JSON arrays, and sources that break off."""

import gzip
import io
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offramp.data.examples import Columns, read_column, read_rows
from offramp.data.readers import open_source
from offramp.data.records import Reading
from offramp.errors import DataError, InvalidInput

Log = pytest.LogCaptureFixture
TWO = [{"text": "a, b"}, {"text": "c"}]
LINES = "".join(json.dumps(record) + "\n" for record in TWO)


def values(source: Path | str, **reading: Any) -> list[Any]:
    """Return the values of the records, or in their place the errors."""
    records = open_source(str(source), "train", Reading(**reading)).records
    return [record.values if record.error is None else record.error for record in records]


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (LINES, "an object a line", TWO),
        ("\n\n" + LINES, "an object a line", TWO),
        ('{ "text" : "cut off\n' + LINES, "an object a line", 3),
        (json.dumps(TWO) + "\n", "a JSON array", TWO),
        (json.dumps(TWO, indent=2), "a JSON array", TWO),
        ("[\n" + ",\n".join(map(json.dumps, TWO)) + "\n]\n", "a JSON array", TWO),
        ("{name}, where is it?\nno\n", "text lines", [{"text": "{name}, where is it?"}, {"text": "no"}]),
        ('["urgent"] where is it?\n', "text lines", [{"text": '["urgent"] where is it?'}]),
        ("[urgent] where is it?\n", "text lines", [{"text": "[urgent] where is it?"}]),
        ('"quoted"\n\n', "text lines", [{"text": '"quoted"'}, {"text": ""}]),
        ("text,label\na,1\n", "text lines", [{"text": "text,label"}, {"text": "a,1"}]),
    ],
)
@pytest.mark.parametrize("name", ["-", "app.log", "data", "data.gz", "packed"])
def test_a_kind_that_no_name_says_is_guessed_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log, name: str, content: str, kind: str, expected: Any
) -> None:
    caplog.set_level(logging.INFO, logger="offramp")
    monkeypatch.chdir(tmp_path)
    raw = gzip.compress(content.encode()) if name in ("data.gz", "packed") else content.encode()
    if name == "-":
        stdin(monkeypatch, raw)
    else:
        Path(name).write_bytes(raw)
    found = values(name)
    assert (len(found) if isinstance(expected, int) else found) == expected
    source = "standard input" if name == "-" else name
    assert caplog.messages[0] == f"{source}: read as {kind}; --format says otherwise"


@pytest.mark.parametrize(
    ("reading", "content", "expected"),
    [
        ({"format": "csv"}, b'text,label\n"a, b",1\n', [{"text": "a, b", "label": "1"}]),
        ({"delimiter": ";"}, b"text;label\na, b;1\n", [{"text": "a, b", "label": "1"}]),
        ({"format": "csv", "delimiter": "tab"}, b"text\tlabel\na, b\t1\n", [{"text": "a, b", "label": "1"}]),
        ({"format": "tsv", "delimiter": "\\t"}, b"text\tlabel\na, b\t1\n", [{"text": "a, b", "label": "1"}]),
        ({"format": "jsonl"}, LINES.encode(), TWO),
        ({"format": "json"}, LINES.encode(), TWO),
        ({"format": "json"}, b'["a", "b"]', [{"text": "a"}, {"text": "b"}]),
        ({"format": "txt"}, b'{"text": "a"}', [{"text": '{"text": "a"}'}]),
        ({"format": "txt", "encoding": "latin-1"}, b"\xe9t\xe9", [{"text": "été"}]),
        ({"format": "txt", "encoding": "cp1252"}, b"\x80 \x81", ["not cp1252 (byte 0x81); --encoding takes another, "]),
        ({"format": "csv", "encoding": "utf-16"}, "text,b\né,1\n".encode("utf-16"), [{"text": "é", "b": "1"}]),
        ({"format": "csv", "encoding": "utf-16-le"}, "\ufefftext\né\n".encode("utf-16-le"), [{"text": "é"}]),
        ({"format": "jsonl", "encoding": "utf-16"}, LINES.encode("utf-16"), TWO),
        ({"format": "txt", "encoding": "utf-32"}, "é\r\nà".encode("utf-32"), [{"text": "é"}, {"text": "à"}]),
        ({"format": "txt"}, "é\r\nà".encode("utf-16"), [{"text": "é"}, {"text": "à"}]),  # by its mark
    ],
)
@pytest.mark.parametrize("source", ["-", "file.txt"])
def test_what_the_user_says_of_a_source_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reading: Any, content: bytes, expected: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    stdin(monkeypatch, content)
    Path("file.txt").write_bytes(content)
    found = values(source, **reading)
    assert [value[: len(expected[0])] if isinstance(value, str) else value for value in found] == expected


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"format": "xlsx"}, "unknown format 'xlsx'; expected one of csv, tsv, jsonl, json, txt, parquet"),
        ({"delimiter": "::"}, "a delimiter is one character, such as , or ; or tab, got '::'"),
        ({"delimiter": '"'}, "a delimiter is one character"),
        ({"encoding": "latin"}, None),
        ({"encoding": "utf-9"}, "unknown encoding 'utf-9'; such as utf-8, latin-1, cp1252 or utf-16"),
        ({"encoding": "rot13"}, "unknown encoding 'rot13'"),
    ],
)
def test_a_reading_is_checked(reading: dict[str, str], message: str | None) -> None:
    if message is None:
        assert Reading(**reading)
        return
    with pytest.raises(InvalidInput) as caught:
        Reading(**reading)
    assert str(caught.value).startswith(message)


def test_utf_16_without_its_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\na\n".encode("utf-16-be"))
    with pytest.raises(DataError, match=r"a\.csv: no byte order mark; say --encoding utf-16-le or utf-16-be"):
        values(tmp_path / "a.csv", encoding="utf-16")
    (tmp_path / "a.csv").write_bytes(b"")
    assert values(tmp_path / "a.csv", encoding="utf-16") == []


def test_pipes_are_read_once(tmp_path: Path) -> None:
    end, start = os.pipe()
    os.write(start, b"where is it\n")
    os.close(start)
    assert values(f"/dev/fd/{end}") == [{"text": "where is it"}]
    os.close(end)
    fifo = tmp_path / "rows.csv"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"text,label\na,1\n"))
    writer.start()
    assert [row.text for row in read_rows(str(fifo))] == ["a"]
    writer.join()
    with pytest.raises(DataError, match=r"rows\.csv is read once, for the texts; give a file to read its column"):
        read_column(str(fifo), "site", split="test")


def test_parquet_is_read_from_a_pipe_and_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a, b", "c"]}), path)
    raw = path.read_bytes()
    stdin(monkeypatch, raw)
    assert values("-", format="parquet") == TWO
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(raw))
    assert values(tmp_path / "b.parquet.gz") == TWO


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", []),
        ('[{"text": "a"}, 7, {"text": "b"}]', [{"text": "a"}, "not a JSON object", {"text": "b"}]),
        (
            '[{"text": "a"}, {"text": }, {"text": "b"}]',
            [{"text": "a"}, "not JSON (Expecting value, near line 1)"],
        ),
        (
            '[{"text": "a"} {"text": "b"}]',
            [{"text": "a"}, "not JSON (Expecting ',' or ']', near line 1)"],
        ),
        ('[{"text": "a"}\n', [{"text": "a"}, "not JSON: the array is not closed"]),
        ('[{"text": "a"},\n{"text": "b', [{"text": "a"}, "not JSON (Unterminated string starting at, near line 2)"]),
        ('[{"text": "a"}]\n{"text": "b"}\n', [{"text": "a"}, "not JSON: something follows the array"]),
        ('[{"text": ' + '["' * 100_000, ["not JSON ("]),
        ('{"text": "a"}\n["b"]\n{"text": "c"}', [{"text": "a"}, "not a JSON object; expected one", {"text": "c"}]),
        ('{"text": "a"}\n{"text": "b"\n', [{"text": "a"}, "not JSON (Expecting ',' delimiter); expected one object"]),
        ('{"text": ' + "[" * 100_000 + "\n", ["not JSON (maximum recursion depth exceeded"]),
    ],
)
def test_json_that_is_wrong_is_one_error_in_its_place(tmp_path: Path, content: str, expected: list[Any]) -> None:
    (tmp_path / "a.json").write_text(content)
    found = values(tmp_path / "a.json")
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        assert value[: len(wanted)] == wanted if isinstance(wanted, str) else value == wanted


def test_a_source_that_breaks_off_loses_nothing_before(tmp_path: Path) -> None:
    lines = [f"{number**2} words" for number in range(20_000)]
    raw = gzip.compress("\n".join(["text", *lines]).encode())
    (tmp_path / "a.csv.gz").write_bytes(raw[: len(raw) // 2])
    rows = list(read_rows(str(tmp_path / "a.csv.gz"), labelled=False, lenient=True))
    assert len(rows) > 5_000
    assert [row.text for row in rows[:-1]] == lines[: len(rows) - 1]
    assert rows[-1].error == "cannot be read: Compressed file ended before the end-of-stream marker was reached"
    assert rows[-1].line == len(rows) + 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"a\n\nb\n \n", {1: "a", 2: '"text" is blank', 3: "b", 4: '"text" is blank'}),
        ("a.txt", b"a\n\xff\nb\n", {1: "a", 2: "not UTF-8 (byte 0xff); if the text is in", 3: "b"}),
        ("a.jsonl", b'{"id": 7}\n{"text": "a"}\n', {1: 'there is no "text"', 2: "a"}),  # the second has the columns
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 7}\n', {1: "a", 3: '"text" must be a text, found 7'}),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', {1: "\"text\" holds half a character, the lone surrogate '\\ud83d'"}),
        ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n', {1: "\U0001f600"}),
        ("a.csv", b"id,text\n1,a\n2,\n\n3\n4,b\n", {2: "a", 3: '"text" is blank', 5: "1 fields, where", 6: "b"}),
    ],
)
def test_lenient_rows_keep_their_place(tmp_path: Path, name: str, content: bytes, expected: dict[int, str]) -> None:
    (tmp_path / name).write_bytes(content)
    rows = list(read_rows(str(tmp_path / name), labelled=False, lenient=True))
    assert [row.line for row in rows] == list(expected)
    for row, wanted in zip(rows, expected.values(), strict=True):
        assert (row.error or row.text)[: len(wanted)] == wanted


def test_columns_that_no_record_has_are_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2}\n' * 3)
    with pytest.raises(DataError, match="no column looks like the text"):
        next(read_rows(str(tmp_path / "a.jsonl"), labelled=False, lenient=True))


# names of classes


def test_class_names_are_those_of_the_source(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["pos", "neg"]),
            "labels": datasets.Sequence(datasets.ClassLabel(names=["x", "y"])),
        }
    )
    data = datasets.Dataset.from_dict({"text": ["a"], "label": [1], "labels": [[0, 1]]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "several")
    named = {"label": ("pos", "neg"), "labels": ("x", "y")}
    for source in ("a.parquet", "one", "several"):
        opened = open_source(str(tmp_path / source), "train")
        assert opened.class_names == named
        assert [record.values for record in opened.records] == [{"text": "a", "label": 1, "labels": [0, 1]}]
    with pytest.raises(DataError, match="several: no split 'dev'; expected one of train, test"):
        open_source(str(tmp_path / "several"), "dev")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    (tmp_path / "labels.json").write_text('["neg", "pos"]')
    assert open_source(str(tmp_path / "rows.jsonl"), "train").class_names == {"": ("neg", "pos")}
    assert open_source(str(tmp_path / "a.parquet"), "train").class_names == {"": ("neg", "pos")} | named
    (tmp_path / "labels.json").write_text("{}")
    assert open_source(str(tmp_path / "rows.jsonl"), "train").class_names == {}


def test_cells_of_parquet_that_python_cannot_hold_are_unusable(tmp_path: Path) -> None:
    dates = pa.array([0, 2**61], pa.timestamp("us"))  # the second lies after the year 9999
    pq.write_table(pa.table({"text": ["a", "b"], "date": dates}), tmp_path / "a.parquet")
    assert [row.text for row in read_rows(str(tmp_path / "a.parquet"), labelled=False)] == ["a", "b"]
    rows = list(
        read_rows(str(tmp_path / "a.parquet"), Columns(text="text", label="date"), labelled=False, lenient=True)
    )
    assert rows[0].error is None
    assert str(rows[1].error).startswith('"date": the cell cannot be read: ')
