"""Open Inference Protocol v2, without a server: JSON and binary tensors in, requests and answers out."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.serving.endpoint import Call, Reply
from offramp.serving.protocols.oip import ENDPOINTS, PAGES
from offramp.serving.protocols.tensors import Tensor, texts_of
from offramp.serving.request import Kind, Options, Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from support.served import answered, refused, served_model

(INFER,) = ENDPOINTS
SERVER, READY, MODEL, MODEL_READY = PAGES
CLASSES, LABELS = served_model(), served_model("x", "y", problem_type=MULTI_LABEL)
REGRESSOR = served_model("x", problem_type=REGRESSION)
HEADER = "inference-header-content-length"
ROWS = (answered(1, 1, 2), answered(6, 1, 1))
TEXTS = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
ONE = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}


def packed(*texts: str | bytes) -> bytes:
    """Return texts as binary data."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def binary(size: int, name: str = "text", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": "BYTES", "parameters": {"binary_data_size": size}}


def call(body: dict[str, Any], data: bytes | None = None, **path: str) -> Call:
    header = json.dumps(body).encode()
    headers = {} if data is None else {HEADER: str(len(header))}
    return Call(header + (data or b""), headers, {"model": "tiny"} | path)


def request(*inputs: dict[str, Any], data: bytes | None = None, served: Served = CLASSES, **fields: Any) -> Request:
    return INFER.read(call({"inputs": list(inputs), **fields}, data), served)


def reply(served: Served, *results: RowResult, **fields: Any) -> Reply:
    tensor = {"name": "t", "shape": [len(results)], "datatype": "BYTES", "data": ["a"] * len(results)}
    return INFER.write(request(tensor, served=served, **fields), results, served)


def answer(served: Served, *results: RowResult, **fields: Any) -> Any:
    return json.loads(reply(served, *results, **fields).body)


# --- requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        TEXTS,
        TEXTS | {"name": "input-0"},
        TEXTS | {"shape": [2, 1]},
        TEXTS | {"shape": [2, 1], "data": [["a"], ["b"]]},
        TEXTS | {"parameters": {"content_type": "str"}},
    ],
)
def test_a_tensor_of_texts_becomes_rows(tensor: dict[str, Any]) -> None:
    rows = request(tensor)
    assert (rows.items, rows.options) == (["a", "b"], Options())


def test_binary_data_stand_behind_the_json_in_the_order_of_the_inputs() -> None:
    data = packed("a", "bä\0")
    assert request(binary(len(data)), data=data).items == ["a", "bä\0"]
    first, second = packed("a"), packed("bc")
    inputs = binary(5, "query", (1,)), binary(6, "answer", (1,))
    assert request(*inputs, data=first + second).items == [("a", "bc")]
    assert request(ONE, binary(6, "b", (1, 1)), data=second).items == [("a", "bc")]


@pytest.mark.parametrize(
    ("names", "pair"),
    [(("text", "text_pair"), ("a", "b")), (("text_pair", "text"), ("b", "a")), (("z", "y"), ("a", "b"))],
)
def test_two_tensors_are_pairs(names: tuple[str, str], pair: tuple[str, str]) -> None:
    inputs = [ONE | {"name": name, "data": [text]} for name, text in zip(names, "ab", strict=True)]
    assert request(*inputs).items == [pair]


def test_parameters_become_options() -> None:
    parameters = {"operating_point": "quick", "max_depth": 2, "details": True, "priority": 3, "sequence_id": 4}
    assert request(TEXTS, parameters=parameters).options == Options("quick", 2, True)


LAST = {"outputs": [{"name": "label"}]}


@pytest.mark.parametrize(
    ("inputs", "fields", "data", "kind", "words"),
    [
        ([], {}, None, "validation", "one tensor of texts, or two for pairs; got 0"),
        ([TEXTS, TEXTS | {"name": "b"}, TEXTS | {"name": "c"}], {}, None, "validation", "got 3"),
        ([TEXTS, TEXTS], {}, None, "validation", "same name"),
        ([TEXTS, ONE | {"name": "b"}], {}, None, "validation", "got 2 and 1"),
        ([TEXTS | {"shape": [3]}], {}, None, "validation", "shape [3], and 2 texts"),
        ([TEXTS | {"shape": [1, 2]}], {}, None, "validation", "[N] or [N, 1]"),
        ([TEXTS | {"shape": [2, 1, 1]}], {}, None, "validation", "[N] or [N, 1]"),
        ([TEXTS | {"shape": []}], {}, None, "validation", "[N] or [N, 1]"),
        ([TEXTS | {"shape": [0], "data": []}], {}, None, "validation", "N >= 1"),
        ([TEXTS | {"shape": [-1]}], {}, None, "mistyped", "$.inputs[0].shape"),
        ([TEXTS | {"datatype": "INT64"}], {}, None, "validation", "must be BYTES"),
        ([TEXTS | {"data": [1, 2]}], {}, None, "mistyped", "$.inputs[0].data"),
        ([TEXTS | {"data": None}], {}, None, "validation", "either data or the parameter binary_data_size"),
        ([TEXTS | binary(4)], {}, packed(""), "validation", "either data or the parameter binary_data_size"),
        ([binary(5)], {}, None, "malformed", "Inference-Header-Content-Length is missing"),
        ([binary(11)], {}, packed("a", "b"), "malformed", "has 11 bytes, and 10 are left"),
        ([binary(5)], {}, packed("a", "b"), "validation", "and 1 texts"),
        ([binary(5, shape=(1,))], {}, packed("a", "b"), "malformed", "5 bytes behind the JSON belong to no input"),
        ([TEXTS], {}, b"a", "malformed", "1 bytes behind the JSON"),
        ([binary(-1)], {}, b"", "mistyped", "binary_data_size"),
        ([binary(7)], {}, packed("abc"), "validation", "and 1 texts"),
        ([binary(6)], {}, b"\x03\0\0\0ab", "malformed", "text 0 lacks 1 bytes"),
        ([binary(7)], {}, packed("") + b"\0\0\0", "malformed", "text 1 lacks 1 bytes"),
        ([binary(8)], {}, b"\xff\xff\xff\xffabcd", "malformed", "text 0 lacks"),
        ([binary(6, shape=(1,))], {}, packed(b"\xff\xfe"), "malformed", "text 0 is not UTF-8"),
        ([TEXTS | {"parameters": {"shared_memory_region": "r"}}], {}, None, "validation", "shared memory"),
        ([TEXTS], {"outputs": [{"name": "value"}]}, None, "validation", "label, score, probabilities, logits"),
        ([TEXTS], {"outputs": [{"name": "early_exit"}]}, None, "validation", "no output 'early_exit'"),
        ([TEXTS], {"outputs": [{"name": "label"}] * 2}, None, "validation", "asked for twice"),
        (
            [TEXTS],
            {"outputs": [{"name": "label", "parameters": {"classification": 1}}]},
            None,
            "validation",
            "has no classes",
        ),
        (
            [TEXTS],
            {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
            None,
            "validation",
            "shared memory",
        ),
        ([TEXTS], {"parameters": {"details": 1}}, None, "mistyped", "$.parameters.details"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    inputs: list[dict[str, Any]], fields: dict[str, Any], data: bytes | None, kind: Kind, words: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        request(*inputs, data=data, **fields)
    assert (refusal.value.kind, "\n" in str(refusal.value)) == (kind, False)
    assert words in str(refusal.value)


@pytest.mark.parametrize("length", ["", "-1", "1.5", "1e1", "99999", "9" * 5000, "²"])
def test_a_length_of_the_json_that_is_none_is_refused(length: str) -> None:
    body = json.dumps({"inputs": [TEXTS]}).encode()
    with pytest.raises(Refusal, match="Inference-Header-Content-Length") as refusal:
        INFER.read(Call(body, {HEADER: length}, {"model": "tiny"}), CLASSES)
    assert (refusal.value.kind, len(str(refusal.value)) < 200) == ("malformed", True)


@pytest.mark.parametrize("path", [{"model": "other"}, {"version": "2"}])
def test_another_model_or_version_is_not_there(path: dict[str, str]) -> None:
    for read in (
        lambda: INFER.read(call({"inputs": [TEXTS]}, **path), CLASSES),
        lambda: MODEL.write(call({}, **path), CLASSES),
    ):
        with pytest.raises(Refusal) as refusal:
            read()
        assert json.loads(INFER.refuse(Call(), refusal.value).body) == {"error": str(refusal.value)}
        assert INFER.refuse(Call(), refusal.value).status == 404
    assert INFER.read(call({"inputs": [TEXTS]}, version="1"), CLASSES).items == ["a", "b"]


# --- answers --------------------------------------------------------------------------------------------------


def test_an_answer_has_all_outputs_where_none_is_named() -> None:
    document = answer(CLASSES, *ROWS, id="42")
    assert (document["model_name"], document["model_version"], document["id"]) == ("tiny", "1", "42")
    outputs = {output.pop("name"): output for output in document["outputs"]}
    shares = [0.25, 0.25, 0.5, 0.75, 0.125, 0.125]
    logs = np.log([1, 1, 2, 6, 1, 1]).tolist()
    assert outputs == {
        "label": {"datatype": "BYTES", "shape": [2], "data": ["good", "bad"]},
        "score": {"datatype": "FP32", "shape": [2], "data": pytest.approx([0.5, 0.75])},
        "probabilities": {"datatype": "FP32", "shape": [2, 3], "data": pytest.approx(shares)},
        "logits": {"datatype": "FP32", "shape": [2, 3], "data": pytest.approx(logs)},
    }


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (LABELS, {"labels": ['["y"]'], "probabilities": [0.5, 0.75], "logits": [0.0, np.log(3)]}),
        (REGRESSOR, {"value": [np.log(3)]}),
    ],
)
def test_outputs_follow_the_kind_of_problem(served: Served, expected: dict[str, Any]) -> None:
    result = answered(3) if served is REGRESSOR else answered(1, 3)
    data = {output["name"]: output["data"] for output in answer(served, result)["outputs"]}
    assert data == {name: values if name == "labels" else pytest.approx(values) for name, values in expected.items()}
    metadata = json.loads(MODEL.write(call({}), served).body)
    assert [output["name"] for output in metadata["outputs"]] == list(expected)


def test_outputs_come_as_they_are_named_in_json_or_behind_it() -> None:
    outputs = [
        {"name": "logits", "parameters": {"binary_data": True}},
        {"name": "score"},
        {"name": "label", "parameters": {"binary_data": True}},
    ]
    written = reply(CLASSES, *ROWS, outputs=outputs)
    size = int(written.headers[HEADER])
    document, data = json.loads(written.body[:size]), written.body[size:]
    assert written.media_type == "application/octet-stream"
    assert document["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
        {"name": "score", "datatype": "FP32", "shape": [2], "data": pytest.approx([0.5, 0.75])},
        {"name": "label", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 15}},
    ]
    assert struct.unpack("<6f", data[:24]) == pytest.approx(np.log([1, 1, 2, 6, 1, 1]))
    assert data[24:] == packed("good", "bad")


def test_all_outputs_are_binary_where_the_request_says_so() -> None:
    outputs = [{"name": "label"}, {"name": "score", "parameters": {"binary_data": False}}]
    written = reply(CLASSES, *ROWS, outputs=outputs, parameters={"binary_data_output": True})
    label, score = json.loads(written.body[: int(written.headers[HEADER])])["outputs"]
    assert ("data" in label, "data" in score) == (False, True)


def test_classification_gives_the_largest_values_with_their_classes() -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    (output,) = answer(CLASSES, *ROWS, outputs=outputs)["outputs"]
    assert output["shape"] == [2, 2]
    assert output["data"] == ["0.500000:2:good", "0.250000:0:bad", "0.750000:0:bad", "0.125000:1:fine"]
    outputs[0]["parameters"] = {"classification": 9}
    assert answer(CLASSES, *ROWS, outputs=outputs)["outputs"][0]["shape"] == [2, 3]


@pytest.mark.parametrize("fields", [{}, LAST, {"outputs": [{"name": "early_exit"}, {"name": "label"}]}])
def test_fields_of_early_exit_are_one_more_output(fields: dict[str, Any]) -> None:
    outputs = answer(CLASSES, *ROWS, **fields, parameters={"details": True})["outputs"]
    (output,) = [output for output in outputs if output["name"] == "early_exit"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2])
    assert [json.loads(text)["exit_layer"] for text in output["data"]] == [2, 2]


def test_a_row_without_an_answer_refuses_the_request() -> None:
    with pytest.raises(Refusal, match="input 1: the text is empty"):
        answer(CLASSES, ROWS[0], refused(Refusal("empty", "the text is empty")))


@given(st.lists(st.text()))
def test_texts_survive_as_binary_data(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert texts_of(Tensor((len(texts),), texts).to_bytes(), "t") == texts


@given(st.binary(max_size=40))
def test_any_bytes_are_texts_or_refused(data: bytes) -> None:
    with suppress(Refusal):
        texts = texts_of(data, "t")
        assert Tensor((len(texts),), texts).to_bytes() == data


# --- pages ----------------------------------------------------------------------------------------------------


def test_pages_describe_server_and_model() -> None:
    server = json.loads(SERVER.write(Call(), CLASSES).body)
    assert (server["name"], server["extensions"]) == ("offramp", ["binary_tensor_data", "classification"])
    assert json.loads(MODEL.write(call({}), CLASSES).body) == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "offramp_onnx-int8",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "text_pair", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }
    assert json.loads(READY.write(Call(), CLASSES).body) == {"ready": True}
    assert json.loads(MODEL_READY.write(call({}), CLASSES).body) == {"ready": True, "name": "tiny"}
    assert [page.ready for page in PAGES] == [False, True, False, True]
