"""Any texts in any kind of file: rows in == rows out + rows reported, texts come back exactly, no error but our own."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.data.columns import Columns
from offramp.data.examples import read_rows
from offramp.data.records import FORMATS, Reading
from offramp.data.rows import Row
from offramp.errors import OfframpError

Write = Callable[[Path, list[str]], None]
COLUMNS = Columns(text="text")
# what readers stumble over, beside ordinary letters; no NUL, which Python's csv module refuses before 3.11
TEXTS = st.text(st.sampled_from("ab\"'\\,;\t\n\r |{}[]:é🙂\u2028\x85\x1c\ufeff"), min_size=1, max_size=12)
ROWS = st.lists(TEXTS, min_size=1, max_size=8)
LONG = "word " * 40_000


def quoted(delimiter: str) -> Write:
    def write(path: Path, texts: list[str]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["id", "text"])
            writer.writerows(enumerate(texts))

    return write


def bare_tabs(path: Path, texts: list[str]) -> None:
    lines = [f"{number}\t{text}\n" for number, text in enumerate(texts)]
    path.write_bytes(("id\ttext\n" + "".join(lines)).encode())


def json_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def json_array(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts], indent=len(texts) % 3 or None, ensure_ascii=False))


def text_lines(path: Path, texts: list[str]) -> None:
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())


def parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path)


def anything(text: str) -> bool:
    return True


def one_line(text: str) -> bool:
    """No line end, and no tab: what tsv without quotes and txt cannot hold; a mark at the start of a file is none."""
    return not set("\n\r\t\ufeff") & set(text)


def one_bare_cell(text: str) -> bool:
    """A cell that is no rightly quoted one either."""
    return one_line(text) and not (text.startswith('"') and text.endswith('"'))


KINDS: dict[str, tuple[str, Write, Callable[[str], bool]]] = {
    "csv": ("a.csv", quoted(","), anything),
    "tsv in quotes": ("a.tsv", quoted("\t"), lambda text: not {"\n", "\t"} <= set(text)),
    "tsv without": ("a.tsv", bare_tabs, one_bare_cell),
    "jsonl": ("a.jsonl", json_lines, anything),
    "json": ("a.json", json_array, anything),
    "txt": ("a.txt", text_lines, one_line),
    "parquet": ("a.parquet", parquet, anything),
}


def read(path: Path, **reading: Any) -> list[Row]:
    return list(read_rows(str(path), COLUMNS, labelled=False, reading=Reading(**reading), lenient=True))


def check_texts(kind: str, texts: list[str], folder: Path) -> None:
    name, write, holds = KINDS[kind]
    texts = [text for text in texts if holds(text)]
    if not texts:
        return
    write(folder / name, texts)
    rows = read(folder / name)
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        assert (row.text, row.error) == ((text, None) if text.strip() else ("", '"text" is blank'))


def check_bytes(kind: str, content: bytes, folder: Path) -> None:
    """Any bytes are read to their end or refused by an error of offramp; a line is read or reported."""
    path = folder / "bytes"
    path.write_bytes(content)
    refused, rows = None, list[Row]()
    try:
        rows = read(path, format=kind)
    except OfframpError as error:
        refused = str(error)
    assert "\n" not in (refused or "")
    assert [row.line for row in rows] == sorted({row.line for row in rows})
    assert all(row.error is None or "\n" not in row.error for row in rows)
    marked = content.startswith((b"\xff\xfe", b"\x1f\x8b"))  # UTF-16, gzip
    if kind == "txt" and refused is None and not marked and b"\r" not in content:
        assert len(rows) == len(io.BytesIO(content).readlines())


PIECES = (
    *(b'"', b"\n", b"\r", b",", b"\t", b"a", b"\xe9", b"\xff\xfe", b"\0", b"text", b"{", b"}", b"[", b"]", b"\\", b":"),
    *(b'{"text": "a"}', b'"text":', b"\x1f\x8b", b"PAR1", "é".encode(), b"\xed\xa0\xbd"),
)
BYTES = st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join)
STARTS = {"csv": b"id,text\n", "tsv": b"id\ttext\n", "jsonl": b"", "json": b"[", "txt": b"", "parquet": b"PAR1"}


def bounded(examples: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, suppress_health_check=checks)


@pytest.mark.parametrize("kind", KINDS)
@bounded(15)
@given(texts=ROWS)
def test_texts_come_back_exactly(kind: str, texts: list[str], tmp_path: Path) -> None:
    check_texts(kind, texts, tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
@bounded(16)
@given(content=BYTES)
def test_any_bytes_are_read_or_refused_in_words(kind: str, content: bytes, tmp_path: Path) -> None:
    check_bytes(kind, STARTS[kind] + content, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@bounded(1000)
@given(texts=ROWS)
def test_a_thousand_files_of_texts_come_back_exactly(kind: str, texts: list[str], tmp_path: Path) -> None:
    check_texts(kind, texts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@bounded(1000)
@given(content=BYTES)
def test_a_thousand_files_of_bytes_are_read_or_refused(kind: str, content: bytes, tmp_path: Path) -> None:
    check_bytes(kind, STARTS[kind] + content, tmp_path)
