"""The fields of operating_points.json and of proposals: what each must be, so that an error names it. No torch."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput
from offramp.types.file_format import newer_format

Rule = Callable[[Any, str], None]
"""Raises InvalidInput for a value that is not right; the second argument says where it stands."""
WORDS = {"never": math.inf, "always": -math.inf}
"""Thresholds that are words in the file."""


def check_point(data: object, where: str) -> None:
    """Refuse the data of a point that are not as `OperatingPoint.to_json` writes them.

    Args:
        data: of the point.
        where: the beginning of the message, such as "operating_points.json: point 'default'".

    Raises:
        InvalidInput: a field that is missing, unknown or not right.
    """
    _object(POINT, {"policy", "thresholds"})(data, where)


def read_point_data(path: str | os.PathLike[str], newest: int) -> dict[str, Any]:
    """Return the data of the points in a file, by name, checked.

    Args:
        path: of the file.
        newest: the newest format that is read; a file without a format number holds the points alone.

    Raises:
        InvalidInput: the file cannot be read, or something in it is not right.
    """
    name, data = os.fspath(path), _read_json(path, "a file of operating points")
    if not isinstance(data, dict):
        raise InvalidInput(f"{name}: an object with operating points, got {_shown(data)}")
    # a point may have any name: {"format": {...}, "points": {...}} can be two points of a file without a number
    if "format" in data and not isinstance(data["format"], dict):
        if type(data["format"]) is not int or data["format"] < 1:
            raise InvalidInput(f"{name}: format: a number from 1, got {_shown(data['format'])}")
        if data["format"] > newest:
            raise newer_format(path, data["format"], newest)
        if "points" not in data:
            raise InvalidInput(f'{name}: "points" is missing')
        _object({"format": _anything, "points": _anything})(data, name)
        data = data["points"]
    elif set(data) == {"points"} and not (isinstance(data["points"], dict) and "policy" in data["points"]):
        raise InvalidInput(f'{name}: "format" is missing; "format": {newest} goes before "points"')
    if not isinstance(data, dict):
        raise InvalidInput(f"{name}: points: an object with operating points by name, got {_shown(data)}")
    for point, fields in data.items():
        check_point(fields, f"{name}: point {point!r}")
    return data


def read_proposal_data(path: str | os.PathLike[str], newest: int) -> dict[str, Any]:
    """Return the data of a proposal (`offramp.types.proposal`), checked.

    Raises:
        InvalidInput: the file cannot be read, or something in it is not right.
    """
    name, data = os.fspath(path), _read_json(path, "a proposal")
    if isinstance(data, dict) and type(data.get("format")) is int and data["format"] > newest:
        raise newer_format(path, data["format"], newest)
    _object(PROPOSAL)(data, name)
    checked: dict[str, Any] = data
    return checked


def _read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Return the data of a file.

    Raises:
        InvalidInput: it cannot be read, or is no JSON, or an object in it has a name twice.
    """
    name = os.fspath(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except _Repeated as error:
        raise InvalidInput(f"{name}: {error}") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{name}, line {error.lineno}: not JSON ({error.msg})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name}: not {what} ({error})") from None


class _Repeated(ValueError):
    """An object has a name twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _Repeated(f"{name!r} is there twice")
    return dict(pairs)


def _shown(value: object) -> str:
    """Return a value for a message, as JSON has it where Python's word is another."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expect(fits: Callable[[Any], bool], words: str) -> Rule:
    def rule(value: Any, where: str) -> None:
        if not fits(value):
            raise InvalidInput(f"{where}: {words}, got {_shown(value)}")

    return rule


def _optional(rule: Rule) -> Rule:
    def optional(value: Any, where: str) -> None:
        if value is not None:
            rule(value, where)

    return optional


def _list(words: str, item: Rule) -> Rule:
    def rule(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise InvalidInput(f"{where}: {words}, got {_shown(value)}")
        for one in value:
            item(one, where)

    return rule


def _object(fields: Mapping[str, Rule], required: set[str] | None = None) -> Rule:
    """Return the rule of an object with these fields; `required` None = all."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{where}: an object, got {_shown(value)}")
        for name in value:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
                raise InvalidInput(f"{where}: unknown key {name!r}; {hint}")
        for name in fields if required is None else [name for name in fields if name in required]:
            if name not in value:
                raise InvalidInput(f'{where}: "{name}" is missing')
        for name, content in value.items():
            fields[name](content, f"{where}: {name}")

    return rule


def _anything(value: Any, where: str) -> None:
    pass


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _from(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: _is_finite(value) and least <= value <= most


_text = _expect(lambda value: isinstance(value, str), "text")
_number = _expect(_is_finite, "a number")
_score = _expect(_is_number, "a number")  # NaN where a metric has no value
_share = _expect(_from(0, 1), "a number from 0 to 1")
_count = _expect(lambda value: type(value) is int and value >= 0, "a whole number from 0")
_layers = _list("a list of layer numbers", _count)


def _policy(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise InvalidInput(f'{where}: an object with a "name", got {_shown(value)}')
    if "name" not in value:
        raise InvalidInput(f'{where}: "name" is missing')
    _text(value["name"], f"{where}: name")


def _threshold(value: Any, where: str) -> None:
    fits = value in WORDS if isinstance(value, str) else _is_number(value) and not math.isnan(value)
    if not fits:
        raise InvalidInput(f'{where}: a number or "never", got {_shown(value)}')


TARGET: dict[str, Rule] = {
    "max_drop": _share,
    "speedup": _expect(_from(1), "a number from 1"),
    "agreement": _share,
    "latency_ms": _expect(lambda value: _is_finite(value) and value > 0, "a number above 0"),
    "level": _share,  # of `certify`
    "delta": _optional(_share),
}
MEASURED: dict[str, Rule] = {
    "metric": _optional(_text),
    "score": _optional(_score),
    "full_score": _optional(_score),
    "agreement": _optional(_share),
    "mean_exit": _expect(_from(0), "a number from 0"),
    "depth": _count,
    "rows": _count,
    "about": lambda value, where: _object(dict.fromkeys(value, _text) if isinstance(value, Mapping) else {})(
        value, where
    ),
    "expected_ms": _optional(_number),
    "full_ms": _optional(_number),
    "macs": _optional(_number),
    "full_macs": _optional(_number),
}
CERTIFICATE: dict[str, Rule] = {
    "risk": _text,
    "level": _share,
    "delta": _optional(_share),
    "bound": _share,
    "observed": _share,
    "rows": _count,
    "method": _text,
    "engine": _optional(_text),
    "data": _text,
    "weights": _optional(_text),
    "note": _text,
}
FINGERPRINT: dict[str, Rule] = {
    "weights": _text,
    "content": _optional(_text),
    "config": _text,
    "exit_layers": _layers,
}
POINT: dict[str, Rule] = {
    "policy": _policy,
    "thresholds": _list('a list of numbers or "never"', _threshold),
    "target": _optional(_object(TARGET, set())),
    "measured": _optional(_object(MEASURED, set(MEASURED) - {"about", "expected_ms", "full_ms", "macs", "full_macs"})),
    "certificate": _optional(_object(CERTIFICATE, set(CERTIFICATE) - {"weights", "note"})),
    "label_thresholds": _optional(
        _list(
            "a list of numbers",
            _expect(lambda value: _is_finite(value) and 0 < value < 1, "a number above 0 and below 1"),
        )
    ),
    "exit_layers": _optional(_layers),
    "fingerprint": _optional(_object(FINGERPRINT)),
    "agreement": _optional(_object(CERTIFICATE, set(CERTIFICATE) - {"weights", "note"})),
}


def _by_layer(value: Any, where: str) -> None:
    names = value if isinstance(value, Mapping) else {}
    if not names or not all(isinstance(name, str) and name.isascii() and name.isdecimal() for name in names):
        raise InvalidInput(f"{where}: thresholds by layer number, got {_shown(value)}")
    layers = [int(name) for name in names]
    if layers != sorted(set(layers)):
        raise InvalidInput(f"{where}: layer numbers that increase, got {_shown(list(names))}")
    for name, threshold in value.items():
        _threshold(threshold, f"{where}: {name}")


_inner_share = _expect(lambda value: _is_finite(value) and 0 < value < 1, "a number above 0 and below 1")
AGREEMENT: dict[str, Rule] = {
    **CERTIFICATE,
    "risk": _expect(lambda value: value == "agreement", '"agreement"'),
    "level": _inner_share,
    "delta": _optional(_inner_share),
}
PROPOSAL: dict[str, Rule] = {
    "format": _expect(lambda value: type(value) is int and value >= 1, "a number from 1"),
    "time": _text,
    "model": _text,
    "weights": _text,
    "engine": _text,
    "operating_point": _text,
    "in_force": _text,
    "certificate": _object(AGREEMENT, set(CERTIFICATE) - {"weights", "note"}),
    "evidence": _object({"rows": _count, "differing": _count, "agreement_bound": _share, "delta": _share}),
    "thresholds": _object({"old": _by_layer, "new": _by_layer}),
    "command": _text,
}
