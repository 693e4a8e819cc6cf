"""Texts and labels from any source: records become rows, and rows become examples.

The columns to use are chosen once, from the first record; then each record becomes a `Row`. Errors begin
with the place.
"""

import itertools
import logging
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.data.readers import name_of, records
from offramp.errors import DataError, UnknownName

Text = str | tuple[str, str]  # a text, or a pair

TASKS = ("classification", "multi-label", "regression")
# what is looked for, best first
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
    """The columns that the user asked for; None is guessed from the names there are."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


GUESSED = Columns()


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        label: as found in the source; None where there is no label column.
        place: such as "reviews.csv, line 12".
    """

    text: Text
    label: object
    place: str


@dataclass(frozen=True)
class Examples:
    """Labelled data in memory.

    Attributes:
        labels: N class numbers, N lists of K zeros and ones, or N numbers or lists of numbers.
        label_names: the K classes; () for regression.
        problem_type: in the words of transformers.
    """

    texts: list[Text]
    labels: list[int] | list[float] | list[list[float]]
    label_names: tuple[str, ...]
    problem_type: str

    def __len__(self) -> int:
        return len(self.texts)


def read_rows(source: str, columns: Columns = GUESSED, *, split: str = "train", labelled: bool = True) -> Iterator[Row]:
    """Stream the rows of a source, however many there are.

    Args:
        source: a file, "-" for standard input, "helpdesk", or a Hugging Face data set ("glue/sst2:train").
        columns: where to look; a guess is logged.
        split: train, validation or test, where the source holds several and does not name one itself.
        labelled: whether a row without a label is an error.

    Raises:
        DataError: at the first thing in the source that cannot be used.
    """
    stream, name = records(source, split), name_of(source)
    first = next(stream, None)
    if first is None:
        raise DataError(f"{name}: there are no rows")
    chosen = _choose(columns, first[1], name, labelled)
    for place, record in itertools.chain([first], stream):
        texts = [_text(record, column, place) for column in (chosen.text, chosen.pair) if column]
        label = record.get(chosen.label) if chosen.label else None
        if labelled and _is_missing(label):
            raise DataError(f'{place}: the label, column "{chosen.label}", is missing')
        yield Row((texts[0], texts[1]) if chosen.pair else texts[0], label, place)


def read_column(source: str, column: str, *, split: str) -> list[str]:
    """One column of a source as text, for every row; a source is as in `read_rows`.

    Raises:
        DataError: there is no such column, or the source cannot be read, or not twice.
    """
    name = name_of(source)
    if source == "-":
        raise DataError(f'{name} is read once, for the texts; give a file to read its column "{column}" too')
    values = []
    for place, record in records(source, split):
        if column not in record:
            raise DataError(f'{place}: no column "{column}"; {_columns_of(record)}')
        values.append(str(record[column]))
    return values


def read_examples(
    source: str,
    columns: Columns = GUESSED,
    *,
    split: str,
    task: str = "classification",
    label_names: Sequence[str] | None = None,
) -> Examples:
    """Read a labelled source into memory.

    Args:
        source: as in `read_rows`.
        columns: as in `read_rows`.
        split: as in `read_rows`.
        task: classification, multi-label or regression.
        label_names: the classes, where they are known already; None takes those found, sorted.

    Raises:
        DataError: as in `read_rows`, or a label fits neither the task nor `label_names`.
        UnknownName: there is no such task.
    """
    if task not in TASKS:
        raise UnknownName(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    rows = list(read_rows(source, columns, split=split))
    texts = [row.text for row in rows]
    if task == "regression":
        return Examples(texts, _numbers(rows), (), "regression")
    found = [_classes(row, task) for row in rows]
    names = _distinct(source, rows, found, task) if label_names is None else tuple(label_names)
    index = {name: number for number, name in enumerate(names)}
    ids = [[_class_id(label, index, row.place) for label in labels] for row, labels in zip(rows, found, strict=True)]
    if task == "classification":
        return Examples(texts, [number for (number,) in ids], names, "single_label_classification")
    tags = [[float(number in numbers) for number in range(len(names))] for numbers in ids]  # (N, K)
    return Examples(texts, tags, names, "multi_label_classification")


# From a record to a row: columns and values.


def _choose(asked: Columns, record: Mapping[str, Any], name: str, labelled: bool) -> Columns:
    """Take the columns asked for; guess the others from the first record."""
    have = _columns_of(record)
    for column in (asked.text, asked.pair, asked.label):
        if column is not None and column not in record:
            raise DataError(f'{name}: no column "{column}"; {have}')
    free = [column for column in record if column not in (asked.text, asked.pair)]
    label = asked.label or _first(LABEL_NAMES, free)
    if labelled and label is None:
        raise DataError(f"{name}: no column looks like the label, choose it with --label-column; {have}")
    free = [column for column in free if column != label]
    text, pair = asked.text, asked.pair
    if text is None and pair is None:
        text, pair = _first_pair(free)
    wordy = [column for column in free if isinstance(record[column], str)]
    text = text or _first(TEXT_NAMES, free) or (wordy[0] if len(wordy) == 1 else None)
    if text is None:
        raise DataError(f"{name}: no column looks like the text, choose it with --text-column; {have}")
    if len(record) > 1 and asked != Columns(text, pair, label):  # a lone column is no guess
        parts = {"text": text, "pair": pair, "label": label}.items()
        log.info("%s: %s", name, ", ".join(f'{part} from "{column}"' for part, column in parts if column))
    return Columns(text, pair, label)


def _columns_of(record: Mapping[str, Any]) -> str:
    return "the columns are " + ", ".join(f'"{column}"' for column in record)


def _first(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The column whose name comes first in `names`; upper and lower case are the same."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _first_pair(columns: Sequence[str]) -> tuple[str | None, str | None]:
    """The first of the pairs in `PAIR_NAMES` of which both columns are there."""
    found = ((_first([text], columns), _first([pair], columns)) for text, pair in PAIR_NAMES)
    return next((both for both in found if all(both)), (None, None))


def _text(record: Mapping[str, Any], column: str, place: str) -> str:
    text = record.get(column)
    if text is None:
        raise DataError(f'{place}: there is no "{column}"')
    if not isinstance(text, str):
        raise DataError(f'{place}: "{column}" must be a text, found {reprlib.repr(text)}')
    if not text.strip():
        raise DataError(f'{place}: "{column}" is blank')
    return text


def _is_missing(label: object) -> bool:
    if isinstance(label, str):
        return label.strip().lower() in ("", "nan")
    return label is None or label != label


# From a row to a label: names, class numbers, numbers.


def _classes(row: Row, task: str) -> list[str]:
    """The one class of a row, or all its tags, by name."""
    if task == "classification":
        return [_class(row.label, row.place)]
    if not isinstance(row.label, list):
        raise DataError(f"{row.place}: multi-label needs a list of labels in every row; use jsonl or parquet")
    return [_class(label, row.place) for label in row.label]


def _class(label: object, place: str) -> str:
    if isinstance(label, float):
        if not label.is_integer():
            raise DataError(_no_class(label, place))
        label = int(label)
    if not isinstance(label, (str, int)) or _is_missing(label):
        hint = "; lists are for --task multi-label" if isinstance(label, list) else ""
        raise DataError(f"{place}: a class is a name or an integer, found {reprlib.repr(label)}{hint}")
    return str(label).strip()


def _no_class(label: object, place: str) -> str:
    return f"{place}: {label} is a number, not a class; numbers mean regression only with --task regression"


def _distinct(source: str, rows: list[Row], found: list[list[str]], task: str) -> tuple[str, ...]:
    """The classes found, sorted; integers in numeric order, as soon as all of them are integers."""
    places: dict[str, str] = {}  # where each class is seen first
    for row, labels in zip(rows, found, strict=True):
        for label in labels:
            places.setdefault(label, row.place)
    integers = {label: number for label in places if (number := _integer(label)) is not None}
    names = [str(number) for number in sorted(set(integers.values()))]
    if len(integers) < len(places):
        names = sorted(places)
        if all(_finite(label) is not None for label in places):
            fraction = next(label for label in places if label not in integers)
            raise DataError(_no_class(fraction, places[fraction]))
    if not names:
        raise DataError(f"{name_of(source)}: no row has a label")
    if task == "classification" and len(names) < 2:
        raise DataError(f"{name_of(source)}: only one class, {names[0]!r}")
    return tuple(names)


def _class_id(label: str, index: Mapping[str, int], place: str) -> int:
    """The number of a class: by its name, or by the number itself where the names are words."""
    number = _integer(label)
    for name in (label, str(number)):
        if name in index:
            return index[name]
    words = any(_integer(name) is None for name in index)
    if number is not None and words and 0 <= number < len(index):
        return number
    names = ", ".join(repr(name) for name in itertools.islice(index, 10)) + ", ..." * (len(index) > 10)
    raise DataError(f"{place}: unknown label {label!r}; expected one of {names}")


def _integer(label: str) -> int | None:
    """The integer that a label spells, such as "7", "-1" or "2.0"."""
    return int(label.partition(".")[0]) if re.fullmatch(r"-?[0-9]+(\.0+)?", label) else None


def _numbers(rows: list[Row]) -> list[float] | list[list[float]]:
    """A number for every row; or a list of them, as long as the first row's."""
    if not isinstance(rows[0].label, list):
        return [_number(row.label, row.place) for row in rows]
    vectors = []
    for row in rows:
        if not isinstance(row.label, list) or not 0 < len(row.label) == len(rows[0].label):
            wanted = f"a list of {len(rows[0].label) or 'some'} numbers"
            raise DataError(f"{row.place}: the label must be {wanted}, found {reprlib.repr(row.label)}")
        vectors.append([_number(value, row.place) for value in row.label])
    return vectors


def _number(label: object, place: str) -> float:
    number = _finite(label)
    if number is None:
        raise DataError(f"{place}: the label must be a finite number, found {reprlib.repr(label)}")
    return number


def _finite(label: Any) -> float | None:
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(label, bool) else None
