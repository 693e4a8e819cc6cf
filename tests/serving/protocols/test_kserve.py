"""KServe's protocol v1, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offramp.serving.endpoint import Call
from offramp.serving.protocols.kserve import ENDPOINTS, PAGES
from offramp.serving.request import Refusal, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from support.served import answered, refused, served_model

(PREDICT,), (MODEL,) = ENDPOINTS, PAGES
CLASSES = served_model()


def call(body: Any, name: str = "tiny") -> Call:
    return Call(body if isinstance(body, bytes) else json.dumps(body).encode(), path={"name": name})


def answer(body: Any, *results: RowResult, served: Served = CLASSES) -> Any:
    return json.loads(PREDICT.write(PREDICT.read(call(body), served), results, served).body)


def test_instances_are_texts_and_pairs() -> None:
    instances = ["a", {"text": "a"}, {"text": "a", "text_pair": "b"}, ["a", "b"]]
    assert PREDICT.read(call({"instances": instances}), CLASSES).items == ["a", "a", ("a", "b"), ("a", "b")]


def test_predictions_are_classes_or_what_parameters_name() -> None:
    row, body = answered(1, 2, 5), {"instances": ["a"]}
    assert answer(body, row) == {"predictions": [2]}
    probabilities = answer({**body, "parameters": {"return_probabilities": True}}, row)
    assert probabilities == {"predictions": [{"0": 0.125, "1": pytest.approx(0.25), "2": pytest.approx(0.625)}]}
    logits = answer({**body, "parameters": {"return_raw_logits": True}}, row)
    assert logits == {"predictions": [dict(zip("012", row.logits.tolist(), strict=True))]}
    several = served_model("a", "b", "c", problem_type=MULTI_LABEL)
    assert answer(body, answered(3, 0.5, 2), served=several) == {"predictions": [[0, 2]]}
    value = answered(3)
    regressor = served_model("x", problem_type=REGRESSION)
    assert answer(body, value, served=regressor) == {"predictions": [value.logits.item()]}
    with pytest.raises(Refusal, match="a regression has no probabilities"):
        PREDICT.read(call(body | {"parameters": {"return_probabilities": True}}), regressor)


def test_fields_of_early_exit_stand_beside_the_predictions() -> None:
    body = {"instances": ["a", "b"], "early_exit": {"details": True, "operating_point": "quick"}}
    fields = answer(body, answered(1, 2, 5, layer=0), answered(1, 2, 5, layer=4))["early_exit"]
    assert [(row["exit_layer"], row["operating_point"]) for row in fields] == [(0, "quick"), (4, "quick")]


@pytest.mark.parametrize(
    "body", [b"{", {}, {"instances": "a"}, {"instances": []}, {"instances": [["a"]]}, {"instances": [1]}]
)
def test_bodies_that_cannot_be_read_have_status_400(body: Any) -> None:
    with pytest.raises(Refusal) as caught:
        PREDICT.read(call(body), CLASSES)
    reply = PREDICT.refuse(call(body), caught.value)
    assert (reply.status, list(json.loads(reply.body))) == (400, ["error"])


def test_a_row_without_an_answer_refuses_the_request() -> None:
    rows = PREDICT.read(call({"instances": ["a", " "]}), CLASSES)
    with pytest.raises(Refusal, match="input 1: blank"):
        PREDICT.write(rows, [answered(1, 2, 5), refused(Refusal("empty", "blank"))], CLASSES)


def test_another_model_is_not_there() -> None:
    for read in (
        lambda: PREDICT.read(call({"instances": ["a"]}, "other"), CLASSES),
        lambda: MODEL.write(call(b"", "other"), CLASSES),
    ):
        with pytest.raises(Refusal) as caught:
            read()
        assert PREDICT.refuse(Call(), caught.value).status == 404
    assert json.loads(MODEL.write(call(b""), CLASSES).body) == {"name": "tiny", "ready": True}
    assert MODEL.ready  # else it would answer while the server ends
