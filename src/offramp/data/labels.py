"""Labels as a source has them -> class names, class numbers and numbers.

Errors begin with the location of the label, such as "reviews.csv, line 12".
"""

import itertools
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.errors import DataError

Located = tuple[object, str]  # a label as the source has it, and its location


def is_missing(label: object) -> bool:
    """Return whether a label is None, blank or not a number at all (NaN)."""
    if isinstance(label, str):
        return label.strip().lower() in ("", "nan")
    return label is None or label != label


def class_names_of(label: object, location: str, task: str) -> list[str]:
    """Return the one class of a row, or all its tags, by name.

    Raises:
        DataError: the label does not fit the task.
    """
    if task == "classification":
        return [_class_name(label, location)]
    if not isinstance(label, list):
        raise DataError(f"{location}: multi-label needs a list of labels in every row; use jsonl or parquet")
    return [_class_name(item, location) for item in label]


def _class_name(label: object, location: str) -> str:
    if isinstance(label, float):
        if not label.is_integer():
            raise DataError(_no_class(label, location))
        label = int(label)
    if not isinstance(label, (str, int)) or is_missing(label):
        hint = "; lists are for --task multi-label" if isinstance(label, list) else ""
        raise DataError(f"{location}: a class is a name or an integer, found {reprlib.repr(label)}{hint}")
    return str(label).strip()


def _no_class(label: object, location: str) -> str:
    return f"{location}: {label} is a number, not a class; numbers mean regression only with --task regression"


def distinct_classes(
    names: Sequence[Sequence[str]], locations: Sequence[str], source: str, task: str
) -> tuple[str, ...]:
    """Return the classes of all rows, sorted; integers in numeric order, if all classes are integers.

    Args:
        names: the classes of every row, as `class_names_of` returns them.
        locations: of the rows.
        source: the source, as messages call it.
        task: classification or multi-label.

    Raises:
        DataError: numbers that are no integers, no label at all, or, for classification, a single class.
    """
    first_location: dict[str, str] = {}
    for row, location in zip(names, locations, strict=True):
        for name in row:
            first_location.setdefault(name, location)
    integers = {name: number for name in first_location if (number := _integer(name)) is not None}
    classes = [str(number) for number in sorted(set(integers.values()))]
    if len(integers) < len(first_location):
        classes = sorted(first_location)
        if all(_finite(name) is not None for name in first_location):
            fraction = next(name for name in first_location if name not in integers)
            raise DataError(_no_class(fraction, first_location[fraction]))
    if not classes:
        raise DataError(f"{source}: no row has a label")
    if task == "classification" and len(classes) < 2:
        raise DataError(f"{source}: only one class, {classes[0]!r}")
    return tuple(classes)


def class_index(name: str, index: Mapping[str, int], location: str) -> int:
    """Return the number of a class: by its name, or the number itself where the names are words.

    Raises:
        DataError: there is no such class.
    """
    number = _integer(name)
    for key in (name, str(number)):
        if key in index:
            return index[key]
    words = any(_integer(key) is None for key in index)
    if number is not None and words and 0 <= number < len(index):
        return number
    names = ", ".join(repr(key) for key in itertools.islice(index, 10)) + ", ..." * (len(index) > 10)
    raise DataError(f"{location}: unknown label {name!r}; expected one of {names}")


def _integer(label: str) -> int | None:
    """Return the integer that a label spells, such as "7", "-1" or "2.0"."""
    return int(label.partition(".")[0]) if re.fullmatch(r"-?[0-9]+(\.0+)?", label) else None


def numbers(labels: Sequence[Located]) -> list[float] | list[list[float]]:
    """Return a number for every label; or a list of them, as long as the first label's.

    Raises:
        DataError: a label that is not a finite number, or not a list of as many.
    """
    first = labels[0][0]
    if not isinstance(first, list):
        return [_number(label, location) for label, location in labels]
    vectors = []
    for label, location in labels:
        if not isinstance(label, list) or not 0 < len(label) == len(first):
            expected = f"a list of {len(first) or 'some'} numbers"
            raise DataError(f"{location}: the label must be {expected}, found {reprlib.repr(label)}")
        vectors.append([_number(value, location) for value in label])
    return vectors


def _number(label: object, location: str) -> float:
    number = _finite(label)
    if number is None:
        raise DataError(f"{location}: the label must be a finite number, found {reprlib.repr(label)}")
    return number


def _finite(label: Any) -> float | None:
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(label, bool) else None
