"""operating_points.json, edited by hand: what is wrong is said with the point, the field and what would be right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import InvalidInput
from offramp.types.operating_point import OperatingPoint, read_points, write_points

MEASURED = {
    "metric": "accuracy", "score": 0.9, "full_score": 0.9, "agreement": 0.98, "mean_exit": 2.5, "depth": 3, "rows": 9
}  # fmt: skip
CERTIFICATE = {
    "risk": "drop", "level": 0.1, "delta": 0.05, "bound": 0.1, "observed": 0.05, "rows": 9, "method": "binomial",
    "engine": None, "data": "ab"
}  # fmt: skip
FINGERPRINT = {"weights": "ab", "content": "cd", "config": "ef", "exit_layers": [1, 2]}


def point(**changes: Any) -> dict[str, Any]:
    return {"policy": {"name": "entropy"}, "thresholds": [0.5, "never"], **changes}


def without(data: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}


FIELDS = [
    (point(thresholds=["0.5", "never"]), "thresholds: a number or \"never\", got '0.5'"),
    (point(thresholds=[True, 0.5]), 'thresholds: a number or "never", got true'),
    (point(thresholds=[None, 0.5]), 'thresholds: a number or "never", got null'),
    (point(thresholds=[math.nan, 0.5]), 'thresholds: a number or "never", got nan'),
    (point(thresholds=["Never", 0.5]), "thresholds: a number or \"never\", got 'Never'"),
    (point(thresholds=[[0.5], 0.5]), 'thresholds: a number or "never", got [0.5]'),
    (point(thresholds=0.5), 'thresholds: a list of numbers or "never", got 0.5'),
    (without(point(), "thresholds"), '"thresholds" is missing'),
    (without(point(), "policy"), '"policy" is missing'),
    (point(policy="entropy"), "policy: an object with a \"name\", got 'entropy'"),
    (point(policy={"measure": "entropy"}), 'policy: "name" is missing'),
    (point(policy={"name": 3}), "policy: name: text, got 3"),
    (point(treshold=[0.5]), "unknown key 'treshold'; did you mean 'thresholds'?"),
    (point(zzz=1), "unknown key 'zzz'; known: policy, thresholds, target, measured, certificate, label_thresholds, "),
    ([0.5], "an object, got [0.5]"),
    (None, "an object, got null"),
    (point(target={"max_drop": 2}), "target: max_drop: a number from 0 to 1, got 2"),
    (point(target={"max_drop": "1 %"}), "target: max_drop: a number from 0 to 1, got '1 %'"),
    (point(target={"speedup": 0.5}), "target: speedup: a number from 1, got 0.5"),
    (point(target={"latency_ms": 0}), "target: latency_ms: a number above 0, got 0"),
    (point(target={"speed": 2}), "target: unknown key 'speed'; did you mean 'speedup'?"),
    (point(measured={**MEASURED, "rows": 9.5}), "measured: rows: a whole number from 0, got 9.5"),
    (point(measured={**MEASURED, "depth": True}), "measured: depth: a whole number from 0, got true"),
    (point(measured={**MEASURED, "mean_exit": "2"}), "measured: mean_exit: a number from 0, got '2'"),
    (point(measured={**MEASURED, "agreement": 98}), "measured: agreement: a number from 0 to 1, got 98"),
    (point(measured={**MEASURED, "metric": 1}), "measured: metric: text, got 1"),
    (point(measured={**MEASURED, "about": {"engine": 1}}), "measured: about: engine: text, got 1"),
    (point(measured={**MEASURED, "about": "torch"}), "measured: about: an object, got 'torch'"),
    (point(measured=without(MEASURED, "rows")), 'measured: "rows" is missing'),
    (point(measured=[]), "measured: an object, got []"),
    (point(certificate={**CERTIFICATE, "level": -1}), "certificate: level: a number from 0 to 1, got -1"),
    (point(certificate={**CERTIFICATE, "rows": "9"}), "certificate: rows: a whole number from 0, got '9'"),
    (point(certificate=without(CERTIFICATE, "data")), 'certificate: "data" is missing'),
    (point(label_thresholds=[0.5, 1]), "label_thresholds: a number above 0 and below 1, got 1"),
    (point(label_thresholds=0.5), "label_thresholds: a list of numbers, got 0.5"),
    (point(fingerprint={**FINGERPRINT, "exit_layers": 2}), "fingerprint: exit_layers: a list of layer numbers, got 2"),
    (point(fingerprint=without(FINGERPRINT, "config")), 'fingerprint: "config" is missing'),
]
TEXTS = [
    ("", "{path}, line 1: not JSON (Expecting value)"),
    ('{"format": 1,\n "points": {},\n}', "{path}, line 3: not JSON ("),
    ("[]", "{path}: an object with operating points, got []"),
    ("3", "{path}: an object with operating points, got 3"),
    ('{"format": 1}', '{path}: "points" is missing'),
    ('{"format": 1, "points": []}', "{path}: points: an object with operating points by name, got []"),
    ('{"format": 1, "points": null}', "{path}: points: an object with operating points by name, got null"),
    ('{"format": "1", "points": {}}', "{path}: format: a number from 1, got '1'"),
    ('{"format": true, "points": {}}', "{path}: format: a number from 1, got true"),
    ('{"format": 0, "points": {}}', "{path}: format: a number from 1, got 0"),
    ('{"format": 1, "points": {}, "more": 1}', "{path}: unknown key 'more'; known: format, points"),
    ('{"points": {"a": {}}}', '{path}: "format" is missing; "format": 1 goes before "points"'),
    ('{"points": 3}', '{path}: "format" is missing; "format": 1 goes before "points"'),
    ('{"format": 1, "points": {"a": {}, "a": {}}}', "{path}: 'a' is there twice"),
    ('{"a": {"policy": {"name": "x", "name": "y"}}}', "{path}: 'name' is there twice"),
]


def read(text: str | bytes, tmp_path: Path) -> dict[str, OperatingPoint]:
    path = tmp_path / "operating_points.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_points(path)


@pytest.mark.parametrize(("data", "line"), FIELDS, ids=range(len(FIELDS)))
def test_a_wrong_field_is_named_with_what_would_be_right(data: Any, line: str, tmp_path: Path) -> None:
    for text in (json.dumps({"format": 1, "points": {"default": data}}), json.dumps({"default": data})):
        with pytest.raises(InvalidInput) as refused:
            read(text, tmp_path)
        assert str(refused.value).startswith(f"{tmp_path / 'operating_points.json'}: point 'default': {line}")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "line"), TEXTS, ids=range(len(TEXTS)))
def test_a_wrong_file_is_refused_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(text, tmp_path)
    assert str(refused.value).startswith(line.format(path=tmp_path / "operating_points.json"))
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"operating_points\.json: not a file of operating points \(.*utf-8"):
        read(b'{"\xff": 1}', tmp_path)


def test_a_byte_order_mark_and_words_are_read(tmp_path: Path) -> None:
    text = json.dumps({"format": 1, "points": {"ä": point(thresholds=[1, "always"], measured=None, target=None)}})
    points = read(b"\xef\xbb\xbf" + text.encode(), tmp_path)
    assert points == {"ä": OperatingPoint({"name": "entropy"}, (1.0, -math.inf))}


def test_every_field_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = point(
        target={"max_drop": 0.01},
        measured={**MEASURED, "about": {"engine": "torch"}, "expected_ms": 1.5},
        certificate={**CERTIFICATE, "weights": "ab", "note": ""},
        label_thresholds=[0.25, 0.5],
        fingerprint=FINGERPRINT,
    )
    points = read(json.dumps({"format": 1, "points": {"full": full}}), tmp_path)
    write_points(points, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == {"format": 1, "points": {"full": full}}


@pytest.mark.parametrize("value", [True, "0.5"])
def test_a_threshold_is_a_number_in_python_too(value: Any) -> None:
    with pytest.raises(InvalidInput, match="a threshold must be a number"):
        OperatingPoint({"name": "entropy"}, (value, 0.5))
