"""Labels as a source has them -> the spelling of classes, and numbers.

Errors begin with the location of the label, such as "reviews.csv, line 12".
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.errors import DataError

Located = tuple[object, str]  # a label as the source has it, and its location

LISTS = "lists are for --task multi-label"


def is_missing(label: object) -> bool:
    """Return whether a label is None, blank or not a number at all (NaN)."""
    if isinstance(label, str):
        return not label.strip()
    return label is None or (isinstance(label, float) and label != label)


def spelling_of(label: object, location: str) -> str:
    """Return the text of one class: its spelling without blanks around it, an integer's digits, True or False.

    Raises:
        DataError: a label that is neither a name nor an integer.
    """
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, float) and not is_missing(label):
        raise DataError(
            f"{location}: {label} is a number, not a class; numbers mean regression only with --task regression"
        )
    if not isinstance(label, (str, int)) or is_missing(label):
        hint = f"; {LISTS}" if is_list(label) else ""
        raise DataError(f"{location}: a class is a name or an integer, found {reprlib.repr(label)}{hint}")
    return str(label).strip()


def is_list(label: object) -> bool:
    """Return whether a label is a list, a tuple, a set or an array."""
    return isinstance(label, (list, tuple, set, frozenset)) or hasattr(label, "tolist")


def integer_spelled(spelling: str) -> str | None:
    """Return the integer that a label spells as a source writes one: "7", "-1", or "2.0" for 2; else None.

    "01", "+1", "1e3" and "1_000" are names: their spelling says more than a number.
    """
    match = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))(?:\.0)?", spelling)
    return str(int(match[1])) if match else None


def is_number(spelling: object) -> bool:
    """Return whether a label is a finite number, or spells one."""
    return _finite(spelling) is not None


def numbers(labels: Sequence[Located]) -> list[float] | list[list[float]]:
    """Return a number for every label; or a list of them, as long as the first label's.

    Raises:
        DataError: a label that is not a finite number, or not a list of as many.
    """
    vectors = [(_vector(label), location) for label, location in labels]
    first = vectors[0][0]
    if not isinstance(first, list):
        return [_number(label, location) for label, location in labels]
    for vector, location in vectors:
        if not isinstance(vector, list) or not 0 < len(vector) == len(first):
            expected = f"a list of {len(first) or 'some'} numbers"
            raise DataError(f"{location}: the label must be {expected}, found {reprlib.repr(vector)}")
    return [[_number(value, location) for value in vector] for vector, location in vectors]


def _vector(label: Any) -> Any:
    """Return several numbers of a row as a list: of an array, or of several columns."""
    if isinstance(label, Mapping):
        return list(label.values())
    return list(label.tolist() if hasattr(label, "tolist") else label) if is_list(label) else label


def _number(label: object, location: str) -> float:
    number = _finite(label)
    if number is None:
        comma = isinstance(label, str) and _finite(label.replace(",", ".")) is not None
        point = "; write a decimal point" if comma else ""
        raise DataError(f"{location}: the label must be a finite number, found {reprlib.repr(label)}{point}")
    return number


def _finite(label: Any) -> float | None:
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(label, bool) else None
