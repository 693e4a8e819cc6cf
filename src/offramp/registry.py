"""Names that users type -> "module:Class". Nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from offramp.errors import InvalidInput, UnknownName


def load(table: Mapping[str, str], name: str) -> type[Any]:
    """The class that a table holds under `name`.

    Raises:
        UnknownName: the table has no such row; the message names the nearest ones.
    """
    if name not in table:
        near = difflib.get_close_matches(name.replace("_", "-"), table, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownName(f"unknown name {name!r}; {hint}known: {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def build(table: Mapping[str, str], name: str, parameters: Mapping[str, Any]) -> Any:
    """Build what a table holds under `name`.

    Raises:
        UnknownName: the table has no such row.
        InvalidInput: a parameter that the class does not have, or a value outside its range.
    """
    found = load(table, name)
    known = [field.name for field in fields(found) if field.init]
    if unknown := sorted(set(parameters) - set(known)):
        raise InvalidInput(f"{name!r} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return found(**parameters)
