"""Records from JSON: an object a line, or one array of objects, read as a stream."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from offramp.data.lines import LONGEST, Lines
from offramp.data.records import Record
from offramp.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")

log = logging.getLogger("offramp")


def json_records(lines: Lines) -> Iterator[Record]:
    """Yield the elements of an array, or an object a line, as the first character says."""
    head = lines.head()
    return json_array(lines) if head and head[-1].lstrip().startswith("[") else json_lines(lines)


def json_lines(lines: Lines) -> Iterator[Record]:
    """Yield an object a line; blank lines are no records.

    Raises:
        DataError: the first object goes over several lines.
    """
    blank, first = 0, True
    for line in lines:
        if not line.strip():
            blank += 1
            continue
        number = lines.number
        if first and _is_spread(line, lines):
            raise DataError(
                f"{lines.name}, line {number}: an object over several lines; write an array of objects, or an object a"
                f" line (jq -c does); --format txt takes lines as texts"
            )
        first = False
        error = lines.undecoded(line)
        values: Any = None
        if error is None:
            values, error = _parse(line)
        yield Record(f"{lines.name}, line {number}", number, values, error)
    if blank:
        log.info("%s: %d blank lines are no rows", lines.name, blank)


def _is_spread(line: str, lines: Lines) -> bool:
    """Return whether a line begins an object that goes on in the next line, itself no object of its own."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        cut = line.lstrip().startswith("{") and error.pos >= len(line.rstrip())
        following = lines.head() if cut else []
        return bool(following) and (line.rstrip().endswith("[") or not following[-1].lstrip().startswith("{"))
    except (ValueError, RecursionError):
        pass
    return False


def _parse(line: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return an object, or what is wrong."""
    expected = "expected one object a line" + "; --format json reads an array" * line.lstrip().startswith("[")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON ({getattr(error, 'msg', error)}); {expected}"
    return (value, None) if isinstance(value, dict) else (None, f"not a JSON object; {expected}")


def json_array(lines: Lines) -> Iterator[Record]:
    """Yield the elements of one array: objects, or texts; after one that is no JSON the others are not read."""
    array, number = _Array(lines), 0
    array.skip()  # the bracket
    while (character := array.next_character()) not in ("", "]"):
        number += 1
        location = f"{lines.name}, element {number}"
        try:
            if number > 1:
                array.expect_comma(character)
            value = array.value()
        except (ValueError, RecursionError) as error:
            words = f"not JSON ({getattr(error, 'msg', error)}, near line {lines.number})"
            yield Record(location, number, None, f"{words}; what follows is not read", broken=True)
            return
        value = {"text": value} if isinstance(value, str) else value
        right = isinstance(value, dict)
        yield Record(location, number, value if right else None, None if right else "not a JSON object")
    array.skip()
    if lines.broken:
        return
    if not character or array.next_character():
        problem = "something follows the array" if character else "the array is not closed"
        yield Record(f"{lines.name}, line {lines.number}", number + 1, None, f"not JSON: {problem}", broken=True)


class _Array:
    """The text of an array and a position in it; lines are read as they are needed."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.text, self.at = lines, "", 0
        self.decode = json.JSONDecoder().raw_decode
        self.next_character()

    def next_character(self) -> str:
        """Go to the next character that is no space, and return it; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._read(1):
                return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        """Go on by one character."""
        self.at += 1

    def expect_comma(self, character: str) -> None:
        """Go over a comma.

        Raises:
            ValueError: it is another character.
        """
        if character != ",":
            raise ValueError("Expecting ',' or ']'")
        self.skip()
        self.next_character()

    def value(self) -> Any:
        """Return the value that begins here.

        Raises:
            ValueError, RecursionError: it is not JSON.
        """
        while True:
            try:
                value, self.at = self.decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text.rstrip())  # else it is wrong, whatever follows
                length = len(self.text) - self.at
                if not cut or length > LONGEST or not self._read(length):  # twice as much: each is decoded again
                    raise

    def _read(self, least: int) -> bool:
        """Read lines of so many characters; return whether there were any."""
        more: list[str] = []
        while least > 0 and (line := next(self.lines, "")):
            more.append(line)
            least -= len(line)
        self.text, self.at = self.text[self.at :] + "".join(more), 0
        return bool(more)
