"""System One's wire format, without a server; test_jevcompat.py has jevcompat's checks and the official client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offramp.serving.endpoint import Call
from offramp.serving.protocols.systemone import ENDPOINTS
from offramp.serving.request import Options, Refusal, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import REGRESSION
from support.served import answered, refused, served_model

(ENDPOINT,) = ENDPOINTS
CLASSES = served_model()
GOOD = {"type": "noul", "instructions": "good"}


def body_of(*questions: dict[str, Any], **changes: Any) -> bytes:
    names = {f"q{number}": question for number, question in enumerate(questions)}
    return json.dumps({"model": "jev-latest", "state": "a", "questions": names} | changes).encode()


def answers(served: Served, body: bytes, row: RowResult) -> Any:
    reply = ENDPOINT.write(ENDPOINT.read(Call(body), served), [row], served)
    assert (reply.status, reply.media_type) == (200, "application/json")
    return json.loads(reply.body)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("a", "a"),
        ({"b": [1, 2.5, None], "a": "é"}, '{"b":[1,2.5,null],"a":"é"}'),
        (["a", {"b": True}], '["a",{"b":true}]'),
    ],
)
def test_a_state_is_its_text_or_its_json(state: Any, text: str) -> None:
    request = ENDPOINT.read(Call(body_of(GOOD, state=state, x_trace_id="t")), CLASSES)
    assert (request.items, request.options) == ([text], Options())


def test_questions_are_answered_from_one_row() -> None:
    """By hand: probabilities 1/8, 2/8, 5/8 of "bad", "fine", "good"; the confidences are derived in test_openai.py."""
    choice = {"type": "choice", "criteria": {"good": "best", "bad": None, "fine": ["so", "so"]}}
    score = {"type": "score", "criteria": ["bad", "fine", "good"]}
    criterion = {"type": "noul", "criteria": {"true": "fine", "false": {"any": 1}}}
    share = {"bad": pytest.approx(1 / 8), "fine": pytest.approx(2 / 8), "good": pytest.approx(5 / 8)}

    content = answers(CLASSES, body_of(GOOD, criterion, choice, score), answered(1, 2, 5, tokens=7))

    assert content == {
        "model": "tiny",
        "answers": {
            "q0": {"type": "noul", "noul": share["good"]},
            "q1": {"type": "noul", "noul": share["fine"]},
            "q2": {"type": "choice", "choice": "good", "confidence": pytest.approx(7 / 16), "probabilities": share},
            "q3": {
                "type": "score",
                "score": pytest.approx(1.5),
                "confidence": pytest.approx(1 / 4),
                "probabilities": {"0": share["bad"], "1": share["fine"], "2": share["good"]},
                "legend": {"0": "bad", "1": "fine", "2": "good"},
            },
        },
        "usage": {"input_tokens": 7, "output_tokens": 0},
    }


def test_levels_of_a_regression_may_be_any_json_and_come_back_as_they_are() -> None:
    levels = [{"label": "calm"}, "angry", ["very", "angry"]]
    body = body_of({"type": "score", "criteria": levels})
    content = answers(served_model("x", problem_type=REGRESSION), body, answered(1))["answers"]["q0"]
    assert content["legend"] == {"0": levels[0], "1": levels[1], "2": levels[2]}
    assert (content["score"], content["confidence"]) == (0, 1)
    assert content["probabilities"] == {"0": 1, "1": 0, "2": 0}


def test_fields_of_early_exit_come_only_where_they_are_asked_for() -> None:
    body = body_of(GOOD, early_exit={"operating_point": "quick", "details": True})
    assert answers(CLASSES, body, answered(1, 2, 5))["early_exit"]["operating_point"] == "quick"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"state": "a', []),
        (body_of(GOOD, state=None), ["state"]),
        (body_of(), ["questions"]),
        (body_of({"type": "noul"}), []),
        (body_of({"type": "box", "instructions": "a"}), ["questions", "type"]),
        (body_of({"type": "choice", "criteria": {"good": None}}), ["questions", "criteria"]),
        (body_of({"type": "score", "criteria": {"0": "bad", "1": "good"}}), ["questions", "criteria"]),
        (body_of({"type": "score", "criteria": ["a"] * 11}), ["questions", "criteria"]),
        (body_of(questions={"": GOOD}), ["questions"]),
        (b'{"state": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", []),
    ],
)
def test_a_body_at_fault_is_a_422_that_names_the_field(body: bytes, place: list[str]) -> None:
    with pytest.raises(Refusal) as error:
        ENDPOINT.read(Call(body), CLASSES)
    reply = ENDPOINT.refuse(Call(), error.value)
    (fault,) = json.loads(reply.body)["detail"]
    assert (reply.status, fault["loc"], fault["msg"]) == (422, ["body", *place], str(error.value))


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (Refusal("overloaded", "full", 1.0), 429, "rate_limit_error"),
        (Refusal("failed", "not finite"), 500, "internal_error"),
        (Refusal("timeout", "late"), 504, "timeout"),
    ],
)
def test_other_refusals_have_a_type_and_a_message(refusal: Refusal, status: int, kind: str) -> None:
    with pytest.raises(Refusal) as error:
        answers(CLASSES, body_of(GOOD), refused(refusal))
    reply = ENDPOINT.refuse(Call(), error.value)
    assert reply.status == status
    assert json.loads(reply.body) == {"detail": {"error_type": kind, "message": str(refusal)}}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (body_of(GOOD, model="other"), 404, "not_found"),
        (body_of(GOOD, {"type": "noul", "instructions": "Is it good?"}), 400, "unsupported_question"),
    ],
)
def test_another_model_and_another_question_are_named(body: bytes, status: int, kind: str) -> None:
    with pytest.raises(Refusal) as error:
        ENDPOINT.read(Call(body), CLASSES)
    reply = ENDPOINT.refuse(Call(), error.value)
    assert (reply.status, json.loads(reply.body)["detail"]["error_type"]) == (status, kind)
