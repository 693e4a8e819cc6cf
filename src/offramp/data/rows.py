"""Records become rows: a text or a pair, a label, a location, or the reason why a record cannot be used.

The columns to use are chosen once, from the first record.
"""

import itertools
import reprlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from offramp.data.classes import NO_CLASS
from offramp.data.columns import GUESSED, Columns, choose_columns, first_pair
from offramp.data.labels import integer_spelled, is_missing
from offramp.data.lines import surrogate
from offramp.data.records import NoRows, Record, Source, Unusable
from offramp.errors import DataError

Text = str | tuple[str, str]  # a text, or a pair

FIRST = 100  # records of which, in lenient reading, one has the columns


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        label: as the source has it, a mapping of several columns; None where there is no label column, and for the -1
            of a column whose classes the source names.
        location: such as "reviews.csv, line 12".
        line: the number in `location`.
        error: why the row cannot be used, without the location; its text is "" then. None for a good row.
        broken: the source breaks off here; what follows is not read.
    """

    text: Text
    label: object
    location: str
    line: int
    error: str | None = None
    broken: bool = False


def rows_of(
    source: Source, columns: Columns = GUESSED, *, labelled: bool = True, lenient: bool = False
) -> Iterator[Row]:
    """Stream the rows of an open source; the arguments are those of `read_rows`."""
    with closing_source(source):
        columns, source = with_columns(source, columns, labelled, lenient)
        record = None
        for record in source.records:
            row = _row(record, columns, source.class_names, labelled)
            if row.error is not None and not lenient:
                raise DataError(f"{row.location}: {row.error}")
            yield row
        if record is None:
            raise NoRows(f"{source.name}: there are no rows")


@contextmanager
def closing_source(source: Source) -> Iterator[None]:
    """Close the file of a source at the end, after an error too."""
    records = source.records
    try:
        yield
    finally:
        if isinstance(records, Generator):
            records.close()


def with_columns(
    source: Source, columns: Columns, labelled: bool, lenient: bool = False, own_labels: Sequence[str] = ()
) -> tuple[Columns, Source]:
    """Return the columns to read, chosen from the first record, and the source with all of its records.

    Where lenient, one of the first records that has the columns chooses them. `own_labels` as in `choose_columns`.

    Raises:
        DataError: no record has these columns, or one of them cannot be used in any record.
    """
    guessed = columns.guessed or columns.text is None
    first, problem = [], None
    for record in itertools.islice(source.records, FIRST if lenient else 1):
        first.append(record)
        if record.values is None:
            continue
        try:
            columns, problem = choose_columns(columns, record.values, source.name, labelled, own_labels), None
        except DataError as error:
            problem = problem or error
            continue
        second = first_pair(list(record.values))[1] if columns.guessed and columns.pair is None else None
        if second is not None:
            ways = "say --text-column and --pair-column, or answer it by itself"
            raise DataError(f'{source.name}: it has a second text, "{second}", and the first file has none; {ways}')
        for column in filter(None, (columns.text, columns.pair, *columns.labels)):
            value = record.values[column]
            if isinstance(value, Unusable) and value.column:
                raise DataError(f"{source.name}: {value.reason}")
        break
    try:
        if problem is not None:
            raise problem
    finally:
        del problem  # its traceback holds this frame, and with it the open file
    records: Iterator[Record] = itertools.chain(first, source.records)
    if guessed and columns.pair is None and first and first[-1].values is not None:
        records = _of_one_text(records, first[-1].values)
    return columns, replace(source, records=records)


def _of_one_text(records: Iterator[Record], chooser: Mapping[str, Any]) -> Iterator[Record]:
    """Yield records; one that is a pair, where the record that chose the columns had a single text, as an error."""
    for record in records:
        if record.values is not None and record.values.keys() != chooser.keys():
            second = first_pair(list(record.values))[1]
            if second is not None and record.values[second] is not None:
                reason = f'it has a second text, "{second}", and the first record has none'
                record = replace(record, values=None, error=f"{reason}; say --text-column and --pair-column")
        yield record


def _row(record: Record, columns: Columns, class_names: Mapping[str, Sequence[str]], labelled: bool) -> Row:
    """Return a record as a row; one that cannot be used as a row with an error."""
    if record.values is None:
        return Row("", None, record.location, record.line, record.error, record.broken)
    try:
        texts = [_text(record.values, column) for column in (columns.text, columns.pair) if column]
        label = _label(record.values, columns, class_names, labelled)
    except DataError as error:
        return Row("", None, record.location, record.line, str(error))
    return Row((texts[0], texts[1]) if columns.pair else texts[0], label, record.location, record.line)


def _label(
    values: Mapping[str, Any], columns: Columns, class_names: Mapping[str, Sequence[str]], labelled: bool
) -> object:
    """Return a record's label; of several columns their values by name."""
    for column in columns.labels:
        _refuse_unusable(values.get(column), column)
        if labelled and is_missing(values.get(column)) and column not in class_names:
            raise DataError(f'the label, column "{column}", is missing')
    if len(columns.labels) > 1:
        return {column: values.get(column) for column in columns.labels}
    if not columns.labels:
        return None
    label = values.get(columns.labels[0])
    secret = columns.labels[0] in class_names and integer_spelled(str(label)) == NO_CLASS
    return None if secret else label


def _text(record: Mapping[str, Any], column: str) -> str:
    text = record.get(column)
    if text is None:
        raise DataError(f'there is no "{column}"')
    _refuse_unusable(text, column)
    if not isinstance(text, str):
        raise DataError(f'"{column}" must be a text, found {reprlib.repr(text)}')
    if not text.strip():
        raise DataError(f'"{column}" is blank')
    return text


def _refuse_unusable(value: object, column: str) -> None:
    if isinstance(value, Unusable):
        raise DataError(f'"{column}": {value.reason}')
    if isinstance(value, str) and (half := surrogate(value)):
        raise DataError(f'"{column}" holds half a character, the lone surrogate {half!a}; no encoding has it')
