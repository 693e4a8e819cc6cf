"""The wire formats of text-embeddings-inference and Hugging Face, without a server."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from offramp.serving.endpoint import Call, Endpoint
from offramp.serving.protocols import shared_paths, tei
from offramp.serving.request import Kind, Options, Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from support.served import answered, refused, served_model

PREDICT, RERANK = tei.PREDICT, tei.RERANK
ROOT, SHARED_RERANK = shared_paths.ENDPOINTS
CLASSES, PAIRS, REGRESSOR = served_model(), served_model("off", "on"), served_model("x", problem_type=REGRESSION)


def call(body: Any) -> Call:
    return Call(body if isinstance(body, bytes) else json.dumps(body).encode())


def request(endpoint: Endpoint, body: Any, served: Served = CLASSES) -> Request:
    return endpoint.read(call(body), served)


def answer(endpoint: Endpoint, body: Any, *results: RowResult, served: Served = CLASSES) -> Any:
    reply = endpoint.write(request(endpoint, body, served), results, served)
    assert (reply.status, reply.media_type) == (200, "application/json")
    return json.loads(reply.body)


def refusal(endpoint: Endpoint, body: Any, served: Served = CLASSES) -> tuple[int, Any]:
    with pytest.raises(Refusal) as caught:
        request(endpoint, body, served)
    reply = endpoint.refuse(call(body), caught.value)
    return reply.status, json.loads(reply.body)


# --- what is a text, a pair, a batch --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "items", "batch"),
    [
        ("a", ["a"], False),
        (["a"], ["a"], False),
        (["a", "b"], [("a", "b")], False),  # one pair, not two texts
        ([["a"]], ["a"], True),
        ([["a"], ["b", "c"]], ["a", ("b", "c")], True),
    ],
)
def test_flat_lists_are_one_row_and_nested_lists_are_batches(inputs: Any, items: Any, batch: bool) -> None:
    for endpoint in (PREDICT, ROOT):
        rows = request(endpoint, {"inputs": inputs})
        assert rows.items == items
        answers = answer(endpoint, {"inputs": inputs}, *[answered(1, 1, 2)] * len(items))
        assert isinstance(answers[0], list) == batch


@pytest.mark.parametrize("inputs", [[], [[]], ["a", "b", "c"], [["a", "b", "c"]], ["a", ["b"]], [["a"], "b"], 3, None])
def test_other_inputs_are_a_validation_error(inputs: Any) -> None:
    status, error = refusal(PREDICT, {"inputs": inputs})
    assert (status, error["error_type"]) == (422, "Validation")


def test_labels_are_sorted_by_score_and_raw_scores_are_logits() -> None:
    row = answered(1, 2, 5)  # of 8
    assert answer(PREDICT, {"inputs": "a"}, row) == [
        {"score": pytest.approx(0.625), "label": "good"},
        {"score": pytest.approx(0.25), "label": "fine"},
        {"score": pytest.approx(0.125), "label": "bad"},
    ]
    raw = answer(PREDICT, {"inputs": "a", "raw_scores": True}, row)
    assert [one["score"] for one in raw] == row.logits[[2, 1, 0]].tolist()


def test_several_labels_and_one_output_have_sigmoids_and_values_stay_values() -> None:
    several = served_model("a", "b", problem_type=MULTI_LABEL)
    scores = answer(PREDICT, {"inputs": "a"}, answered(3, 1), served=several)  # log 3 -> 3/4, log 1 -> 1/2
    assert scores == [{"score": pytest.approx(0.75), "label": "a"}, {"score": pytest.approx(0.5), "label": "b"}]
    row, body = answered(4), {"inputs": "a"}
    assert answer(PREDICT, body, row, served=REGRESSOR) == [{"score": pytest.approx(0.8), "label": "x"}]
    raw = answer(PREDICT, body | {"raw_scores": True}, row, served=REGRESSOR)
    assert raw == [{"score": row.logits.item(), "label": "x"}]
    values = answered(4, 2)
    two = answer(PREDICT, body, values, served=served_model("x", "y", problem_type=REGRESSION))
    assert [one["score"] for one in two] == values.logits.tolist()


def test_options_of_a_request() -> None:
    body = {"inputs": "a", "truncate": False, "truncation_direction": "Left", "new": 1}
    assert request(PREDICT, body).options == Options(truncate=False, truncation_side="left")
    assert request(PREDICT, {"inputs": "a"}).options == Options(truncation_side="right")
    early = {"operating_point": "quick", "max_depth": 1, "details": True}
    assert request(PREDICT, {"inputs": "a", "early_exit": early}).options == Options(
        "quick", 1, True, truncation_side="right"
    )
    assert refusal(PREDICT, {"inputs": "a", "early_exit": {"depth": 1}})[0] == 422


def test_fields_of_early_exit_come_with_the_first_label_where_they_are_wanted() -> None:
    row = answered(1, 2, 5, layer=2)
    body = {"inputs": "a", "early_exit": {"details": True}}
    first, *others = answer(PREDICT, body, row)
    assert first["early_exit"] == {
        "exit_layer": 2,
        "operating_point": "default",
        "engine": "onnx-int8",
        "exits": [],
        "certificate": None,
    }
    assert all("early_exit" not in other for other in others)


def test_characters_are_those_of_both_texts() -> None:
    rows = request(PREDICT, {"inputs": [["aé"], ["b", "c" * 5]]})
    reply = PREDICT.write(rows, [answered(1, 2, 5)] * 2, CLASSES)
    assert reply.headers == {"x-compute-characters": "8"}


# --- ranks ----------------------------------------------------------------------------------------------------


def test_texts_are_ranked_by_the_second_class_or_the_sigmoid_of_one_output() -> None:
    body = {"query": "q", "texts": ["a", "b"], "return_text": True}
    assert request(RERANK, body, PAIRS).items == [("q", "a"), ("q", "b")]
    assert answer(RERANK, body, answered(3, 1), answered(1, 3), served=PAIRS) == [
        {"index": 1, "score": pytest.approx(0.75), "text": "b"},
        {"index": 0, "score": pytest.approx(0.25), "text": "a"},
    ]
    one = {"query": "q", "texts": ["a"]}
    assert answer(RERANK, one, answered(3), served=REGRESSOR) == [{"index": 0, "score": pytest.approx(0.75)}]
    two = [RowResult(np.array([value], np.float32), 1, 5) for value in (40.0, 50.0)]  # both scores are 1.0
    assert [row["index"] for row in answer(RERANK, body, *two, served=REGRESSOR)] == [1, 0]
    raw = answer(RERANK, {**one, "raw_scores": True}, answered(3), served=REGRESSOR)
    assert raw == [{"index": 0, "score": pytest.approx(1.0986123)}]


def test_a_model_of_three_classes_ranks_nothing() -> None:
    status, error = refusal(RERANK, {"query": "q", "texts": ["a"]})
    assert (status, error["error_type"]) == (424, "Backend")
    status, error = refusal(RERANK, {"query": "q", "texts": []}, PAIRS)
    assert (status, error["error_type"]) == (400, "Empty")


# --- paths of two formats -------------------------------------------------------------------------------------


def test_parameters_make_a_body_hugging_faces_and_its_answer_nested() -> None:
    row = answered(1, 2, 5)
    expected = [[{"label": "good", "score": pytest.approx(0.625)}, {"label": "fine", "score": pytest.approx(0.25)}]]
    assert answer(ROOT, {"inputs": "a", "parameters": {"top_k": 2}}, row) == expected
    assert len(answer(ROOT, {"inputs": "a", "parameters": {}}, row)[0]) == 3
    assert len(answer(ROOT, {"inputs": ["a", "b"], "parameters": {}}, row, row)) == 2  # two texts, not a pair
    pair = {"inputs": {"text": "a", "text_pair": "b"}, "parameters": None}
    assert request(ROOT, pair).form.request.items == [("a", "b")]
    sigmoid = answer(
        ROOT, {"inputs": "a", "parameters": {"function_to_apply": "sigmoid", "top_k": 1}}, answered(1, 1, 3)
    )
    assert sigmoid == [[{"label": "good", "score": pytest.approx(0.75)}]]
    early = {"operating_point": "quick", "max_depth": 1, "details": True}
    body = {"inputs": "a", "parameters": {"truncation": False, "max_length": 9, **early}}
    assert request(ROOT, body).options == Options("quick", 1, True, truncate=False, max_tokens=9)
    ((first, second, _),) = answer(ROOT, body, answered(1, 2, 5, layer=1))
    assert (first["early_exit"]["exit_layer"], "early_exit" in second) == (1, False)
    assert refusal(ROOT, {"inputs": [], "parameters": {}}) == (
        422,
        {"error": "inputs is empty; at least one text is needed", "error_type": "Validation"},
    )
    for wrong in ({"top_k": 0}, {"function_to_apply": "tanh"}, {"temperature": 1}):
        assert refusal(ROOT, {"inputs": "a", "parameters": wrong})[0] == 422


def test_ranks_at_shared_paths() -> None:
    texts, documents = {"query": "q", "texts": ["a"]}, {"query": "q", "documents": ["a"]}
    for endpoint in (ROOT, SHARED_RERANK):
        assert answer(endpoint, texts, answered(1, 3), served=PAIRS) == [{"index": 0, "score": pytest.approx(0.75)}]
    ranked = answer(SHARED_RERANK, documents, answered(1, 3), served=PAIRS)
    assert ranked["results"][0]["relevance_score"] == pytest.approx(0.75)
    assert refusal(SHARED_RERANK, {**documents, "documents": []}, PAIRS)[1]["error"]["type"] == "BadRequestError"
    assert refusal(SHARED_RERANK, {**texts, "texts": []}, PAIRS)[1]["error_type"] == "Empty"


# --- refusals, the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "name"),
    [
        ("empty", 400, "Empty"),
        ("malformed", 400, "Validation"),
        ("mistyped", 422, "Validation"),
        ("validation", 422, "Validation"),
        ("batch_size", 422, "Validation"),
        ("body_size", 413, "Validation"),
        ("overloaded", 429, "Overloaded"),
        ("failed", 424, "Backend"),
        ("timeout", 504, "Backend"),
        ("unavailable", 503, "Unhealthy"),
    ],
)
def test_statuses_are_those_of_its_code(kind: Kind, status: int, name: str) -> None:
    reply = tei.refuse(Call(), Refusal(kind, "why"))
    assert (reply.status, json.loads(reply.body)) == (status, {"error": "why", "error_type": name})


def test_bodies_that_are_no_json_are_told_from_bodies_of_other_types() -> None:
    assert refusal(PREDICT, b"{")[0] == refusal(ROOT, b"\xff")[0] == 400
    assert refusal(PREDICT, {"input": "a"})[0] == refusal(PREDICT, b"[]")[0] == 422


def test_a_row_without_an_answer_refuses_the_request() -> None:
    rows = request(PREDICT, {"inputs": [["a"], ["b"]]})
    with pytest.raises(Refusal, match="input 1: why"):
        PREDICT.write(rows, [answered(1, 2, 5), refused(Refusal("failed", "why"))], CLASSES)


def test_info_has_the_model_and_the_limits() -> None:
    info = json.loads(tei.PAGES[0].write(Call(), CLASSES).body)
    assert info["model_type"] == {
        "classifier": {"id2label": {"0": "bad", "1": "fine", "2": "good"}, "label2id": {"bad": 0, "fine": 1, "good": 2}}
    }
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("tiny", "int8", 32)
    assert list(json.loads(tei.PAGES[0].write(Call(), REGRESSOR).body)["model_type"]) == ["reranker"]
