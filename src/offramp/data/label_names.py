"""Names of classes: what the numbers and spellings of a label column stand for.

A source may name its classes itself (a ClassLabel, a `labels.json`); `--label-names` overrules it.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import DataError, InvalidInput

LabelNames = Sequence[str] | Mapping[str, str]
"""The names of classes 0, 1, ..., or a name for each spelling of a class: {"1": "World", "2": "Sports"}."""

OPTION = "--label-names"
SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Naming:
    """The names that a label column's numbers or spellings stand for.

    Attributes:
        table: a name for each spelling.
        origin: what names them, for messages.
        numbered: the table has a name for each of 0, 1, ...; False where somebody wrote the spellings themselves.
        binding: a label outside of it is an error; False: the names may be those of another column.
        codes: a number in the column is never a name.
    """

    table: Mapping[str, str]
    origin: str
    numbered: bool
    binding: bool = True
    codes: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the classes in the order of their numbers, else in the order of the table."""
        spellings = list(self.table)
        if all(spelling.removeprefix("-").isdecimal() for spelling in spellings):
            spellings.sort(key=int)
        return tuple(dict.fromkeys(self.table[spelling] for spelling in spellings))

    def translated(self, spellings: Iterable[str]) -> dict[str, str]:
        """Return the class of each spelling that has one: by the table, or because it is a name itself.

        Raises:
            InvalidInput: the names are numbers, so that a label can be a name and a number of another one.
        """
        spellings, names = list(spellings), set(self.names)
        by_number = {spelling: name for spelling in spellings if (name := self._by_number(spelling)) is not None}
        by_name = {spelling: spelling for spelling in spellings if spelling in names}
        if self.codes:
            return {**{name: name for name in by_name if not name.isdecimal()}, **by_number}
        if not self.numbered or not names & set(self.table):
            return {**by_name, **by_number}
        if len(by_number) == len(spellings) == len(by_name) and by_number != by_name:
            spelling = next(spelling for spelling in spellings if by_number[spelling] != spelling)
            raise InvalidInput(
                f"the label {spelling} can be a name or the number of {by_number[spelling]!r} ({self.origin}); "
                f'say which by a JSON file: {OPTION} names.json with {{"{spelling}": "{spelling}", ...}}'
            )
        return by_number if len(by_number) == len(spellings) else by_name

    def number_of(self, spelling: str) -> str | None:
        """Return the number of a class that is spelled by number or by name; None without one."""
        if not self.numbered:
            return None
        numbers = {name: number for number, name in self.table.items()}
        return spelling if spelling in self.table else numbers.get(spelling)

    def _by_number(self, spelling: str) -> str | None:
        """Look a spelling up in the table; True and False are "true" and "false", or 1 and 0, too."""
        other = {"True": ("true", "1"), "False": ("false", "0")}.get(spelling, ())
        return next((self.table[key] for key in (spelling, *other) if key in self.table), None)


def naming_of(
    label_names: LabelNames | str | None, class_names: Mapping[str, Sequence[str]], column: str | None
) -> Naming | None:
    """Return the names for a label column: the user's, else the source's own for this column, else for any column.

    Args:
        label_names: the user's.
        class_names: the source's, by column; "" = whichever column holds the numbers.
        column: the label column; None = several.

    Raises:
        InvalidInput: a name twice or blank, or a list of the same names as the source's in another order.
    """
    own = class_names.get(column) if column is not None else None
    if isinstance(label_names, str):
        label_names = read_label_names(label_names)
    if label_names is None:
        if own is not None:
            return Naming(_numbered(own), "the data set", numbered=True, codes=True)
        loose = class_names.get("") if column is not None else None
        return None if loose is None else Naming(_numbered(loose), "labels.json", numbered=True, binding=False)
    if not label_names:
        raise InvalidInput(f"{OPTION} names no class")
    if isinstance(label_names, Mapping):
        table = {str(spelling).strip(): _name(name) for spelling, name in label_names.items()}
        return Naming(table, OPTION, numbered=False)
    table = _numbered([_name(name) for name in label_names])
    source_names = own or class_names.get("", ())
    if sorted(source_names) == sorted(table.values()) and list(source_names) != list(table.values()):
        raise InvalidInput(
            f"the data says {described(source_names)}, {OPTION} {described(table.values())}; "
            f"leave out {OPTION}, or overrule the data by a JSON file of numbers and names"
        )
    return Naming(table, OPTION, numbered=True)


def read_label_names(text: str) -> LabelNames:
    """Read names from an option: "a,b,c", or a file with a JSON list, a JSON mapping or one name a line.

    Names that hold commas are quoted as in csv. A mapping is from number to name, from any spelling to name, or from
    name to number (`label2id`); of a model's config.json its `id2label` is read.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    if os.path.isfile(text):
        return _names_in(Path(text))
    if "," not in text and Path(text).suffix.lower() in (".json", ".txt", ".csv", ".tsv"):
        raise DataError(f"{text}: no such file; {OPTION} takes a,b,c or a file of names")
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [""])]


def described(names: Iterable[str]) -> str:
    """Return "0 = World, 1 = Sports, ..." for messages; where names are the numbers, "0, 1, ..."."""
    return shortened([name if name == str(number) else f"{number} = {name}" for number, name in enumerate(names)])


def shortened(names: Sequence[str]) -> str:
    """Return the first names, joined by commas."""
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def text_names(names: Iterable[object]) -> list[str]:
    """Return names of classes as text.

    Raises:
        InvalidInput: two classes have one name.
    """
    texts = [str(name) for name in names]
    if twice := [name for name, count in Counter(texts).items() if count > 1]:
        raise InvalidInput(f"two classes are named {twice[0]!r}; each needs a name of its own")
    return texts


def _numbered(names: Iterable[object]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(text_names(names))}


def _name(name: object) -> str:
    text = "" if name is None else str(name).strip()
    if not text or isinstance(name, (list, tuple, Mapping)):
        raise InvalidInput(f"a class needs a name, {OPTION} has {name!r}")
    return text


def names_in_order(data: Any) -> tuple[str, ...] | None:
    """Return the names of classes 0, 1, ... that a JSON file lists or maps; None where it holds something else."""
    names = _names_of(data)
    if isinstance(names, Mapping):
        numbers = [str(number) for number in range(len(names))]
        names = [names[number] for number in numbers] if names.keys() == set(numbers) else None
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def _names_in(path: Path) -> LabelNames:
    try:
        content = path.read_text(encoding="utf-8-sig")
        if not content.lstrip().startswith(("[", "{")):
            return [line.strip() for line in content.rstrip().splitlines()]
        names = _names_of(json.loads(content))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are its subclasses
        raise DataError(f"{path}: not a file of names ({error}); expected JSON or one name a line") from error
    if names is None:
        raise DataError(f"{path}: expected a list of names, or a mapping from numbers to names with each number once")
    return names


def _names_of(data: Any) -> LabelNames | None:
    """Return the names in JSON: a list, a mapping to names, or the other way round, from names to numbers."""
    if isinstance(data, list):
        return data
    data = data.get("id2label", data) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        return None
    numbers = [value for value in data.values() if isinstance(value, int) and not isinstance(value, bool)]
    if len(numbers) < len(data) or all(key.removeprefix("-").isdecimal() for key in data):
        return data
    return {str(number): name for name, number in data.items()} if len(set(numbers)) == len(numbers) else None
