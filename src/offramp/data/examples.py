"""Texts and labels from any source: records become rows, and rows become examples.

The columns to use are chosen once, from the first record; then each record becomes a `Row`. Errors begin
with the location.
"""

import logging
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.data.labels import class_index, class_names_of, distinct_classes, is_missing, numbers
from offramp.data.readers import name_of, open_source
from offramp.data.records import AS_NAMED, Reading, Record, Source
from offramp.errors import DataError, UnknownName

Text = str | tuple[str, str]  # a text, or a pair

TASKS = ("classification", "multi-label", "regression")
# names of columns that are tried, best first
PAIR_NAMES = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("text", "text_pair"), ("text", "pair"),
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "sentence1", "premise", "question", "question1",
    "content", "review", "message", "body",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "intent", "class", "category", "target", "score")

log = logging.getLogger("offramp")


@dataclass(frozen=True)
class Columns:
    """The columns to read; None is guessed from the names of the columns."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


GUESSED = Columns()


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        label: as the source has it; None where there is no label column.
        location: such as "reviews.csv, line 12".
        line: the number in `location`.
        error: why the row cannot be used, without the location; its text is "" then. None for a good row.
    """

    text: Text
    label: object
    location: str
    line: int
    error: str | None = None


@dataclass(frozen=True)
class Examples:
    """Labelled data in memory.

    Attributes:
        labels: N class numbers, N lists of K zeros and ones, or N numbers or lists of numbers.
        label_names: the K classes; () for regression.
        problem_type: as transformers names it.

    Example:
        >>> labels = {"labels": [1, 0], "label_names": ("no", "yes"), "problem_type": "single_label_classification"}
        >>> examples = offramp.Examples(["where is it?", "thanks"], **labels)
        >>> len(examples), examples.label_names[examples.labels[0]]
        (2, 'yes')
    """

    texts: list[Text]
    labels: list[int] | list[float] | list[list[float]]
    label_names: tuple[str, ...]
    problem_type: str

    def __len__(self) -> int:
        return len(self.texts)


def read_rows(
    source: str,
    columns: Columns = GUESSED,
    *,
    split: str = "train",
    labelled: bool = True,
    reading: Reading = AS_NAMED,
    lenient: bool = False,
) -> Iterator[Row]:
    """Stream the rows of a source, however many there are.

    Args:
        source: a file, "-" for standard input, "helpdesk", or a Hugging Face data set ("glue/sst2:train").
        columns: the columns to read; a guess is logged.
        split: train, validation or test, where the source holds several and does not name one itself.
        labelled: a row without a label is an error.
        reading: how to read a file, where its name does not say it.
        lenient: yield a row with an error where a record cannot be used, in place of raising.

    Raises:
        DataError: the source cannot be read; not lenient, at the first record that cannot be used.
    """
    return rows_of(open_source(source, split, reading), columns, labelled=labelled, lenient=lenient)


def rows_of(
    source: Source, columns: Columns = GUESSED, *, labelled: bool = True, lenient: bool = False
) -> Iterator[Row]:
    """Stream the rows of an open source; the arguments are those of `read_rows`."""
    record = chosen = None
    for record in source.records:
        if chosen is None and record.values is not None:
            chosen = _choose(columns, record.values, source.name, labelled)
        row = _row(record, chosen or columns, source.class_names, labelled)
        if row.error is not None and not lenient:
            raise DataError(f"{row.location}: {row.error}")
        yield row
    if record is None:
        raise DataError(f"{source.name}: there are no rows")


def _row(record: Record, columns: Columns, class_names: Mapping[str, Sequence[str]], labelled: bool) -> Row:
    """Return a record as a row; one that cannot be used as a row with an error."""
    if record.values is None:
        return Row("", None, record.location, record.line, record.error)
    try:
        texts = [_text(record.values, column) for column in (columns.text, columns.pair) if column]
        label = record.values.get(columns.label) if columns.label else None
        label = _by_name(label, class_names.get(columns.label or ""))
        if labelled and is_missing(label):
            raise DataError(f'the label, column "{columns.label}", is missing')
    except DataError as error:
        return Row("", None, record.location, record.line, str(error))
    return Row((texts[0], texts[1]) if columns.pair else texts[0], label, record.location, record.line)


def _by_name(label: Any, names: Sequence[str] | None) -> Any:
    """Return a class, or a list of classes, by name; -1, the label of rows whose labels are kept secret, is None."""
    if names and isinstance(label, list):
        return [_by_name(item, names) for item in label]
    if names and isinstance(label, int):
        return names[label] if label >= 0 else None
    return label


def read_column(source: str, column: str, *, split: str, reading: Reading = AS_NAMED) -> list[str]:
    """Return one column of a source as text, for every row; a source is as in `read_rows`.

    Raises:
        DataError: there is no such column, or the source cannot be read, or not twice.
    """
    name = name_of(source)
    if source == "-":
        raise DataError(f'{name} is read once, for the texts; give a file to read its column "{column}" too')
    values = []
    opened = open_source(source, split, reading)
    for record in opened.records:
        if record.values is None:
            raise DataError(f"{record.location}: {record.error}")
        if column not in record.values:
            raise DataError(f'{record.location}: no column "{column}"; {_columns_of(record.values)}')
        values.append(str(_by_name(record.values[column], opened.class_names.get(column))))
    return values


def read_examples(
    source: str,
    columns: Columns = GUESSED,
    *,
    split: str,
    task: str = "classification",
    label_names: Sequence[str] | None = None,
    reading: Reading = AS_NAMED,
) -> Examples:
    """Read a labelled source into memory.

    Args:
        source: as in `read_rows`.
        columns: as in `read_rows`.
        split: as in `read_rows`.
        task: classification, multi-label or regression.
        label_names: the classes, where they are known already; None = those of the source, sorted.
        reading: as in `read_rows`.

    Raises:
        DataError: as in `read_rows`, or a label fits neither the task nor `label_names`.
        UnknownName: there is no such task.

    Example:
        >>> examples = offramp.read_examples("helpdesk", split="test")  # the built-in sample
        >>> len(examples), len(examples.label_names)
        (435, 12)
    """
    if task not in TASKS:
        raise UnknownName(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    rows = list(read_rows(source, columns, split=split, reading=reading))
    texts = [row.text for row in rows]
    if task == "regression":
        return Examples(texts, numbers([(row.label, row.location) for row in rows]), (), "regression")
    locations = [row.location for row in rows]
    names = [class_names_of(row.label, row.location, task) for row in rows]
    if label_names is None:
        label_names = distinct_classes(names, locations, name_of(source), task)
    index = {name: number for number, name in enumerate(label_names)}
    ids = [[class_index(name, index, location) for name in row] for row, location in zip(names, locations, strict=True)]
    if task == "classification":
        return Examples(texts, [number for (number,) in ids], tuple(label_names), "single_label_classification")
    tags = [[float(number in row) for number in range(len(label_names))] for row in ids]  # (N, K)
    return Examples(texts, tags, tuple(label_names), "multi_label_classification")


def _choose(columns: Columns, record: Mapping[str, Any], name: str, labelled: bool) -> Columns:
    """Return the columns to read: those asked for, the others guessed from the first record."""
    have = _columns_of(record)
    for column in (columns.text, columns.pair, columns.label):
        if column is not None and column not in record:
            raise DataError(f'{name}: no column "{column}"; {have}')
    free = [column for column in record if column not in (columns.text, columns.pair)]
    label = columns.label or _first(LABEL_NAMES, free)
    if labelled and label is None:
        raise DataError(f"{name}: no column looks like the label, choose it with --label-column; {have}")
    free = [column for column in free if column != label]
    text, pair = columns.text, columns.pair
    if text is None and pair is None:
        text, pair = _first_pair(free)
    strings = [column for column in free if isinstance(record[column], str)]
    text = text or _first(TEXT_NAMES, free) or (strings[0] if len(strings) == 1 else None)
    if text is None:
        raise DataError(f"{name}: no column looks like the text, choose it with --text-column; {have}")
    if len(record) > 1 and columns != Columns(text, pair, label):  # a lone column is no guess
        parts = {"text": text, "pair": pair, "label": label}.items()
        log.info("%s: %s", name, ", ".join(f'{part} from "{column}"' for part, column in parts if column))
    return Columns(text, pair, label)


def _columns_of(record: Mapping[str, Any]) -> str:
    return "the columns are " + ", ".join(f'"{column}"' for column in record)


def _first(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """Return the column whose name comes first in `names`, ignoring case."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _first_pair(columns: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the first of the pairs in `PAIR_NAMES` of which both columns exist."""
    pairs = ((_first([text], columns), _first([pair], columns)) for text, pair in PAIR_NAMES)
    return next((pair for pair in pairs if all(pair)), (None, None))


def _text(record: Mapping[str, Any], column: str) -> str:
    text = record.get(column)
    if text is None:
        raise DataError(f'there is no "{column}"')
    if not isinstance(text, str):
        raise DataError(f'"{column}" must be a text, found {reprlib.repr(text)}')
    if not text.strip():
        raise DataError(f'"{column}" is blank')
    return text
