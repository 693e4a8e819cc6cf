"""Several labels a row: lists of classes, vectors of 0 and 1, or a column of 0 and 1 for each label.

Vectors that could as well be lists of class numbers are refused.
"""

import ast
import json
import logging
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.data.classes import Classes, class_numbers, with_labels
from offramp.data.label_names import Naming
from offramp.data.labels import Located, spelling_of
from offramp.errors import DataError

log = logging.getLogger("offramp")

ABSENT = ("0", "false", "no", "none", "absent", "negative")
"""Names of 0 in a column that says whether a label is there."""
BITS = (0, 1)  # True, False, 1.0 and 0.0 equal them
HOW = 'lists such as ["a", "b"], "a|b" in a cell, vectors of 0 and 1, or a --label-column for each label'


def label_sets(labels: Sequence[Located], known: Sequence[str] | None, naming: Naming | None, source: str) -> Classes:
    """Return all classes of every row.

    Args:
        labels: as the source has them; a mapping from label to 0 or 1 is one row of several columns.
        known: the model's classes; None = those of the source.
        naming: what the labels stand for; None = what they spell.
        source: the source, as messages call it.

    Raises:
        DataError: a row that cannot be read, or that can be read in two ways; a label that is no class.
    """
    if any(isinstance(label, Mapping) for label, _ in labels):
        rows, vectors, columns = _columns(labels, source)
        by_position = naming is not None and naming.numbered and naming.binding and {*naming.names} != {*columns}
        columns = _positions(vectors) if by_position else columns
        lists: list[list[Any]] = []
    else:
        rows, lists = _labelled(labels, known, source)
        vectors = _vectors(lists, [labels[row] for row in rows], known, naming)
        columns = _positions(vectors)
    locations = [labels[row][1] for row in rows]
    if columns:
        naming = _as_wide(naming, columns, source)
        outputs = len(known or (naming.names if naming else columns))
        if outputs != len(columns):
            raise DataError(f"{source}: {len(columns)} labels a row, where {outputs} classes are named")
        spelled = [[name for name, bit in zip(columns, vector, strict=True) if bit] for vector in vectors]
    else:
        pairs = zip(lists, locations, strict=True)
        spelled = [[spelling_of(item, location) for item in row] for row, location in pairs]
    names, ids = class_numbers(list(zip(spelled, locations, strict=True)), known, naming, source, columns)
    return Classes(names, rows, ids)


def refuse_reversed(columns: Sequence[str], class_names: Mapping[str, Sequence[str]], source: str) -> None:
    """Refuse label columns in which the source's own name of 1 says that the label is not there.

    Raises:
        DataError: such a column.
    """
    for column in columns:
        names = class_names.get(column, ())
        if len(names) > 1 and names[1].lower() in ABSENT:
            raise DataError(
                f'{source}: in "{column}" 0 is {names[0]!r} and 1 is {names[1]!r}; write 1 for what is there'
            )


def _positions(vectors: Sequence[Sequence[Any]]) -> list[str]:
    return [str(number) for number in range(len(vectors[0]))] if vectors else []


def _as_wide(naming: Naming | None, columns: Sequence[str], source: str) -> Naming | None:
    """Return the names of as many labels as there are columns; None where others lie beside the file."""
    if naming is None or naming.binding or len(naming.names) == len(columns):
        return naming
    log.info("%s: %s is not used: it names %d classes of %d", source, naming.origin, len(naming.names), len(columns))
    return None


def _columns(labels: Sequence[Located], source: str) -> tuple[list[int], list[list[Any]], list[str]]:
    """Return the rows that have labels, their vectors, and the columns; a row of -1 alone has no labels."""
    columns = list(dict.fromkeys(name for label, _ in labels if isinstance(label, Mapping) for name in label))
    vectors: dict[int, list[Any]] = {}
    for row, (label, location) in enumerate(labels):
        if not isinstance(label, Mapping) or len(label) != len(columns):
            raise DataError(
                f"{location}: 0 or 1 is expected for each of {', '.join(columns)}, found {reprlib.repr(label)}"
            )
        values = {name: _bit(value) for name, value in label.items()}
        if set(values.values()) == {-1}:
            continue
        for name, value in values.items():
            if value not in BITS:
                raise DataError(f'{location}: "{name}" must be 0 or 1, found {reprlib.repr(label[name])}{_soft(value)}')
        vectors[row] = [values[name] for name in columns]
    return with_labels(list(vectors), len(labels), source), list(vectors.values()), columns


def _labelled(labels: Sequence[Located], known: Sequence[str] | None, source: str) -> tuple[list[int], list[list[Any]]]:
    """Return the rows that have labels, and their lists; a row of None, or of -1 alone, has none."""
    rows = [row for row, (label, _) in enumerate(labels) if label is not None]
    lists = dict(zip(rows, _lists([labels[row] for row in rows], known), strict=True))
    secret = {row for row in rows if lists[row] and all(_bit(label) == -1 for label in lists[row])}
    rows = with_labels([row for row in rows if row not in secret], len(labels), source)
    return rows, [lists[row] for row in rows]


def _lists(labels: Sequence[Located], known: Sequence[str] | None) -> list[list[Any]]:
    """Return every row's labels as a list."""
    named = [isinstance(label, str) and label.strip() in (known or ()) for label, _ in labels]  # a cell is one class
    cells = zip(labels, named, strict=True)
    barred = any(isinstance(label, str) and "|" in label and not whole for (label, _), whole in cells)
    return [
        [str(label).strip()] if whole else _list(label, location, barred)
        for (label, location), whole in zip(labels, named, strict=True)
    ]


def _list(label: Any, location: str, lone: bool) -> list[Any]:
    """Return a row's labels as a list; with `lone` a cell without a bar is one label."""
    if isinstance(label, str):
        label = _parsed(label.strip(), location, lone)
    if hasattr(label, "tolist"):
        label = label.tolist()
    if isinstance(label, (set, frozenset)):
        label = sorted(label, key=str)
    if not isinstance(label, (list, tuple)):
        raise DataError(
            f"{location}: multi-label needs a list of labels in every row, found {reprlib.repr(label)}; use {HOW}"
        )
    return list(label)


def _parsed(cell: str, location: str, lone: bool) -> Any:
    """Return the labels in a cell: a list as JSON, Python or numpy write it, or names with bars between them."""
    if cell.startswith("["):
        cell = re.sub(r"""(['"])\s+(['"])""", r"\1, \2", cell)  # numpy writes no commas
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(cell)
            except (ValueError, SyntaxError):
                continue
        if re.fullmatch(r"\[(\s*[01]\.?)*\s*\]", cell):
            return [int(float(bit)) for bit in cell[1:-1].split()]
        raise DataError(f"{location}: not a list of labels: {reprlib.repr(cell)}")
    if "|" not in cell and not lone:
        return cell
    parts = [part.strip() for part in cell.split("|")]
    return [int(part) for part in parts] if set(parts) <= {"0", "1"} else parts


def _vectors(
    lists: Sequence[Sequence[Any]], labels: Sequence[Located], known: Sequence[str] | None, naming: Naming | None
) -> list[list[Any]]:
    """Return the rows as vectors of 0 and 1; [] where they are lists of classes.

    Raises:
        DataError: both are possible, vectors of several lengths, or numbers between 0 and 1.
    """
    values = [[_bit(value) for value in row] for row in lists]
    flat = [value for row in values for value in row]
    for row, (_, location) in zip(values, labels, strict=True):
        for value in row:
            if _soft(value) or value == -1:
                raise DataError(f"{location}: {value} is neither 0 nor 1{_soft(value)}")
    if not flat or not all(isinstance(value, (bool, int, float)) and value in BITS for value in flat):
        return []
    lengths = [len(row) for row in values]
    widths = dict.fromkeys(lengths)
    repeated = any(len(set(row)) < len(row) for row in values)
    plain = repeated or all(isinstance(value, (bool, float)) for row in lists for value in row)
    if plain and len(widths) > 1:
        common = max(widths, key=lengths.count)
        location = next(location for row, (_, location) in zip(values, labels, strict=True) if len(row) != common)
        raise DataError(f"{location}: a vector of {common} zeros and ones is expected, as in other rows")
    if plain:
        return values
    typed = naming is not None and naming.codes
    if len(widths) > 1 or typed or any(isinstance(value, str) for row in lists for value in row):
        return []
    outputs = len(known or (naming.names if naming is not None and naming.binding else ()))
    if outputs not in (0, len(values[0])):
        return []
    raise DataError(
        f"{labels[0][1]}: {reprlib.repr(lists[0])} can be a vector of 0 and 1 or a list of class numbers, in all rows; "
        f"write true and false for a vector, or names of classes for a list"
    )


def _bit(value: Any) -> Any:
    """Return the number that a value is or spells, where it spells one; else the value."""
    if isinstance(value, str):
        spelled = {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1, "true": 1, "false": 0}
        return spelled.get(value.strip().lower(), value)
    return value


def _soft(value: object) -> str:
    """Return what to say of a number between 0 and 1; "" of other values."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return ""
    if not isinstance(value, float) or not 0 < value < 1:
        return ""
    return "; soft labels are not read: round them to 0 or 1, or learn the numbers with --task regression"
