"""Proposals as files: what is written is read, and what is wrong is named with its file and field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import InvalidInput
from offramp.types.operating_point import Certificate
from offramp.types.proposal import Evidence, Proposal, trace_path

CERTIFICATE = Certificate("agreement", 0.02, 0.05, 0.02, 0.01, 500, "binomial", "onnx-int8", "ab", "cd")
PROPOSAL = Proposal(
    "2026-11-28T09:30:00+00:00",
    "tiny",
    "cd",
    "onnx-int8",
    "keep-99.5",
    "full",
    CERTIFICATE,
    Evidence(120, 17, 0.93, 0.0125),
    {0: 0.4, 1: -math.inf, 2: 0.9},
    {0: math.inf, 1: math.inf, 2: math.inf},
    "offramp calibrate model --from-audit 'a b.json'",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "20261128T093000Z-keep-99.5.json"
    PROPOSAL.save(path)
    assert Proposal.load(path) == PROPOSAL
    data = json.loads(path.read_text())
    assert data["format"] == 1
    assert data["thresholds"] == {
        "old": {"0": 0.4, "1": "always", "2": 0.9},
        "new": {"0": "never", "1": "never", "2": "never"},
    }
    assert data["evidence"] == {"rows": 120, "differing": 17, "agreement_bound": 0.93, "delta": 0.0125}
    assert trace_path(path) == tmp_path / "20261128T093000Z-keep-99.5.safetensors"


REMOVED = object()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights", REMOVED, '"weights" is missing'),
        ("wieghts", "cd", "unknown key 'wieghts'; did you mean 'weights'"),
        ("model", 3, "model: text, got 3"),
        ("format", 2, "format 2; this version of offramp reads up to 1"),
        ("format", "1", "format: a number from 1, got '1'"),
        ("evidence", {"rows": 1}, 'evidence: "differing" is missing'),
        ("certificate", {**CERTIFICATE.__dict__, "bound": 2}, "certificate: bound: a number from 0 to 1, got 2"),
        ("certificate", {**CERTIFICATE.__dict__, "risk": "drop"}, "certificate: risk: \"agreement\", got 'drop'"),
        (
            "certificate",
            {**CERTIFICATE.__dict__, "level": 0},
            "certificate: level: a number above 0 and below 1, got 0",
        ),
        ("thresholds", {"old": {"0": 1}}, 'thresholds: "new" is missing'),
        ("thresholds", {"old": {}, "new": {"0": 1}}, "thresholds: old: thresholds by layer number, got {}"),
        ("thresholds", {"old": {"a": 1}, "new": {"0": 1}}, "thresholds: old: thresholds by layer number"),
        ("thresholds", {"old": {"2": 1, "1": 1}, "new": {"0": 1}}, "thresholds: old: layer numbers that increase"),
        ("thresholds", {"old": {"0": None}, "new": {"0": 1}}, 'thresholds: old: 0: a number or "never", got null'),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_field(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = tmp_path / "a.json"
    PROPOSAL.save(path)
    data = json.loads(path.read_text())
    data[field] = value
    path.write_text(
        json.dumps({name: content for name, content in data.items() if content is not REMOVED}, default=str)
    )
    with pytest.raises(InvalidInput) as caught:
        Proposal.load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_what_is_no_proposal(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        ("[]", "an object, got []"),
        ("{", "line 1: not JSON"),
        ('{"a": 1, "a": 2}', "'a' is there"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidInput, match=message.replace("[", r"\[")):
            Proposal.load(path)
    with pytest.raises(InvalidInput, match="not a proposal"):
        Proposal.load(tmp_path / "b.json")
