"""text-embeddings-inference: `/predict`, `/rerank`, `/info`; statuses and error types as its code (1.9) has them.

A flat list of two texts is one pair, a nested list a batch. Where its documents and its code differ, its code counts:
an empty text has status 400 and the type "Empty", everything else that is wrong with a body 422 and "Validation". A
regression has its values as scores; only its relevance (`/rerank`) is their sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import msgspec

from offramp.data.rows import Text
from offramp.serving.endpoint import STATUS, Call, EarlyExit, Endpoint, ExitDetails, Page, Reply, decode, early_options
from offramp.serving.outputs import (
    Activation,
    by_relevance,
    check_all_answered,
    check_ranks,
    details,
    ranked,
    relevance,
)
from offramp.serving.replies import plain_refusal
from offramp.serving.request import Item, Kind, Options, Refusal, Request, RowResult, characters_of
from offramp.serving.served import Served
from offramp.serving.settings import VERSION

Side = Literal["left", "Left", "right", "Right"]

# --- bodies -------------------------------------------------------------------------------------------------


class PredictRequest(msgspec.Struct):
    """Texts to classify: a text, a pair as a list of two, or a batch as a list of lists of one or two."""

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    truncation_direction: Side = "Right"
    raw_scores: bool = False
    early_exit: EarlyExit | None = None


class Prediction(msgspec.Struct, omit_defaults=True):
    """A label with its score; the first one of a row has the fields of early exit, where they are wanted."""

    score: float
    label: str
    early_exit: ExitDetails | None = None


class RerankRequest(msgspec.Struct):
    """A query, and texts to sort by their relevance to it."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Side = "Right"
    raw_scores: bool = False
    return_text: bool = False
    early_exit: EarlyExit | None = None


class Rank(msgspec.Struct, omit_defaults=True):
    """A text's number among those of the request, and its relevance."""

    index: int
    score: float
    text: str | None = None
    early_exit: ExitDetails | None = None


class ErrorAnswer(msgspec.Struct):
    """The reason why there is no answer, and its type."""

    error: str
    error_type: str


class Classes(msgspec.Struct):
    """The classes of a model."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class Info(msgspec.Struct):
    """The model and the limits of the server."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Classes]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


# --- requests and answers -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Form:
    """What an answer needs of its request.

    Attributes:
        raw: logits as they are.
        batch: whether the answer is a list of rows.
        texts: of a rerank, where they are returned.
    """

    raw: bool
    batch: bool = True
    texts: Sequence[str] | None = None


def _read_predict(call: Call, served: Served) -> Request:
    body: PredictRequest = decode(call.body, PredictRequest)
    items, batch = _items(body.inputs)
    return Request(items, _options(body), _Form(body.raw_scores, batch))


def _items(inputs: str | list[str | list[str]]) -> tuple[list[Item], bool]:
    """Return the rows of `inputs`, and whether they are a batch."""
    if isinstance(inputs, str):
        return [inputs], False
    if all(isinstance(part, str) for part in inputs):
        return [_text(inputs)], False
    return [_text(part) for part in inputs], True


def _text(parts: str | Sequence[str | list[str]]) -> Text:
    """Return a list of one text or of two as a text or a pair."""
    texts = [part for part in parts if isinstance(part, str)]
    if isinstance(parts, str) or len(texts) != len(parts) or len(parts) not in (1, 2):
        raise Refusal(
            "validation",
            "inputs must be a text, a pair [text, text], or a batch [[text], [text, text], ...]",
        )
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _options(body: PredictRequest | RerankRequest) -> Options:
    side: Literal["left", "right"] = "left" if body.truncation_direction in ("left", "Left") else "right"
    return replace(early_options(body.early_exit), truncate=body.truncate, truncation_side=side)


def _write_predict(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    rows = [_predictions(result, request, served, form.raw) for result in results]
    return _reply(rows if form.batch else rows[0], request)


def _predictions(result: RowResult, request: Request, served: Served, raw: bool) -> list[Prediction]:
    """Return a row's labels with their scores, the largest first; the score of one output is its sigmoid."""
    activation: Activation = "none" if raw else "sigmoid" if served.config.num_labels == 1 else "default"
    row = [Prediction(score, label) for label, score in ranked(result, served, activation)]
    row[0].early_exit = details(result, request, served)
    return row


def _read_rerank(call: Call, served: Served) -> Request:
    body: RerankRequest = decode(call.body, RerankRequest)
    if not body.texts:
        raise Refusal("empty", "texts is empty; at least one is needed")
    check_ranks(served)
    texts = body.texts if body.return_text else None
    return Request([(body.query, text) for text in body.texts], _options(body), _Form(body.raw_scores, texts=texts))


def _write_rerank(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    rows = []
    for index in by_relevance(results, served):
        result = results[index]
        text = None if form.texts is None else form.texts[index]
        rows.append(Rank(index, relevance(result, served, form.raw), text, details(result, request, served)))
    return _reply(rows, request)


def _reply(content: object, request: Request) -> Reply:
    characters = sum(map(characters_of, request.items))
    return Reply(msgspec.json.encode(content), headers={"x-compute-characters": str(characters)})


def _write_info(call: Call, served: Served) -> Reply:
    config, limits = served.config, served.limits
    classes = Classes({str(number): label for number, label in config.id2label.items()}, dict(config.label2id))
    info = Info(
        model_id=served.name,
        model_sha=served.digest or None,
        model_dtype="int8" if served.engine.endswith("int8") else served.engine.rpartition("-")[2],
        served_model_name=served.name,
        model_type={"reranker" if config.num_labels == 1 else "classifier": classes},
        max_concurrent_requests=limits.max_concurrent_requests,
        max_input_length=served.max_tokens,
        max_batch_tokens=limits.max_batch_tokens,
        max_batch_requests=limits.max_batch_requests,
        max_client_batch_size=limits.max_client_batch_size,
        auto_truncate=limits.auto_truncate,
        tokenization_workers=1,
        version=VERSION,
        sha=None,
        docker_label=None,
    )
    return Reply(msgspec.json.encode(info))


# --- refusals -----------------------------------------------------------------------------------------------

STATUSES: Mapping[Kind, int] = {**STATUS, "mistyped": 422, "validation": 422, "not_applicable": 424, "failed": 424}
"""Its statuses of refusals."""
_TYPES: Mapping[Kind, str] = {
    "empty": "Empty",
    "not_applicable": "Backend",
    "failed": "Backend",
    "timeout": "Backend",
    "overloaded": "Overloaded",
    "unavailable": "Unhealthy",
}


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal in the form of text-embeddings-inference."""
    if refusal.kind == "unauthorized":
        return plain_refusal(call, refusal)
    answer = ErrorAnswer(str(refusal), _TYPES.get(refusal.kind, "Validation"))
    return Reply(msgspec.json.encode(answer), STATUSES[refusal.kind])


PREDICT = Endpoint(
    ("/predict",),
    _read_predict,
    _write_predict,
    refuse,
    PredictRequest,
    (list[Prediction], list[list[Prediction]]),
    "Classify texts (text-embeddings-inference).",
    "tei",
)
RERANK = Endpoint(
    ("/rerank",),
    _read_rerank,
    _write_rerank,
    refuse,
    RerankRequest,
    list[Rank],
    "Sort texts by relevance (text-embeddings-inference).",
    "tei",
)
ENDPOINTS = (PREDICT,)
PAGES = (Page(("/info",), _write_info, refuse, Info, "The model and the limits (text-embeddings-inference)."),)
