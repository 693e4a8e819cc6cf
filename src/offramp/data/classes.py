"""Spellings of classes -> class numbers.

A label meets a class by its name. A number stands for a class of another name only where the source or the user
says so. What was decided where labels can be read in two ways is logged.
"""

import logging
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from offramp.data.label_names import OPTION, Naming, described, shortened
from offramp.data.labels import LISTS, Located, integer_spelled, is_number, spelling_of
from offramp.errors import DataError, InvalidInput

NO_NUMBER = ("nan", "na", "n/a", "<na>", "none", "null")  # spellings of a number that is missing
NO_CLASS = "-1"  # what data sets write where a row has no label, or a secret one

log = logging.getLogger("offramp")


@dataclass(frozen=True)
class Classes:
    """The classes of the rows that have a label.

    Attributes:
        names: the K classes, in the order of their numbers.
        rows: numbers of the rows that have a label.
        ids: the class numbers of each of these rows.
    """

    names: tuple[str, ...]
    rows: list[int]
    ids: list[list[int]]


def single_classes(
    labels: Sequence[Located], known: Sequence[str] | None, naming: Naming | None, source: str
) -> Classes:
    """Return the class of every row that has a label.

    Args:
        labels: as the source has them; None, and -1 where it is no class, are no label.
        known: the model's classes; None = those of the source.
        naming: what the labels stand for; None = what they spell.
        source: the source, as messages call it.

    Raises:
        DataError: a label that is no class, no label at all, or a single class.
    """
    spelled = {row: _one(label, location) for row, (label, location) in enumerate(labels) if label is not None}
    blank = next((label for label, _ in labels if isinstance(label, str) and label != label.strip()), None)
    if blank is not None:
        log.info("%s: blanks around labels, such as %r, do not count", source, blank)
    if _hides_labels(spelled.values(), known, naming, source):
        spelled = {row: spelling for row, spelling in spelled.items() if integer_spelled(spelling) != NO_CLASS}
    rows = with_labels(list(spelled), len(labels), source)
    located = [([spelled[row]], labels[row][1]) for row in rows]
    _check_missing(located, known, naming, source)
    names, ids = class_numbers(located, known, naming, source)
    if len(names) < 2:
        raise DataError(f"{source}: only one class, {names[0]!r}")
    return Classes(names, rows, ids)


def with_labels(rows: list[int], count: int, source: str) -> list[int]:
    """Return the rows that have a label, and log how many of `count` have none.

    Raises:
        DataError: no row has one.
    """
    if not rows:
        raise DataError(f"{source}: this split has no labels, all are -1 or empty; choose another, e.g. with --split")
    if len(rows) < count:
        log.info("%s: %d of %d rows are left out, they have no label (-1)", source, count - len(rows), count)
    return rows


def class_numbers(
    located: Sequence[tuple[Sequence[str], str]],
    known: Sequence[str] | None,
    naming: Naming | None,
    source: str,
    declared: Sequence[str] = (),
) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return the names of the K classes, and the class numbers of every row.

    Args:
        located: the spellings of every row's classes, and the row's location.
        known: the model's classes; None = those of the source: the named ones, else all distinct ones, sorted.
        naming: what the spellings stand for; None = what they spell.
        source: the source, as messages call it.
        declared: spellings of all classes, where the source has them in an order, such as columns.

    Raises:
        DataError: a spelling that is no class.
    """
    locations = dict.fromkeys(declared, source)
    for spellings, location in located:
        for spelling in spellings:
            locations.setdefault(spelling, location)
    plain = _without_fraction(locations, known, naming)
    naming = _if_it_fits(naming, known, plain, locations, source)
    if known is None:
        names = naming.names if naming else _distinct(plain, locations, source, declared)
        known = names
        log.info("%s: classes %s", source, described(names))
    elif naming is not None and naming.translated(plain.values()) != {one: one for one in plain.values()}:
        log.info("%s: labels %s", source, shortened([f"{one} = {name}" for one, name in naming.table.items()]))
    index = _index(plain, known, naming, locations)
    return tuple(known), [[index[spelling] for spelling in spellings] for spellings, _ in located]


def _one(label: object, location: str) -> str:
    """Return the spelling of a row's one class; a list in a cell is refused."""
    if isinstance(label, str) and re.fullmatch(r"\s*\[.*\]\s*", label, re.DOTALL):
        raise DataError(f"{location}: a class is a name or an integer, found {reprlib.repr(label)}; {LISTS}")
    if isinstance(label, Mapping):
        hint = "labels by column are for --task multi-label"
        raise DataError(f"{location}: a class is a name or an integer, found {reprlib.repr(label)}; {hint}")
    return spelling_of(label, location)


def _hides_labels(spellings: Collection[str], known: Sequence[str] | None, naming: Naming | None, source: str) -> bool:
    """Return whether -1 marks rows without a label.

    Raises:
        DataError: -1 beside 0 and 1 alone can be a class too.
    """
    distinct = {integer_spelled(spelling) or spelling for spelling in spellings}
    classes = {*(known or ()), *((*naming.table, *naming.names) if naming else ())}
    if NO_CLASS not in distinct or NO_CLASS in classes:
        return False
    others = distinct - {NO_CLASS}
    if classes or not others:
        return True
    if others in ({"0"}, {"0", "1"}):
        raise DataError(
            f'{source}: -1 beside {" and ".join(sorted(others))} can be a class, or mean "no label"; {OPTION} no,yes '
            f'names 0 and 1 and leaves -1 out, a JSON file {{"-1": "against", "0": "neutral", ...}} names all'
        )
    if all(other.isdecimal() for other in others) and "0" in others:
        return True
    log.info("%s: -1 is taken for a class; leave a label empty where it is unknown", source)
    return False


def _check_missing(
    located: Sequence[tuple[list[str], str]], known: Sequence[str] | None, naming: Naming | None, source: str
) -> None:
    """Take "nan", "NA" and the like for classes beside names, and refuse them beside numbers, where one is missing."""
    absent = {spelling: location for (spelling,), location in reversed(located) if spelling.lower() in NO_NUMBER}
    if not absent or naming is not None or absent.keys() <= set(known or ()):
        return
    name, location = next(reversed(absent.items()))
    if all(is_number(spelling) for (spelling,), _ in located if spelling not in absent):
        raise DataError(f'{location}: the label is missing ("{name}" beside numbers)')
    log.info('%s: "%s" is taken for a class, as the others are names', source, '", "'.join(sorted(absent)))


def _without_fraction(spellings: Iterable[str], known: Sequence[str] | None, naming: Naming | None) -> dict[str, str]:
    """Return each spelling, but "1" for "1.0", which pandas writes, where all are integers or 1 is a class."""
    integers = {spelling: integer_spelled(spelling) for spelling in spellings}
    classes = {*(known or ()), *((*naming.table, *naming.names) if naming else ())}
    if not classes and None in integers.values():
        return {spelling: spelling for spelling in integers}
    return {spelling: spelling if spelling in classes else number or spelling for spelling, number in integers.items()}


def _if_it_fits(
    naming: Naming | None,
    known: Sequence[str] | None,
    plain: Mapping[str, str],
    locations: Mapping[str, str],
    source: str,
) -> Naming | None:
    """Return the names where they cover all spellings; None where they may be those of another column.

    Raises:
        DataError: names that must cover all spellings do not.
    """
    if naming is None:
        return None
    try:
        translated = naming.translated(plain.values())
    except InvalidInput as error:
        raise DataError(f"{source}: {error}") from error
    others = () if naming.numbered else known or ()  # a mapping joins spellings, and leaves the model's own names
    unknown = next((spelling for spelling, one in plain.items() if one not in translated and one not in others), None)
    if unknown is None:
        return naming
    expected = shortened([f"{one} = {name}" for one, name in naming.table.items()])
    if naming.binding:
        raise DataError(f"{locations[unknown]}: unknown label {unknown!r}; {naming.origin} says {expected}")
    log.info("%s: %s (%s) is not used: it has no %r", source, naming.origin, expected, unknown)
    return None


def _distinct(
    plain: Mapping[str, str], locations: Mapping[str, str], source: str, declared: Sequence[str]
) -> tuple[str, ...]:
    """Return the distinct classes: in the declared order, integers as numbers, else sorted.

    Raises:
        DataError: no label at all.
    """
    names = list(dict.fromkeys(plain.values()))
    if not names:
        raise DataError(f"{source}: no row has a label")
    if declared:
        return tuple(names)
    if all(integer_spelled(name) == name for name in names):
        fraction = next((spelling for spelling, name in plain.items() if spelling != name), None)
        if fraction is not None:
            log.info("%s: %s is read as %s, as pandas writes integers", source, fraction, plain[fraction])
        return tuple(sorted(names, key=int))
    if all(map(is_number, names)):
        log.info(
            "%s: labels such as %s are taken for names of classes; --task regression reads numbers", source, names[0]
        )
    numbers = [name for name in names if integer_spelled(name) is not None]
    if numbers and not all(map(is_number, names)):
        text = shortened(numbers)
        log.info(
            "%s: the numbers %s beside names are classes of their own; %s says what they mean", source, text, OPTION
        )
    folded: dict[str, list[str]] = {}
    for name in sorted(names):
        folded.setdefault(name.casefold(), []).append(name)
    for alike in folded.values():
        if len(alike) > 1:
            log.info(
                "%s: %s are classes of their own; a JSON file of %s joins them", source, " and ".join(alike), OPTION
            )
    return tuple(sorted(names))


def _index(
    plain: Mapping[str, str], known: Sequence[str], naming: Naming | None, locations: Mapping[str, str]
) -> dict[str, int]:
    """Return the class number of every spelling.

    Classes without names of their own ("3", or transformers' LABEL_3) are met by number where the names do not fit.

    Raises:
        DataError: a spelling that is no class.
    """
    index = {name: number for number, name in enumerate(known)}
    named = naming.translated(plain.values()) if naming else {}
    numbers = {spelling: index.get(named.get(one, one)) for spelling, one in plain.items()}
    unnamed = {number: index[name] for name in known if (number := _number_in(name)) is not None}
    if None in numbers.values() and len(unnamed) == len(index):
        codes = {spelling: naming.number_of(one) if naming else one for spelling, one in plain.items()}
        by_code = {spelling: unnamed.get(str(code)) for spelling, code in codes.items()}
        numbers = numbers if None in by_code.values() else by_code
    for spelling, output in numbers.items():
        if output is None:
            raise DataError(f"{locations[spelling]}: {_unknown(spelling, named.get(plain[spelling]), known)}")
    return {spelling: output for spelling, output in numbers.items() if output is not None}


def _number_in(name: str) -> str | None:
    return integer_spelled(name.removeprefix("LABEL_"))


def _unknown(spelling: str, name: str | None, known: Sequence[str]) -> str:
    """Return what to say of a label that is no class."""
    classes = shortened([repr(one) for one in known])
    if name is not None and name != spelling:
        return f"unknown label {spelling!r}, named {name!r}; expected one of {classes}"
    if alike := [one for one in known if one.casefold() == spelling.casefold()]:
        hint = f'{OPTION} with a JSON file {{"{spelling}": "{alike[0]}"}} joins them'
        return f"unknown label {spelling!r}, the model has {alike[0]!r}; {hint}"
    if integer_spelled(spelling) is None or all(integer_spelled(one) is not None for one in known):
        return f"unknown label {spelling!r}; expected one of {classes}"
    remedy = f"say which by {OPTION}, in the order 0, 1, ..."
    return f"the label {spelling} is a number, the classes have names; {remedy}; expected one of {classes}"
