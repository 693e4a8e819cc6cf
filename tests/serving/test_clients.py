"""Clients of every protocol against running servers: their answers are the predictor's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp

TEXTS = ["a cat sat on the mat", "bad and awful", "good"]
DOCUMENTS = ["the mat is good", "a bad dog", "the tree", "fine"]


@pytest.fixture(scope="module")
def scores(exported: Path) -> np.ndarray[Any, Any]:
    """The predictor's probabilities of TEXTS, in the order of the classes, (N, C)."""
    answers = offramp.Predictor.load(exported, "onnx-int8")(TEXTS, top_k=None)
    names = ("bad", "fine", "good")
    return np.array([[answer["scores"][name] for name in names] for answer in answers], np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_predictors_numbers(
    url: str, scores: np.ndarray[Any, Any], binary: bool, compression: str | None, shape: tuple[int, ...]
) -> None:
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        tensor = triton.InferInput("input-0", shape, "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS, object).reshape(shape), binary_data=binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "label")]
        outputs = None if binary and compression is None else wanted
        compressions = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
        answer = client.infer("tiny", [tensor], outputs=outputs, request_id="42", **compressions)
    assert answer.get_response()["id"] == "42"
    assert np.array_equal(answer.as_numpy("probabilities"), scores)
    names = np.array(["bad", "fine", "good"])[scores.argmax(axis=1)].tolist()
    assert [name.decode() if binary else name for name in answer.as_numpy("label")] == names


@pytest.mark.filterwarnings("ignore")
def test_tritons_client_reads_the_pages_and_the_errors(url: str) -> None:
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert (client.is_server_live(), client.is_server_ready(), client.is_model_ready("tiny", "1")) == (True,) * 3
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "offramp"
        described = {output["name"]: output["datatype"] for output in client.get_model_metadata("tiny")["outputs"]}
        tensor = triton.InferInput("text", [2], "BYTES")
        tensor.set_data_from_numpy(np.array(["good", "bad"], object))
        outputs = client.infer("tiny", [tensor]).get_response()["outputs"]
        assert {output["name"]: output["datatype"] for output in outputs} == described
        best = [triton.InferRequestedOutput("probabilities", class_count=1)]
        assert client.infer("tiny", [tensor], outputs=best).as_numpy("probabilities").shape == (2, 1)
        details = client.infer("tiny", [tensor], parameters={"details": True, "max_depth": 1}).as_numpy("early_exit")
        assert [json.loads(row)["exit_layer"] for row in details] == [1, 1]
        blank = triton.InferInput("text", [1], "BYTES")
        blank.set_data_from_numpy(np.array([""], object))
        numbers = triton.InferInput("text", [1], "FP32")
        numbers.set_data_from_numpy(np.zeros(1, np.float32))
        large = triton.InferInput("text", [1], "BYTES")
        large.set_data_from_numpy(np.array(["a" * 2_000_000], object))
        cases: list[tuple[str, Any, str, dict[str, Any]]] = [
            ("other", tensor, "404", {}),
            ("tiny", tensor, "404", {"model_version": "2"}),
            ("tiny", blank, "400", {}),
            ("tiny", numbers, "400", {}),
            ("tiny", large, "413", {}),
            ("tiny", large, "413", {"request_compression_algorithm": "gzip"}),
            ("tiny", tensor, "400", {"parameters": {"operating_point": "none"}}),
        ]
        for model, wrong, status, options in cases:
            with pytest.raises(triton.InferenceServerException) as error:
                client.infer(model, [wrong], **options)
            assert error.value.status() == status


@pytest.mark.filterwarnings("ignore")
def test_coheres_clients_sort_as_the_predictor_does(url_of_pairs: str, pairs: Path) -> None:
    cohere, httpx = pytest.importorskip("cohere"), pytest.importorskip("httpx")
    query = "is the mat good"
    answers = offramp.Predictor.load(pairs, "torch")([(query, text) for text in DOCUMENTS], top_k=None)
    relevance = [answer["scores"]["LABEL_1"] for answer in answers]
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -relevance[index])
    objects = [{"text": text} for text in DOCUMENTS]
    with httpx.Client() as http:  # ClientV2 cannot be closed
        first, second = (
            kind(api_key="any", base_url=url_of_pairs, httpx_client=http) for kind in (cohere.Client, cohere.ClientV2)
        )
        for answer, count in (
            (first.rerank(model="tiny", query=query, documents=DOCUMENTS, top_n=2), 2),
            (first.rerank(model="tiny", query=query, documents=objects, return_documents=True), 4),
            (second.rerank(model="tiny", query=query, documents=DOCUMENTS, top_n=3, max_tokens_per_doc=4096), 3),
        ):
            assert [result.index for result in answer.results] == order[:count]
            scores = [result.relevance_score for result in answer.results]
            assert scores == pytest.approx([relevance[index] for index in order[:count]], abs=1e-5)
        for wrong, error in (({"model": "other"}, cohere.NotFoundError), ({"documents": []}, cohere.BadRequestError)):
            with pytest.raises(error):
                second.rerank(**{"model": "tiny", "query": query, "documents": DOCUMENTS, **wrong})


def test_classify_gives_the_predictors_numbers_and_the_limits_of_vllm(url: str, scores: np.ndarray[Any, Any]) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=url) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        answer = client.post("/v1/classify", json={"model": "tiny", "input": TEXTS}).json()
        assert np.array_equal(np.array([row["probs"] for row in answer["data"]], np.float32), scores)
        long = {"input": "good " * 40}
        refused = client.post("/classify", json=long)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, 400)
        assert (
            client.post("/classify", json=long | {"truncate_prompt_tokens": -1}).json()["usage"]["total_tokens"] == 32
        )
        for status, body in ((422, {"input": ["a"] * 33}), (404, {"input": "a", "model": "x"}), (400, {"input": [40]})):
            assert client.post("/classify", json=body).json()["error"]["code"] == status


NAMES = ("bad", "fine", "good")


def test_hugging_faces_client_gets_the_predictors_numbers(url: str, scores: np.ndarray[Any, Any]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=url)
    for text, row in zip(TEXTS, scores, strict=True):
        answer = client.text_classification(text)
        assert {label.label: np.float32(label.score) for label in answer} == dict(zip(NAMES, row, strict=True))
        best = client.text_classification(text, top_k=1, function_to_apply="softmax")
        assert [label.label for label in best] == [NAMES[row.argmax()]]
    for wrong in ({"text": " "}, {"text": "a", "top_k": 0}):
        with pytest.raises(hub.errors.HfHubHTTPError) as error:
            client.text_classification(**wrong)
        assert error.value.response.json()["error"]


def test_predict_gives_the_predictors_numbers_and_the_limits_of_text_embeddings_inference(
    url: str, scores: np.ndarray[Any, Any]
) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=url) as client:
        for path in ("/predict", "/"):
            answer = client.post(path, json={"inputs": [[text] for text in TEXTS]})
            rows = [{label["label"]: np.float32(label["score"]) for label in row} for row in answer.json()]
            assert rows == [dict(zip(NAMES, row, strict=True)) for row in scores]
            assert answer.headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
            assert int(answer.headers["x-compute-tokens"]) > 3
        limit = client.get("/info").json()["max_client_batch_size"]
        long = {"inputs": "good " * 40}
        assert client.post("/predict", json=long).status_code == 200  # cut, unless the request says no
        for status, kind, body in (
            (400, "Empty", {"inputs": ""}),
            (422, "Validation", {"inputs": [["a"]] * (limit + 1)}),
            (422, "Validation", long | {"truncate": False}),
            (413, "Validation", {"inputs": "a" * 2_000_000}),
        ):
            refused = client.post("/predict", json=body)
            assert (refused.status_code, refused.json()["error_type"]) == (status, kind)
        assert client.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 424


def test_rerank_sorts_as_the_predictor_does(url_of_pairs: str, pairs: Path) -> None:
    httpx = pytest.importorskip("httpx")
    expected = offramp.Predictor.load(pairs, "torch").rank("is the mat good", DOCUMENTS)
    body = {"query": "is the mat good", "texts": DOCUMENTS, "return_text": True}
    with httpx.Client(base_url=url_of_pairs) as client:
        for path in ("/rerank", "/"):
            ranks = client.post(path, json=body).raise_for_status().json()
            assert [rank["index"] for rank in ranks] == [answer["index"] for answer in expected]
            assert [rank["text"] for rank in ranks] == [DOCUMENTS[rank["index"]] for rank in ranks]
            scores = [answer["score"] for answer in expected]
            assert [rank["score"] for rank in ranks] == pytest.approx(scores, abs=1e-5)
        empty = client.post("/rerank", json=body | {"texts": []})
        assert (empty.status_code, empty.json()["error_type"]) == (400, "Empty")


def test_kserves_client_gets_the_predictors_numbers(url: str, scores: np.ndarray[Any, Any]) -> None:
    kserve, httpx = pytest.importorskip("kserve"), pytest.importorskip("httpx")

    async def ask() -> None:
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1")) as client:
            assert await client.is_server_live(url)
            assert await client.is_model_ready(url, "tiny")
            answer = await client.infer(url, {"instances": TEXTS}, "tiny")
            assert answer == {"predictions": scores.argmax(axis=1).tolist()}
            body = {"instances": TEXTS, "parameters": {"return_probabilities": True}}
            rows = (await client.infer(url, body, "tiny"))["predictions"]
            assert np.array_equal(np.array([list(row.values()) for row in rows], np.float32), scores)
            for name, wrong in (("other", {"instances": TEXTS}), ("tiny", {"instances": "a"}), ("tiny", {})):
                with pytest.raises(httpx.HTTPStatusError) as error:
                    await client.infer(url, wrong, name)
                assert error.value.response.status_code == (404 if name == "other" else 400)

    asyncio.run(ask())
