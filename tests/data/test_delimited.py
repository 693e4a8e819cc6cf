import csv
import gzip
import io
import logging
from pathlib import Path
from typing import Any

import pytest

from offramp.data.delimited import delimited_records
from offramp.data.examples import Columns, read_rows
from offramp.data.lines import Lines
from offramp.data.records import Reading
from offramp.errors import DataError

Log = pytest.LogCaptureFixture


def records(content: str | bytes, *, tsv: bool = False, delimiter: str | None = None) -> dict[int, Any]:
    """Return the values by line, or in their place the errors."""
    raw = content.encode() if isinstance(content, str) else content
    lines = Lines("a", io.BufferedReader(io.BytesIO(raw)))
    return {
        record.line: record.values if record.error is None else record.error
        for record in delimited_records(lines, delimiter, tsv=tsv)
    }


def texts(content: str | bytes, **how: Any) -> dict[int, str]:
    return {line: values["text"] for line, values in records(content, **how).items()}


LONG = "word " * 40_000  # 200,000 characters


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text,label\n"two\nlines",1\nlast,2\n', {2: "two\nlines", 4: "last"}),
        ('text,label\n"a ""word"", more",1\n', {2: 'a "word", more'}),
        ('text,label\nmy 5" screen,1\n', {2: 'my 5" screen'}),
        ('text,label\nhe said "hi" twice,1\n', {2: 'he said "hi" twice'}),
        ('text,label\n"he said \\"hi, there\\" to C:\\\\x",1\n"b",2\n', {2: 'he said "hi, there" to C:\\x', 3: "b"}),
        ('text,label\n"C:\\",1\n', {2: "C:\\"}),
        (f"text,label\n{LONG},1\nb,2\n", {2: LONG, 3: "b"}),
        (f'text,label\n"{LONG},",1\nb,2\n', {2: f"{LONG},", 3: "b"}),
        ("text,label\r\na,1\r\n\r\nb,2", {2: "a", 4: "b"}),
        ("text,label\ra,1\rb,2\r", {2: "a", 3: "b"}),
        ("\ufefftext,label\nà,1\n", {2: "à"}),
        ('\ufeff"text",label\nà,1\n', {2: "à"}),
        ("text,label\na\0b,1\n", {2: "a\0b"}),
        ("text,label\n  \na,1\n\n\nb,2\n", {3: "a", 6: "b"}),
        ("text\n\x0b\u2028a\x1c\x85\n", {2: "\x0b\u2028a\x1c\x85"}),  # only \n and \r end lines
        ('text\n""\n', {2: ""}),
    ],
)
def test_csv_keeps_every_row_and_its_line(content: str, expected: dict[int, str]) -> None:
    assert texts(content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('id\ttext\n1\t"where is my parcel\n2\tmy 27" screen\n', {2: '"where is my parcel', 3: 'my 27" screen'}),
        ('id\ttext\n1\t"I came.\n2\tI saw."\n', {2: '"I came.', 3: 'I saw."'}),
        ('id\ttext\n1\t"I" said the fly\n2\ta\n', {2: '"I" said the fly', 3: "a"}),
        ('id\ttext\n1\t"he said \\"hi\\" to me"\n', {2: '"he said \\"hi\\" to me"'}),
        ('text\tid\n"last line\t9', {2: '"last line'}),
        (f'id\ttext\n1\t"{LONG}\n2\tb\n', {2: f'"{LONG}', 3: "b"}),
        # rightly quoted
        ('id\ttext\n1\t"a ""word"", more"\n2\tb\n', {2: 'a "word", more', 3: "b"}),
        ('"id"\t"text"\n1\t"a\ttab"\n', {2: "a\ttab"}),
        ('id\ttext\n1\t"two\nlines"\n2\tb\n', {2: "two\nlines", 4: "b"}),
        ('text\tid\n"two\n\n""lines"""\t1\nb\t2\n', {2: 'two\n\n"lines"', 5: "b"}),
        ('text\n"a ""word"""\n', {2: 'a "word"'}),
    ],
)
def test_tsv_is_read_with_quotes_and_without(content: str, expected: dict[int, str]) -> None:
    assert texts(content, tsv=True) == expected


@pytest.mark.parametrize(
    ("how", "content", "expected"),
    [
        # one bad record is one error, and the next line is read
        ({}, "a,1\nb\nc,3\n", {2: "a", 3: "1 fields, where the header has 2", 4: "c"}),
        ({}, "a,1,2\nc,3\n", {2: "3 fields, where the header has 2", 3: "c"}),
        (
            {},
            '"b\nc,2\nd,3\n',
            {2: "not csv: unexpected end of data: the quote that opens in line 2 is never closed", 3: "c", 4: "d"},
        ),
        (
            {},
            'a,1\n"b,2\nc,3\n"d",4\n',
            {2: "a", 3: "not csv: ',' expected after '\"' in line 5, where the quote of line 3 ends", 4: "c", 5: "d"},
        ),
        (
            {},
            '"b" c,2\nd,3\n',
            {2: "not csv: ',' expected after '\"'; inside a cell in quotes a quote is written twice (\"\")", 3: "d"},
        ),
        ({}, '"b\nc",2,3\nd,4\n', {2: "3 fields, where the header has 2; its quoted cell ends in line 3", 4: "d"}),
        (
            {},
            b"\xe9t\xe9,1\nb,2\n",
            {2: "not UTF-8 (byte 0xe9); if the text is in Latin-1, say --encoding latin-1", 3: "b"},
        ),
        (
            {},
            b'"b\n\xe9",1\nb,2\n',
            {2: "not UTF-8 (byte 0xe9); if the text is in Latin-1, say --encoding latin-1", 4: "b"},
        ),
        ({"tsv": True}, '"b\tc\td\ne\t1\n', {2: "3 fields, where the header has 2", 3: "e"}),
    ],
)
def test_a_record_that_cannot_be_read_keeps_its_place(
    how: dict[str, Any], content: str | bytes, expected: dict[int, str]
) -> None:
    raw = content.encode() if isinstance(content, str) else content
    header = b"text\tlabel\n" if how.get("tsv") else b"text,label\n"
    found = records(header + raw, **how)
    assert {line: value if isinstance(value, str) else value["text"] for line, value in found.items()} == expected


def test_one_column_of_tsv_in_quotes_over_lines_is_ambiguous() -> None:
    found = records('text\n"I came.\nI saw."\nI won.\n', tsv=True)
    assert found[2].startswith(
        "lines 2 to 3 are one cell in quotes or several rows; --format csv --delimiter tab reads"
    )
    assert found[4] == {"text": "I won."}


@pytest.mark.parametrize(
    ("content", "how", "message"),
    [
        (
            "text;label\na;1\n",
            {},
            'a, line 1: one column, \'text;label\'; if ";" separates columns, say --delimiter ";"',
        ),
        (
            "text\tlabel\na\t1\n",
            {},
            "a, line 1: one column, 'text\\tlabel'; if tab separates columns, say --delimiter tab",
        ),
        ("text,label\na,1\n", {"tsv": True}, "a, line 1: one column, 'text,label'; if \",\" separates columns, say"),
        ("text,label\n", {}, "a: a header and no rows; the first line names the columns"),
        (
            '"text,label\na,1\n',
            {},
            "a, line 1: not csv: unexpected end of data: the quote that opens in line 1 is never",
        ),
        (b"t\xe9xt,label\na,1\n", {}, "a, line 1: not UTF-8 (byte 0xe9)"),
    ],
)
def test_a_header_that_cannot_be_used_says_what_to_do(content: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        records(content, **how)
    assert str(caught.value).startswith(message)
    assert "\t" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "delimiter", "expected"),
    [
        ("text;label\na, b;1\n", ";", {"text": "a, b", "label": "1"}),
        ("text|label\na|1\n", "|", {"text": "a", "label": "1"}),
        ('text\tlabel\n"a\tb"\t1\n', "\t", {"text": "a\tb", "label": "1"}),
        ("text;more\na\n", ",", {"text;more": "a"}),
    ],
)
def test_a_delimiter_is_taken_at_its_word(content: str, delimiter: str, expected: dict[str, str]) -> None:
    assert records(content, delimiter=delimiter) == {2: expected}


def test_columns_that_nobody_asks_for_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("v1,v2,,,\nham,hello,,,\nspam,a prize,,,\n")
    assert [(row.text, row.label) for row in read_rows(str(path), Columns("v2", None, "v1"))] == [
        ("hello", "ham"),
        ("a prize", "spam"),
    ]
    path.write_text("x,text,x,label\n1,a,2,b\n")
    assert [row.text for row in read_rows(str(path))] == ["a"]
    for lenient in (False, True):
        with pytest.raises(DataError, match=r'a\.csv: 2 columns are named "x"'):
            next(read_rows(str(path), Columns("x"), lenient=lenient))


def test_a_first_text_that_is_taken_for_a_header_is_logged(tmp_path: Path, caplog: Log) -> None:
    caplog.set_level(logging.INFO, logger="offramp")
    (tmp_path / "a.csv").write_text("where is it\ncancel\n")
    assert [row.text for row in read_rows(str(tmp_path / "a.csv"), labelled=False)] == ["cancel"]
    assert caplog.messages == [f'{tmp_path / "a.csv"}: text from "where is it"']


def test_how_quotes_are_read_is_logged_once(caplog: Log) -> None:
    caplog.set_level(logging.INFO, logger="offramp")
    records('a\tb\n1\t"c"\n1\t"d"\n2\t"e\n2\t"f\n\n\n', tsv=True)
    assert caplog.messages == [
        "a, line 2: cells in quotes are read without the quotes",
        "a, line 4: a quote that is not closed is text; --format csv --delimiter tab reads all quotes as csv does",
        "a: 2 blank lines are no rows",
    ]


def test_the_csv_modules_own_limit_stays(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(f'text,"{LONG}"\na,"b"\n'.encode()))
    assert [row.text for row in read_rows(str(path), labelled=False, reading=Reading(encoding="utf8"))] == ["a"]
    assert csv.field_size_limit() == limit
