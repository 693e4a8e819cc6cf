r"""Files and pipes as lines of text: opened once, unpacked, decoded, never more than a line in memory.

Lines end where Python's own text files end them with "\n" or "\r\n"; a file whose first block has "\r" alone ends
its lines so. A byte that cannot be decoded becomes a lone surrogate, so that the line can be named and the others read.
"""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import re
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from offramp.errors import DataError, one_line

LONGEST = 2**26
"""The most characters of a line or of a quoted cell: what bounds the memory where a file is not what it seems."""
GZIP, MARKS = b"\x1f\x8b", {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after those of UTF-32, which begin alike
PACKED = {
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or save the sheet as csv",
    b"\xd0\xcf\x11\xe0": "an old workbook; save the sheet as csv",
    b"BZh91AY&SY": "packed by bzip2; unpack it, or pack it by gzip",
    b"\xfd7zXZ\x00": "packed by xz; unpack it, or pack it by gzip",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it, or pack it by gzip",
    b"PAR1\x15": "parquet; say --format parquet",
    b"ARROW1\x00": "an Arrow file; save it as parquet",
    b"%PDF-": "a PDF; save its text",
}
"""First bytes of files that are no text, and what to do."""
SURROGATE = re.compile("[\ud800-\udfff]")

log = logging.getLogger("offramp")


def _mark_bytes(error: UnicodeError) -> tuple[str, int]:
    """Return bytes that cannot be decoded as lone surrogates, U+DC00 and the byte."""
    assert isinstance(error, UnicodeDecodeError)  # nothing is encoded with this
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("offramp.mark_bytes", _mark_bytes)


@contextmanager
def open_bytes(source: str) -> Iterator[io.BufferedReader]:
    """Open a file, or "-" for standard input, which is left open; unpack it if it is gzip.

    Raises:
        OSError, EOFError, zlib.error: it cannot be read.
    """
    if source == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed; name a file")
        stdin = sys.stdin.buffer
        yield _unpacked(source, stdin if hasattr(stdin, "peek") else io.BufferedReader(stdin))  # type: ignore[arg-type]
    else:
        with open(source, "rb") as file:
            yield _unpacked(source, file)


def _unpacked(source: str, file: io.BufferedReader) -> io.BufferedReader:
    packed = source.lower().endswith(".gz") or file.peek(2)[:2] == GZIP
    return gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[return-value]


def surrogate(text: str) -> str | None:
    """Return the first lone surrogate of a text: half a character, or a byte that could not be decoded."""
    match = None if text.isascii() else SURROGATE.search(text)
    return None if match is None else match[0]


class Lines:
    """The lines of a file, with their ends.

    Attributes:
        name: the file in messages.
        number: of the last line that was returned, from 1.
        broken: why reading stopped before the end of the file; "" where it did not.
    """

    def __init__(self, name: str, file: io.BufferedReader, encoding: str | None = None) -> None:
        self.name, self.encoding = name, encoding or "utf-8"
        self.number, self.broken = 0, ""
        self._again = deque[str]()
        self._text: io.TextIOWrapper | None = None
        try:
            self._text = self._decoded(file, encoding)
        except UNREADABLE as error:
            self.broken = f"cannot be read: {one_line(error)}"

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def close(self) -> None:
        """Let go of the file, which stays open."""
        if self._text is not None and not self._text.closed:
            self._text.detach()

    def head(self) -> list[str]:
        """Return the lines up to the first that is not blank, without taking them."""
        head: list[str] = []
        for line in self:
            head.append(line)
            if line.strip():
                break
        self.push_back(head)
        return head

    def push_back(self, lines: Iterable[str]) -> None:
        """Return lines once more, in their order."""
        again = list(lines)
        self._again.extendleft(reversed(again))
        self.number -= len(again)

    def undecoded(self, text: str) -> str | None:
        """Return what is wrong with a text that holds bytes that could not be decoded."""
        marked = surrogate(text)
        if marked is None:
            return None
        byte = f"byte 0x{ord(marked) & 0xFF:02x}"
        if self.encoding != "utf-8":
            return f"not {self.encoding} ({byte}); --encoding takes another, such as utf-8, latin-1 or utf-16"
        return f"not UTF-8 ({byte}); if the text is in Latin-1, say --encoding latin-1"

    def _read(self) -> str:
        if self.broken or self._text is None:
            return ""
        try:
            line = self._text.readline(LONGEST)
        except UNREADABLE as error:
            self.broken = f"cannot be read: {one_line(error)}"
            return ""
        if len(line) == LONGEST and not line.endswith(("\n", "\r")):
            self.broken = f"more than {LONGEST:,} characters without a line end"
            return ""
        return line

    def _decoded(self, file: io.BufferedReader, encoding: str | None) -> io.TextIOWrapper:
        """Return a file as text: its encoding by its mark, its line ends by its first block."""
        start = file.peek(10)
        for first, what in PACKED.items():
            if start.startswith(first):
                raise DataError(f"{self.name}: {what}")
        mark = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        if encoding is None and mark is not None:
            log.info("%s: read as %s, by its byte order mark", self.name, mark)
            self.encoding = mark
        elif encoding is None and start.count(0) > len(start) // 4:
            raise DataError(f"{self.name}: not text; if it is UTF-16, say --encoding utf-16-le or utf-16-be")
        elif start and mark is None and codecs.lookup(self.encoding).name in ("utf-16", "utf-32"):
            own = self.encoding
            raise DataError(
                f"{self.name}: no byte order mark; say --encoding {own}-le or {own}-be if it is {own} at all"
            )
        block = codecs.getincrementaldecoder(self.encoding)("offramp.mark_bytes").decode(start)
        end = "\r" if "\r" in block[:-1] and "\n" not in block else "\n"
        text = io.TextIOWrapper(file, self.encoding, "offramp.mark_bytes", newline=end)
        if block.startswith("\ufeff"):
            text.read(1)
        return text


UNREADABLE = (OSError, EOFError, zlib.error, UnicodeError)
"""Errors of a file that cannot be read, or not to its end."""
