r"""Records from csv and tsv.

csv is read as RFC 4180 has it: a cell in quotes may hold delimiters, line ends and doubled quotes. A record that is
wrong by that, and right where `\"` stands for a quote, as data bases write it, is read so.

tsv comes in two kinds, with quotes as in csv and without any (GLUE), and no file says which. A line without a cell that
begins with a quote is split at tabs. Of the others, those that are right as csv are read as csv; what is left is split
at tabs, and its quotes are text. A cell goes over several lines only where these lines alone are no rows.

Python's csv module reads records with quotes; others need no more than a split: 25 to 50 MB a second on one core.
pyarrow reads 200 to 260, but knows no line numbers, merges the lines between two stray quotes, and bounds a record by
its block. Tokenizers read about 2.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Iterator

from offramp.data.lines import LONGEST, Lines
from offramp.data.records import NoRows, Record, by_name
from offramp.errors import DataError

DELIMITERS = {";": '";"', "\t": "tab", ",": '","', "|": '"|"'}
"""Delimiters that a header may show, as they are written on the command line."""
QUOTED_TABS, NO_CELLS = "--format csv --delimiter tab", "--format txt"

log = logging.getLogger("offramp")
Cells = list[str]


def delimited_records(lines: Lines, delimiter: str | None, *, tsv: bool) -> Iterator[Record]:
    """Yield the records of csv, or of tsv; where one cannot be read, it has an error, and the next line follows it.

    Args:
        lines: the header's first.
        delimiter: None is "," in csv and a tab in tsv, and then a header that shows another one is refused.
        tsv: quotes may be text, see above.

    Raises:
        DataError: the header cannot be read, or is all that there is.
    """
    table = _Table(lines, delimiter or ("\t" if tsv else ","), tsv)
    rows = iter(table)
    header = table.header(rows, refuse_others=delimiter is None)
    values_of, width, count = by_name(header), len(header), 0
    for number, cells in rows:
        count += 1
        location = f"{lines.name}, line {number}"
        if isinstance(cells, str):
            yield Record(location, number, None, cells)
        elif len(cells) != width:
            span = f"; its quoted cell ends in line {lines.number}" if lines.number > number else ""
            error = f"{len(cells)} fields, where the header has {width}{span}"
            yield Record(location, number, None, error)
        else:
            yield Record(location, number, values_of(cells))
    if header and not count and not lines.broken:
        raise NoRows(f"{lines.name}: a header and no rows; the first line names the columns")
    if table.blank:
        log.info("%s: %d blank lines are no rows", lines.name, table.blank)


class _Table:
    """The cells of a file, record by record; an error in words where they cannot be read."""

    def __init__(self, lines: Lines, delimiter: str, tsv: bool) -> None:
        self.lines, self.delimiter, self.tsv = lines, delimiter, tsv
        self.width: int | None = None  # of the header
        self.blank = 0
        self.noted = set[str]()

    def __iter__(self) -> Iterator[tuple[int, Cells | str]]:
        for line in self.lines:
            if not line.strip() and self.delimiter not in line:
                self.blank += 1
                continue
            number = self.lines.number
            yield number, self.lines.undecoded(line) or self._cells(line)

    def header(self, rows: Iterator[tuple[int, Cells | str]], refuse_others: bool) -> Cells:
        """Return the names of the columns; [] for an empty file."""
        number, cells = next(rows, (0, []))
        location = f"{self.lines.name}, line {number}"
        if isinstance(cells, str):
            raise DataError(f"{location}: {cells}")
        if len(cells) == 1 and refuse_others:
            for other, written in DELIMITERS.items():
                if other in cells[0]:
                    shown = cells[0] if len(cells[0]) <= 60 else f"{cells[0][:57]}..."
                    own = DELIMITERS[self.delimiter]
                    tip = f"if {written} separates columns, say --delimiter {written}, else --delimiter {own}"
                    raise DataError(f"{location}: one column, {shown!r}; {tip}")
        self.width = len(cells)
        return [cell.strip() for cell in cells]

    def _cells(self, line: str) -> Cells | str:
        body = line.removesuffix("\n").removesuffix("\r")
        if '"' not in body and "\r" not in body:
            return body.split(self.delimiter)
        return self._tsv_cells(line, body.split(self.delimiter)) if self.tsv else self._csv_cells(line)

    def _csv_cells(self, line: str) -> Cells | str:
        cells, taken = self._quoted(line, self.lines)
        if isinstance(cells, str):
            self.lines.push_back(taken)
            if '\\"' in line:
                escaped, taken = self._quoted(line, self.lines, unescape=True)
                if not isinstance(escaped, str) and self.width in (None, len(escaped)):
                    self._note(r"\" is a quote inside a cell, as data bases write it")
                    return escaped
                self.lines.push_back(taken)
            return cells
        return self._decoded(cells, taken)

    def _tsv_cells(self, line: str, literal: Cells) -> Cells | str:
        if not any(cell.startswith('"') for cell in literal):
            return literal
        cells, _ = self._quoted(line, ())
        if not isinstance(cells, str) and self.width in (None, len(cells)):
            self._note("cells in quotes are read without the quotes")
            return cells
        right = len(literal) == self.width
        if not (right and len(literal) > 1 and self._next_is_row()):
            cells, taken = self._quoted(line, self.lines)
            if not isinstance(cells, str) and len(cells) == self.width:
                if right and len(literal) == 1:
                    first = self.lines.number - len(taken)
                    ways = f"{QUOTED_TABS} reads quotes, {NO_CELLS} takes every line as a text"
                    return f"lines {first} to {self.lines.number} are one cell in quotes or several rows; {ways}"
                return self._decoded(cells, taken)
            self.lines.push_back(taken)
        if right:
            self._note(f"a quote that is not closed is text; {QUOTED_TABS} reads all quotes as csv does")
        return literal

    def _decoded(self, cells: Cells, taken: list[str]) -> Cells | str:
        return next(filter(None, map(self.lines.undecoded, taken)), None) or cells

    def _next_is_row(self) -> bool:
        """Return whether the next line, if there is one, has as many cells as the header."""
        line = next(self.lines, None)
        if line is None:
            return True
        self.lines.push_back([line])
        return line.count(self.delimiter) + 1 == self.width

    def _quoted(self, first: str, more: Iterable[str], unescape: bool = False) -> tuple[Cells | str, list[str]]:
        """Return the cells of a record as csv, or what is wrong, and the lines after the first that it took."""
        taken: list[str] = []

        def feed() -> Iterator[str]:
            yield first
            size = len(first)
            for line in more:
                taken.append(line)
                size += len(line)
                if size > LONGEST:
                    return
                yield line

        lines: Iterable[str] = (_unescaped(line) for line in feed()) if unescape else feed()
        number, limit = self.lines.number, csv.field_size_limit(LONGEST)
        try:
            cells = next(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            return _explained(error, [first, *taken], number), taken
        finally:
            csv.field_size_limit(limit)
        return cells, taken

    def _note(self, rule: str) -> None:
        """Log a rule with the line where it is first needed."""
        if rule not in self.noted:
            log.info("%s, line %d: %s", self.lines.name, self.lines.number, rule)
        self.noted.add(rule)


def _unescaped(line: str) -> str:
    return re.sub(r'\\([\\"])', lambda match: '""' if match[1] == '"' else "\\", line)


def _explained(error: csv.Error, lines: Cells, number: int) -> str:
    r"""Return an error of the csv module with the line on which its quote opens, in one line, tabs as \t."""
    opening, inside = number, False
    for offset, line in enumerate(lines):
        if line.count('"') % 2:
            opening, inside = opening if inside else number + offset, not inside
    words = str(error).replace("\t", "\\t")
    if words.startswith("unexpected end"):
        return f"not csv: {words}: the quote that opens in line {opening} is never closed"
    if len(lines) > 1:
        return f"not csv: {words} in line {number + len(lines) - 1}, where the quote of line {opening} ends"
    return f'not csv: {words}; inside a cell in quotes a quote is written twice ("")'
