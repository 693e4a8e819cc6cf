"""Look up classes by the names that users type: tables of name -> "module:Class", imported on first use."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from offramp.errors import InvalidInput, UnknownName


def load(table: Mapping[str, str], name: str) -> type[Any]:
    """Return the class, or the command, in a table's row `name`.

    Raises:
        UnknownName: the table has no such row; the message names the nearest ones.
    """
    if name not in table:
        near = difflib.get_close_matches(name.replace("_", "-"), table, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownName(f"unknown name {name!r}; {hint}known: {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    loaded: type[Any] = getattr(import_module(module), attribute)
    return loaded


def build(table: Mapping[str, str], name: str, parameters: Mapping[str, Any]) -> Any:
    """Build an object of the class in a table's row `name`.

    Raises:
        UnknownName: the table has no such row.
        InvalidInput: a parameter that the class does not have, or a value outside its range.
    """
    row_class = load(table, name)
    known = [field.name for field in fields(row_class) if field.init]
    if unknown := sorted(set(parameters) - set(known)):
        raise InvalidInput(f"{name!r} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return row_class(**parameters)
