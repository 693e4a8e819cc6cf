"""vLLM's wire formats, without a server: bytes in, requests and answers out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from offramp.serving.endpoint import Call, Endpoint
from offramp.serving.protocols.vllm import ENDPOINTS, PAGES
from offramp.serving.request import Kind, Options, Refusal, Request, RowResult, TokenIds
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from support.served import answered, refused, served_model

CLASSIFY, SCORE, RERANK = ENDPOINTS
CLASSES, PAIRS, REGRESSOR = served_model(), served_model("off", "on"), served_model("x", problem_type=REGRESSION)
CUT = {"query": "q", "documents": ["a"]}
USAGE = {"completion_tokens": 0, "prompt_tokens_details": None}


def request(endpoint: Endpoint, served: Served, body: dict[str, Any], **headers: str) -> Request:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return endpoint.read(Call(json.dumps(body).encode(), names), served)


def answer(endpoint: Endpoint, served: Served, body: dict[str, Any], *results: RowResult, **headers: str) -> Any:
    reply = endpoint.write(request(endpoint, served, body, **headers), results, served)
    assert (reply.status, reply.media_type) == (200, "application/json")
    return json.loads(reply.body)


# --- requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "items"),
    [
        ({"input": "a"}, ["a"]),
        ({"input": ["a", "b"]}, ["a", "b"]),
        ({"input": [2, 7, 3]}, [TokenIds([2, 7, 3])]),
        ({"input": [[2, 3], [2, 7, 3]]}, [TokenIds([2, 3]), TokenIds([2, 7, 3])]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, ["a"]),
        ({"input": [2, 3], "add_special_tokens": False}, [TokenIds([2, 3])]),
        ({"input": "a", "user": "u", "padding": "max_length", "cache_salt": "s", "priority": 0, "new": [1]}, ["a"]),
    ],
)
def test_input_becomes_rows(body: dict[str, Any], items: list[Any]) -> None:
    rows = request(CLASSIFY, CLASSES, {"model": "tiny", **body})
    assert (rows.items, rows.options) == (items, Options(truncate=False))


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("q", "a", [("q", "a")]),
        ("q", ["a", "b"], [("q", "a"), ("q", "b")]),
        (["q"], ["a", "b"], [("q", "a"), ("q", "b")]),
        (["q", "r"], ["a", "b"], [("q", "a"), ("r", "b")]),
    ],
)
def test_one_text_is_scored_with_each_or_each_with_its_own(
    names: tuple[str, str], first: Any, second: Any, pairs: list[tuple[str, str]]
) -> None:
    rows = request(SCORE, PAIRS, dict(zip(names, (first, second), strict=True)))
    assert (rows.items, rows.options) == (pairs, Options(truncate=False))


@pytest.mark.parametrize("documents", [["a", "b"], [{"text": "a", "title": "t"}, "b"]])
def test_documents_become_pairs_and_are_cut_as_the_server_is_set(documents: Any) -> None:
    rows = request(RERANK, PAIRS, {"query": "q", "documents": documents, "top_n": 1, "return_documents": False})
    assert (rows.items, rows.options) == ([("q", "a"), ("q", "b")], Options())
    assert request(RERANK, PAIRS, {"query": "q", "documents": "a"}).items == [("q", "a")]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"truncate_prompt_tokens": 7}, Options(truncate=True, max_tokens=7)),
        ({"truncate_prompt_tokens": -1}, Options(truncate=True)),
        ({"truncate_prompt_tokens": 32, "truncation_side": "left"}, Options(None, None, False, True, 32, "left")),
        ({"max_tokens_per_doc": 4096}, Options(truncate=True)),
        (
            {"early_exit": {"operating_point": "quick", "max_depth": 2, "details": True}},
            Options("quick", 2, True),
        ),
    ],
)
def test_fields_become_options(fields: dict[str, Any], options: Options) -> None:
    assert request(RERANK, PAIRS, CUT | fields).options == options


@pytest.mark.parametrize(
    ("endpoint", "served", "body", "kind", "words"),
    [
        (CLASSIFY, CLASSES, {}, "validation", "either input or messages"),
        (CLASSIFY, CLASSES, {"input": "a", "messages": []}, "validation", "either input or messages"),
        (CLASSIFY, CLASSES, {"input": []}, "validation", "input is empty"),
        (CLASSIFY, CLASSES, {"input": ["a", 1]}, "validation", "mixes texts and token ids"),
        (CLASSIFY, CLASSES, {"input": [True]}, "mistyped", "$.input"),
        (CLASSIFY, CLASSES, {"input": {"text": "a"}}, "mistyped", "$.input"),
        (CLASSIFY, CLASSES, {"input": "a", "normalize": None}, "validation", "use use_activation"),
        (CLASSIFY, CLASSES, {"input": "a", "add_special_tokens": False}, "validation", "add_special_tokens"),
        (CLASSIFY, CLASSES, {"input": "a", "model": "other"}, "unknown_model", "'tiny'"),
        (CLASSIFY, CLASSES, {"input": "a", "priority": 3}, "validation", "priority must be 0"),
        (CLASSIFY, CLASSES, {"input": "a", "truncate_prompt_tokens": -2}, "mistyped", "$.truncate_prompt_tokens"),
        (CLASSIFY, CLASSES, {"input": "a", "truncate_prompt_tokens": 0}, "validation", "from 1 to 32; got 0"),
        (CLASSIFY, CLASSES, {"input": "a", "truncate_prompt_tokens": 33}, "validation", "from 1 to 32; got 33"),
        (CLASSIFY, CLASSES, {"input": "a", "truncation_side": "Left"}, "mistyped", "$.truncation_side"),
        (CLASSIFY, CLASSES, {"input": "a", "padding": "longest"}, "mistyped", "$.padding"),
        (CLASSIFY, CLASSES, {"input": "a", "cache_salt": ""}, "mistyped", "$.cache_salt"),
        (CLASSIFY, CLASSES, {"input": "a", "early_exit": {"depth": 3}}, "mistyped", "depth"),
        (CLASSIFY, CLASSES, {"messages": [{"role": "system", "content": "a"}]}, "validation", "one message"),
        (CLASSIFY, CLASSES, {"messages": [{"role": "user", "content": "a"}] * 2}, "validation", "one message"),
        (CLASSIFY, CLASSES, {"messages": [{"role": "user", "content": []}]}, "validation", "must be one text"),
        (SCORE, PAIRS, {"queries": "q"}, "validation", "pairs of fields: queries and documents, queries and items"),
        (SCORE, PAIRS, {"queries": "q", "documents": "a", "items": "b"}, "validation", "exactly one of these pairs"),
        (SCORE, PAIRS, {"text_1": ["q"] * 2, "text_2": ["a"] * 3}, "validation", "got 2:3"),
        (SCORE, PAIRS, {"text_1": ["q"] * 2, "text_2": "a"}, "validation", "got 2:1"),
        (SCORE, PAIRS, {"text_1": "q", "text_2": []}, "validation", "at least one text"),
        (SCORE, PAIRS, {"text_1": "q", "text_2": {"content": []}}, "mistyped", "$.text_2"),
        (SCORE, PAIRS, {"text_1": "q", "text_2": "a", "instruction": "rank"}, "validation", "chat template"),
        (SCORE, CLASSES, {"text_1": "q", "text_2": "a"}, "not_applicable", "has 3 outputs"),
        (RERANK, PAIRS, {"query": "q", "documents": []}, "validation", "documents is empty"),
        (RERANK, PAIRS, {"documents": ["a"]}, "mistyped", "`query`"),
        (RERANK, PAIRS, CUT | {"top_n": -1}, "mistyped", "$.top_n"),
        (RERANK, PAIRS, CUT | {"max_tokens_per_doc": 8}, "validation", "max_tokens_per_doc must be 0 or at least 32"),
        (RERANK, PAIRS, CUT | {"rank_fields": ["title"]}, "validation", "rank_fields"),
        (RERANK, served_model("a", "b", problem_type=MULTI_LABEL), CUT, "not_applicable", "two classes"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    endpoint: Endpoint, served: Served, body: dict[str, Any], kind: Kind, words: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        request(endpoint, served, body)
    assert (refusal.value.kind, "\n" in str(refusal.value)) == (kind, False)
    assert words in str(refusal.value)


# --- answers --------------------------------------------------------------------------------------------------


def test_classes_come_with_probabilities_in_the_order_of_the_outputs() -> None:
    body = {"input": ["a", "b"]}
    results = answered(1, 1, 2, tokens=4), answered(6, 1, 1, tokens=5)
    document = answer(CLASSIFY, CLASSES, body, *results, x_request_id="7")
    assert isinstance(document.pop("created"), int)
    first, second = document["data"]
    assert first.pop("probs") == pytest.approx([0.25, 0.25, 0.5])
    assert second.pop("probs") == pytest.approx([0.75, 0.125, 0.125])
    assert document == {
        "id": "classify-7",
        "object": "list",
        "model": "tiny",
        "data": [{"index": 0, "label": "good", "num_classes": 3}, {"index": 1, "label": "bad", "num_classes": 3}],
        "usage": {"prompt_tokens": 9, "total_tokens": 9, **USAGE},
    }


@pytest.mark.parametrize(
    ("problem_type", "activation", "expected"),
    [
        (MULTI_LABEL, None, [0.5, 0.75]),  # sigmoid of log x is x / (x + 1)
        (MULTI_LABEL, False, [0.0, math.log(3)]),
        (REGRESSION, True, [0.0, math.log(3)]),
        ("single_label_classification", False, [0.0, math.log(3)]),
    ],
)
def test_scores_follow_the_kind_of_problem(problem_type: str, activation: bool | None, expected: list[float]) -> None:
    served = served_model("off", "on", problem_type=problem_type)
    row = answer(CLASSIFY, served, {"input": "a", "use_activation": activation}, answered(1, 3))["data"][0]
    assert row["probs"] == pytest.approx(expected)
    assert row["label"] == "on"


@pytest.mark.parametrize(
    ("served", "activation", "expected"),
    [(PAIRS, True, 0.75), (PAIRS, False, math.log(3)), (REGRESSOR, True, 0.75), (REGRESSOR, False, math.log(3))],
)
def test_a_score_is_a_sigmoid_unless_it_is_to_be_raw(served: Served, activation: bool, expected: float) -> None:
    result = answered(1, 3) if served is PAIRS else answered(3)
    body = {"text_1": "q", "text_2": "a", "use_activation": activation}
    document = answer(SCORE, served, body, result, x_request_id="7")
    assert document["data"] == [{"index": 0, "object": "score", "score": pytest.approx(expected)}]
    assert (document["id"], document["usage"]["total_tokens"]) == ("score-7", 5)


@pytest.mark.parametrize(("top_n", "order"), [(0, [1, 0, 2, 3]), (None, [1, 0, 2, 3]), (2, [1, 0]), (9, [1, 0, 2, 3])])
def test_the_most_relevant_document_comes_first(top_n: int | None, order: list[int]) -> None:
    documents: list[Any] = ["a", {"text": "b"}, "c", "d"]
    results = [answered(1, odds, tokens=tokens) for odds, tokens in ((1, 4), (3, 5), (1, 6), (1 / 3, 7))]
    document = answer(RERANK, PAIRS, {"query": "q", "documents": documents, "top_n": top_n}, *results)
    scores = {0: 0.5, 1: 0.75, 2: 0.5, 3: 0.25}
    assert document.pop("id").startswith("score-")
    assert document == {
        "model": "tiny",
        "usage": {"prompt_tokens": 22, "total_tokens": 22},
        "results": [
            {"index": index, "document": {"text": "abcd"[index]}, "relevance_score": pytest.approx(scores[index])}
            for index in order
        ],
    }


@pytest.mark.parametrize(
    ("endpoint", "body", "rows"),
    [(CLASSIFY, {"input": "a"}, "data"), (SCORE, {"text_1": "q", "text_2": "a"}, "data"), (RERANK, CUT, "results")],
)
def test_fields_of_early_exit_come_only_when_asked_for(endpoint: Endpoint, body: dict[str, Any], rows: str) -> None:
    fields = {"early_exit": {"details": True, "operating_point": "quick"}}
    with_details = answer(endpoint, PAIRS, body | fields, answered(1, 3))[rows][0].pop("early_exit")
    assert (with_details["exit_layer"], with_details["operating_point"]) == (2, "quick")
    assert "early_exit" not in answer(endpoint, PAIRS, body, answered(1, 3))[rows][0]


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "param"),
    [
        (Refusal("mistyped", "cannot be read: Expected `int` - at `$.top_n`"), 400, "Bad Request", "top_n"),
        (Refusal("validation", "no"), 400, "BadRequestError", None),
        (Refusal("not_applicable", "no"), 400, "BadRequestError", None),
        (Refusal("unknown_model", "no"), 404, "NotFoundError", None),
        (Refusal("batch_size", "no"), 422, "UnprocessableEntityError", None),
        (Refusal("overloaded", "no"), 429, "Too Many Requests", None),
        (Refusal("failed", "no"), 500, "InternalServerError", None),
        (Refusal("unavailable", "no"), 503, "Service Unavailable", None),
    ],
)
def test_errors_have_the_form_of_openai_with_the_status_as_code(
    refusal: Refusal, status: int, kind: str, param: str | None
) -> None:
    reply = CLASSIFY.refuse(Call(), refusal)
    error = {"message": str(refusal), "type": kind, "param": param, "code": status}
    assert (reply.status, json.loads(reply.body)) == (status, {"error": error})


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_row_without_an_answer_refuses_the_request(endpoint: Endpoint) -> None:
    body = {"input": ["a", ""], "queries": "q", "query": "q", "documents": ["a", ""]}
    results = [answered(1, 3), refused(Refusal("empty", "the text is empty"))]
    rows = request(endpoint, PAIRS, body)
    with pytest.raises(Refusal, match="input 1: the text is empty"):
        endpoint.write(rows, results, PAIRS)


def test_the_model_is_listed_in_the_form_of_openai() -> None:
    (page,) = PAGES
    assert page.paths == ("/v1/models",)
    assert json.loads(page.write(Call(), CLASSES).body) == {
        "object": "list",
        "data": [
            {
                "id": "tiny",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "offramp",
                "root": "tiny",
                "parent": None,
                "max_model_len": 32,
            }
        ],
    }
