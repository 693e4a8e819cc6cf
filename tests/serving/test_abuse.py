"""What no honest client sends gets a 4xx or an answer, soon, and changes no other answer; see `support.abuse`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import offramp
from support.abuse import BODIES, HEADERS, TEXT, TWO_CLASSES, Abuser, bodies, connections


@pytest.fixture(scope="module")
def abusers(url: str, url_of_pairs: str) -> Iterator[tuple[Abuser, Abuser]]:
    """Of a model with three classes, and of one with two."""
    three, two = (Abuser(int(address.rpartition(":")[2])) for address in (url, url_of_pairs))
    yield three, two
    three.close()
    two.close()


@pytest.fixture(scope="module")
def abuser(abusers: tuple[Abuser, Abuser]) -> Abuser:
    return abusers[0]


@pytest.mark.parametrize("path", BODIES)
@settings(
    max_examples=20, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
)
@given(data=st.data())
def test_no_body_and_no_header_gets_a_5xx_or_no_answer(
    path: str, abusers: tuple[Abuser, Abuser], data: st.DataObject
) -> None:
    abuser = abusers[path in TWO_CLASSES]
    body, headers = data.draw(bodies(path)), data.draw(st.sampled_from(HEADERS))
    abuser.send(path, iter([body[:9], body[9:]]) if data.draw(st.integers(0, 9)) == 0 else body, headers)
    assert abuser.faults == []


def test_no_connection_gets_a_5xx_or_no_end(abuser: Abuser) -> None:
    for content, half in connections():
        abuser.send_raw(content, half)
    abuser.send("/predict", b'{"inputs": "' + b"a" * 10_000_000 + b'"}', {})
    assert abuser.faults == []
    assert abuser.statuses["413"] + abuser.statuses["closed"] > 0


def test_the_answers_behind_them_are_the_predictors(abuser: Abuser, exported: Path) -> None:
    texts = [TEXT, "bad\0 cat", "\u202e good", "a" * 5000, "\U0001f642 fine", '\\"']
    expected = offramp.Predictor.load(exported, "onnx-int8")(texts, top_k=None)
    for text, row in zip(texts, expected, strict=True):
        answer = json.loads(abuser.send("/predict", json.dumps({"inputs": text}).encode(), {}))
        assert {label["label"]: label["score"] for label in answer} == row["scores"]
