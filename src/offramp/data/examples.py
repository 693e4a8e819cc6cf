"""Texts and labels from any source: rows as a stream, one column, or examples in memory.

Errors begin with the location.
"""

import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.data.classes import NO_CLASS, single_classes
from offramp.data.columns import GUESSED, Columns, columns_in
from offramp.data.label_names import OPTION, naming_of
from offramp.data.labels import integer_spelled, is_missing, numbers
from offramp.data.multi_label import label_sets, refuse_reversed
from offramp.data.readers import is_read_once, name_of, open_source
from offramp.data.records import AS_NAMED, Reading, Source, Unusable
from offramp.data.rows import Row, Text, closing_source, rows_of, with_columns
from offramp.errors import DataError, UnknownName

TASKS = ("classification", "multi-label", "regression")
log = logging.getLogger("offramp")


@dataclass(frozen=True)
class Examples:
    """Labelled data in memory.

    Attributes:
        labels: N class numbers, N lists of K zeros and ones, or N numbers or lists of numbers.
        label_names: the K classes; () for regression.
        problem_type: as transformers names it.
        rows: the source's rows that these are, from 0, where some are left out; None = all of them.

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
    rows: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def subsample(examples: Examples, count: int) -> Examples:
    """Draw rows at random, the same ones on every call; all of them, in order, where there are no more."""
    if count >= len(examples):
        return examples
    rows = random.Random(0).sample(range(len(examples)), count)
    labels: Any = [examples.labels[row] for row in rows]
    return replace(examples, texts=[examples.texts[row] for row in rows], labels=labels, rows=None)


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
        labelled: a row without a label is an error, but in a column whose classes the source names.
        reading: how to read a file, where its name does not say it.
        lenient: yield a row with an error where a record cannot be used, in place of raising.

    Raises:
        DataError: the source cannot be read; not lenient, at the first record that cannot be used.
    """
    return rows_of(open_source(source, split, reading), columns, labelled=labelled, lenient=lenient)


def read_column(source: str, column: str, *, split: str, reading: Reading = AS_NAMED) -> list[str]:
    """Return one column of a source as text, for every row; a source is as in `read_rows`.

    Raises:
        DataError: there is no such column, or the source cannot be read, or not twice.
    """
    name = name_of(source)
    if is_read_once(source):
        raise DataError(f'{name} is read once, for the texts; give a file to read its column "{column}" too')
    values = []
    opened = open_source(source, split, reading)
    with closing_source(opened):
        for record in opened.records:
            if record.values is None:
                raise DataError(f"{record.location}: {record.error}")
            if column not in record.values:
                raise DataError(f'{record.location}: no column "{column}"; {columns_in(record.values)}')
            value = record.values[column]
            if isinstance(value, Unusable):
                raise DataError(f'{record.location}: "{column}": {value.reason}')
            values.append(value)
    names = opened.class_names.get(column)
    return [names[value] if names and isinstance(value, int) and value >= 0 else str(value) for value in values]


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
        label_names: the classes in their order, where they are known already, such as a model's; None = those of the
            source: as it or `columns.label_names` names them, else all distinct ones, sorted.
        reading: as in `read_rows`.

    Raises:
        DataError: as in `read_rows`, or a label fits neither the task nor `label_names`.
        UnknownName: there is no such task.

    Example:
        >>> examples = offramp.read_examples("helpdesk", split="test")  # the built-in sample
        >>> len(examples), len(examples.label_names)
        (435, 12)
    """
    opened = _open_for(task, source, split, reading)
    with closing_source(opened):
        columns, opened = with_columns(opened, columns, labelled=True, own_labels=_own_labels(task, label_names))
        rows = list(rows_of(opened, columns))
    return _examples(rows, columns, opened, task, label_names)


def read_data(
    source: str,
    columns: Columns = GUESSED,
    *,
    split: str,
    task: str = "classification",
    label_names: Sequence[str] | None = None,
    reading: Reading = AS_NAMED,
) -> Examples | list[Text]:
    """Read a source into memory: with labels if every row has one, else the texts of all rows.

    The arguments and errors are those of `read_examples`. Where some rows have labels, a warning is logged.
    """
    opened = _open_for(task, source, split, reading)
    with closing_source(opened):
        columns, opened = with_columns(opened, columns, labelled=False, own_labels=_own_labels(task, label_names))
        rows = list(rows_of(opened, columns, labelled=False))
    missing = sum(_lacks_label(row.label) for row in rows)
    if task != "regression" and NO_CLASS not in (label_names or ()) and all(_is_no_class(row.label) for row in rows):
        missing = len(rows)
    if 0 < missing < len(rows):
        log.warning("%s: %d of %d rows have no label, so no label is used", opened.name, missing, len(rows))
    return [row.text for row in rows] if missing else _examples(rows, columns, opened, task, label_names)


def _is_no_class(label: object) -> bool:
    values = label.values() if isinstance(label, Mapping) else [label]
    return all(is_missing(value) or integer_spelled(str(value)) == NO_CLASS for value in values)


def _lacks_label(label: object) -> bool:
    return any(map(is_missing, label.values())) if isinstance(label, Mapping) else is_missing(label)


def _own_labels(task: str, label_names: Sequence[str] | None) -> Sequence[str]:
    """Return the labels that columns of 0 and 1 may be named after."""
    return label_names or () if task == "multi-label" else ()


def _open_for(task: str, source: str, split: str, reading: Reading) -> Source:
    """Open a source; where it holds several splits, its name in messages has the split."""
    if task not in TASKS:
        raise UnknownName(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    opened = open_source(source, split, reading)
    whole = ":" in source or source == "-" or (os.path.exists(source) and not os.path.isdir(source))
    return opened if whole else replace(opened, name=f"{opened.name}:{split}")


def _examples(
    rows: Sequence[Row], columns: Columns, source: Source, task: str, label_names: Sequence[str] | None
) -> Examples:
    """Return labelled rows as examples; rows without a class are left out."""
    texts, labels = [row.text for row in rows], [(row.label, row.location) for row in rows]
    if task == "regression":
        if columns.label_names is not None:
            raise DataError(f"{source.name}: {OPTION} names classes; the numbers of a regression have none")
        return Examples(texts, numbers(labels), (), "regression")
    column = columns.labels[0] if len(columns.labels) == 1 else None
    naming = naming_of(columns.label_names, source.class_names, column)
    if task == "multi-label":
        refuse_reversed(columns.labels if column is None else (), source.class_names, source.name)
    read = single_classes if task == "classification" else label_sets
    classes = read(labels, label_names, naming, source.name)
    left = None if len(classes.rows) == len(rows) else tuple(classes.rows)
    texts = [texts[row] for row in classes.rows]
    if task == "classification":
        ids = [number for (number,) in classes.ids]
        return Examples(texts, ids, classes.names, "single_label_classification", left)
    tags = [[float(number in row) for number in range(len(classes.names))] for row in classes.ids]  # (N, K)
    return Examples(texts, tags, classes.names, "multi_label_classification", left)
