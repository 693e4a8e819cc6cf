"""OpenAI's wire formats, without a server: bytes in, requests and answers out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from offramp.serving.endpoint import Call, Endpoint
from offramp.serving.protocols.openai import ENDPOINTS
from offramp.serving.request import Options, Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from support.served import QUICK, answered, refused, served_model

MODERATE, DECIDE = ENDPOINTS
CLASSES, BINARY = served_model(), served_model("fine", "toxic")
LABELS = served_model("hate", "threat", problem_type=MULTI_LABEL)
REGRESSOR = served_model("x", problem_type=REGRESSION)
PREDICATE = {"type": "predicate", "instructions": "good"}
CHOICES = {"type": "choice", "instructions": "?", "choices": [{"value": name} for name in ("good", "bad", "fine")]}
LEVELS = {"type": "score", "instructions": "?", "levels": [{"label": name} for name in ("bad", "fine", "good")]}


def request(endpoint: Endpoint, served: Served, body: dict[str, Any]) -> Request:
    return endpoint.read(Call(json.dumps(body).encode()), served)


def answer(endpoint: Endpoint, served: Served, body: dict[str, Any], *results: RowResult) -> Any:
    reply = endpoint.write(request(endpoint, served, body), results, served)
    assert (reply.status, reply.media_type) == (200, "application/json")
    return json.loads(reply.body)


# --- moderations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "items"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([{"type": "text", "text": "a"}], ["a"])],
)
@pytest.mark.parametrize("model", [None, "tiny", "omni-moderation-latest"])
def test_a_text_texts_and_a_part_become_rows(value: Any, items: list[str], model: str | None) -> None:
    rows = request(MODERATE, BINARY, {"input": value, "model": model, "new": 1})
    assert (rows.items, rows.options) == (items, Options())


def test_a_label_is_flagged_above_its_threshold_and_a_text_with_any_label() -> None:
    # Shares of each label against 1: sigmoid 3/4 and 1/5; then 0.3 and 0.2.
    rows = [RowResult(_log(3, 1 / 4), 2, 5), RowResult(_log(3 / 7, 1 / 4), 2, 5)]

    content = answer(MODERATE, LABELS, {"input": ["a", "b"]}, *rows)

    assert sorted(content) == ["id", "model", "results"]
    assert (content["id"][:5], content["model"]) == ("modr-", "tiny")
    first, second = content["results"]
    assert first == {
        "flagged": True,
        "categories": {"hate": True, "threat": False},
        "category_scores": {"hate": pytest.approx(0.75), "threat": pytest.approx(0.2)},
        "category_applied_input_types": {"hate": ["text"], "threat": ["text"]},
    }
    assert (second["flagged"], second["categories"]) == (False, {"hate": False, "threat": False})


def _log(*odds: float) -> Any:
    return answered(*odds).logits


def test_thresholds_of_labels_are_those_of_the_requests_point() -> None:
    points = LABELS.points | {"quick": replace(QUICK, label_thresholds=(0.8, 0.1))}
    served = replace(LABELS, points=points)
    row = RowResult(_log(3, 1 / 4), 2, 5)
    quick = {"input": "a", "early_exit": {"operating_point": "quick"}}
    assert answer(MODERATE, served, {"input": "a"}, row)["results"][0]["categories"] == {"hate": True, "threat": False}
    assert answer(MODERATE, served, quick, row)["results"][0]["categories"] == {"hate": False, "threat": True}


def test_of_two_classes_the_second_one_is_the_only_category() -> None:
    content = answer(MODERATE, BINARY, {"input": ["a", "b"]}, answered(3, 1), answered(1, 3))["results"]
    assert [(one["flagged"], one["categories"], one["category_scores"]) for one in content] == [
        (False, {"toxic": False}, {"toxic": pytest.approx(0.25)}),
        (True, {"toxic": True}, {"toxic": pytest.approx(0.75)}),
    ]


# --- decisions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ([{"role": "user", "content": "a"}], "a"),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}], "a"),
        (
            [{"role": "user", "content": [{"type": "input_json", "data": {"b": [1, None], "a": "é"}}]}],
            '{"b":[1,null],"a":"é"}',
        ),
    ],
)
def test_an_input_is_one_text(value: Any, text: str) -> None:
    assert request(DECIDE, CLASSES, {"model": "gpt-6-luna", "input": value, "questions": [PREDICATE]}).items == [text]


def test_questions_are_answered_in_their_order_from_one_row() -> None:
    """By hand: probabilities 1/8, 2/8, 5/8 of "bad", "fine", "good".

    Confidence of the choice: (5/8 - 1/3) / (1 - 1/3) = 7/16. Of the score: mean distance to the best level is
    2/8 * 1 + 1/8 * 2 = 1/2, that of three equal levels to the middle one 2/3, so 1 - 3/4.
    """
    body = {"input": "a", "questions": [LEVELS, PREDICATE | {"name": "is good"}, CHOICES], "safety_identifier": "u"}

    content = answer(DECIDE, CLASSES, body, answered(1, 2, 5, tokens=7))

    share = {"bad": pytest.approx(1 / 8), "fine": pytest.approx(2 / 8), "good": pytest.approx(5 / 8)}
    assert content == {
        "model": "tiny",
        "answers": [
            {
                "type": "score",
                "name": None,
                "score": pytest.approx(1.5),
                "confidence": pytest.approx(1 / 4),
                "probabilities": [
                    {"label": name, "value": value, "probability": share[name]}
                    for value, name in enumerate(("bad", "fine", "good"))
                ],
            },
            {"type": "predicate", "name": "is good", "probability": share["good"]},
            {
                "type": "choice",
                "name": None,
                "choice": "good",
                "confidence": pytest.approx(7 / 16),
                "probabilities": [{"value": name, "probability": share[name]} for name in ("good", "bad", "fine")],
            },
        ],
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 7,
        },
    }


def test_a_predicate_of_several_labels_has_the_labels_own_probability() -> None:
    body = {"input": "a", "questions": [{"type": "predicate", "instructions": "threat"}]}
    assert answer(DECIDE, LABELS, body, RowResult(_log(3, 1 / 4), 2, 5))["answers"][0]["probability"] == pytest.approx(
        0.2
    )


@pytest.mark.parametrize(
    ("value", "score", "shares"), [(1.25, 1.25, [0, 0.75, 0.25]), (-3.0, 0, [1, 0, 0]), (2.5, 2, [0, 0, 1])]
)
def test_a_regression_counts_the_levels(value: float, score: float, shares: list[float]) -> None:
    (content,) = answer(DECIDE, REGRESSOR, {"input": "a", "questions": [LEVELS]}, answered(math.exp(value)))["answers"]
    assert content["score"] == pytest.approx(score, abs=1e-6)
    assert [level["probability"] for level in content["probabilities"]] == pytest.approx(shares, abs=1e-6)


def test_fields_of_early_exit_come_only_where_they_are_asked_for() -> None:
    details = {"early_exit": {"operating_point": "quick", "max_depth": 2, "details": True}}
    decided = answer(DECIDE, CLASSES, {"input": "a", "questions": [PREDICATE]} | details, answered(1, 2, 5))
    flagged = answer(MODERATE, BINARY, {"input": "a"} | details, answered(1, 3))["results"][0]
    assert decided["early_exit"]["exit_layer"] == flagged["early_exit"]["exit_layer"] == 2
    options = Options("quick", 2, details=True)
    assert request(DECIDE, CLASSES, {"input": "a", "questions": [PREDICATE]} | details).options == options


# --- refusals -------------------------------------------------------------------------------------------------


def body_of(*questions: dict[str, Any], value: Any = "a") -> dict[str, Any]:
    return {"input": value, "questions": list(questions)}


@pytest.mark.parametrize(
    ("endpoint", "served", "body", "status", "words"),
    [
        (MODERATE, CLASSES, {"input": "a"}, 400, "3 classes that exclude each other"),
        (MODERATE, REGRESSOR, {"input": "a"}, 400, "is a regression"),
        (
            MODERATE,
            BINARY,
            {"input": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            400,
            "images are not read",
        ),
        (MODERATE, BINARY, {"input": ["a", {"type": "text", "text": "b"}]}, 400, "must be a text, texts, or one part"),
        (MODERATE, BINARY, {"input": []}, 400, "must be a text, texts, or one part"),
        (MODERATE, BINARY, {"input": "a", "model": "other"}, 404, "no model 'other'; this server has 'tiny'"),
        (MODERATE, BINARY, {}, 400, "missing required field `input`"),
        (DECIDE, CLASSES, body_of(), 400, "length >= 1"),
        (
            DECIDE,
            CLASSES,
            body_of(PREDICATE, {**PREDICATE, "instructions": "Is it good?"}),
            400,
            "questions[1]: tiny was not trained for this question: a predicate must be a label of the model, "
            "one of 'bad', 'fine', 'good'; got 'Is it good?'",
        ),
        (DECIDE, REGRESSOR, body_of(PREDICATE), 400, "a predicate needs labels"),
        (DECIDE, CLASSES, body_of({**CHOICES, "choices": CHOICES["choices"][:2]}), 400, "options of a choice must be"),
        (
            DECIDE,
            CLASSES,
            body_of({**CHOICES, "choices": [*CHOICES["choices"], {"value": "bad"}]}),
            400,
            "options of a choice must be",
        ),
        (
            DECIDE,
            BINARY,
            body_of({**CHOICES, "choices": [{"value": True}, {"value": False}]}),
            400,
            "must be the labels",
        ),
        (
            DECIDE,
            LABELS,
            body_of(CHOICES),
            400,
            "labels that exclude each other; this model is multi label with 2 outputs",
        ),
        (
            DECIDE,
            CLASSES,
            body_of({**LEVELS, "levels": LEVELS["levels"][::-1]}),
            400,
            "in its order: 'bad', 'fine', 'good'",
        ),
        (DECIDE, LABELS, body_of(LEVELS), 400, "ordered classes or one output"),
        (DECIDE, CLASSES, body_of({"type": "rank"}), 400, "Invalid value 'rank'"),
        (
            DECIDE,
            CLASSES,
            body_of(PREDICATE, value=[{"role": "system", "content": "a"}]),
            400,
            "one message of the user",
        ),
        (
            DECIDE,
            CLASSES,
            body_of(PREDICATE, value=[{"role": "user", "content": "a"}] * 2),
            400,
            "one message of the user",
        ),
        (DECIDE, CLASSES, body_of(PREDICATE, value=[{"type": "function_call", "name": "f"}]), 400, "one message of"),
        (
            DECIDE,
            CLASSES,
            body_of(PREDICATE, value=[{"role": "user", "content": [{"type": "input_image"}]}]),
            400,
            "input_text or input_json",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_form(
    endpoint: Endpoint, served: Served, body: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(Refusal) as error:
        request(endpoint, served, body)
    reply = endpoint.refuse(Call(), error.value)
    content = json.loads(reply.body)["error"]
    assert reply.status == status
    assert words in content["message"]
    assert "\n" not in content["message"]
    assert (content["type"], sorted(content)) == ("invalid_request_error", ["code", "message", "param", "type"])
    assert content["code"] == ("model_not_found" if status == 404 else None)


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "code"),
    [
        (Refusal("overloaded", "full", 1.0), 429, "invalid_request_error", "rate_limit_exceeded"),
        (Refusal("failed", "not finite"), 500, "server_error", None),
    ],
)
def test_other_refusals_have_their_own_status(refusal: Refusal, status: int, kind: str, code: str | None) -> None:
    with pytest.raises(Refusal) as error:
        answer(DECIDE, CLASSES, body_of(PREDICATE), refused(refusal))
    reply = DECIDE.refuse(Call(), error.value)
    assert (reply.status, json.loads(reply.body)["error"]) == (
        status,
        {"message": str(refusal), "type": kind, "param": None, "code": code},
    )


def test_a_field_of_another_type_is_named() -> None:
    with pytest.raises(Refusal) as error:
        request(MODERATE, BINARY, {"input": 3})
    assert json.loads(MODERATE.refuse(Call(), error.value).body)["error"]["param"] == "input"
