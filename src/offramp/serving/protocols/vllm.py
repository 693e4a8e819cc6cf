"""vLLM's pooling routes: `/classify`, `/score`, `/rerank` (Cohere's clients speak the latter), and `GET /v1/models`.

Fields, their bounds and the form of errors follow vLLM's `entrypoints/pooling`. What cannot be done with a classifier
of one model (chat templates, priorities, multi-modal inputs) is refused in one line rather than ignored.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import cast, final

import msgspec
from msgspec import UNSET

from offramp.serving.endpoint import STATUS, Call, Endpoint, Page, Reply, decode, early_options
from offramp.serving.outputs import by_relevance, check_all_answered, check_ranks, details, relevance, scores
from offramp.serving.protocols.vllm_bodies import (
    Classification,
    ClassifyAnswer,
    ClassifyRequest,
    Common,
    DocumentText,
    ErrorAnswer,
    ErrorInfo,
    ModelCard,
    ModelList,
    RankedDocument,
    Ranking,
    RerankAnswer,
    RerankRequest,
    RerankUsage,
    Score,
    ScoreAnswer,
    ScoreRequest,
    Usage,
)
from offramp.serving.request import Item, Options, Refusal, Request, RowResult, TokenIds
from offramp.serving.served import Served

# --- requests -----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Form:
    """What an answer needs of its request.

    Attributes:
        id: of the answer.
        activated: False = logits as they are.
        documents: of a rerank.
        top_n: results of a rerank; 0 = all.
    """

    id: str
    activated: bool
    documents: Sequence[str] = ()
    top_n: int = 0


def _read_classify(call: Call, served: Served) -> Request:
    body: ClassifyRequest = decode(call.body, ClassifyRequest)
    if body.normalize is not UNSET:
        raise Refusal("validation", "normalize was removed; use use_activation")
    options = _options(body, served, truncate=False)
    if (body.input is None) == (body.messages is None):
        raise Refusal("validation", "the body needs either input or messages")
    items = [_message_text(body)] if body.input is None else _inputs(body.input)
    if body.add_special_tokens is False and not isinstance(items[0], TokenIds) and body.messages is None:
        raise Refusal("validation", "add_special_tokens must be true for texts: the model was trained with them")
    return Request(items, options, _form("classify", call, body))


def _inputs(value: str | list[str | int | list[int]]) -> list[Item]:
    """Return a text, texts, token ids or lists of token ids as rows."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise Refusal("validation", "input is empty; at least one text is needed")
    kinds = {type(part) for part in value}
    if len(kinds) > 1:
        raise Refusal("validation", "input mixes texts and token ids; all of it must be one or the other")
    if kinds == {int}:
        return [TokenIds(cast("list[int]", value))]
    return [TokenIds(part) if isinstance(part, list) else str(part) for part in value]


def _message_text(body: ClassifyRequest) -> str:
    """Return the text of the one message; there is no chat template that would join several."""
    messages = body.messages or []
    if body.chat_template is not None or len(messages) != 1 or messages[0].role != "user":
        raise Refusal("validation", "messages must be one message of the user: a classifier has no chat template")
    content = messages[0].content
    if isinstance(content, str):
        return content
    if len(content) != 1 or content[0].type != "text" or content[0].text is None:
        raise Refusal("validation", "the content of the message must be one text")
    return content[0].text


def _options(body: Common, served: Served, truncate: bool | None) -> Options:
    """Return how the rows are answered.

    Args:
        body: of the request.
        served: the model.
        truncate: whether texts that are too long are cut where `truncate_prompt_tokens` does not say; None = as the
            server is set.
    """
    served.check_model(body.model)
    if body.priority:
        raise Refusal("validation", f"priority must be 0, this server has no priorities; got {body.priority}")
    limit = body.truncate_prompt_tokens
    if limit is not None:
        truncate = True
        if limit == 0 or limit > served.max_tokens:
            most = served.max_tokens
            raise Refusal("validation", f"truncate_prompt_tokens must be -1 or from 1 to {most}; got {limit}")
    options, most_tokens = early_options(body.early_exit), None if limit == -1 else limit
    return replace(options, truncate=truncate, max_tokens=most_tokens, truncation_side=body.truncation_side)


def _form(prefix: str, call: Call, body: Common, documents: Sequence[str] = (), top_n: int | None = None) -> _Form:
    """Return what the answer needs; its id is the client's own where the client names one."""
    name = call.headers.get("x-request-id") or body.request_id or uuid.uuid4().hex
    return _Form(f"{prefix}-{name}", body.use_activation is not False, documents, top_n or 0)


def _read_score(call: Call, served: Served) -> Request:
    body: ScoreRequest = decode(call.body, ScoreRequest)
    first, second = _sides(body)
    options = _ranking_options(body, served, truncate=False)
    if not first or not second:
        raise Refusal("validation", "at least one text is needed on each side")
    if len(first) not in (1, len(second)):
        raise Refusal("validation", f"texts must be 1:1, 1:N or N:N; got {len(first)}:{len(second)}")
    if len(first) == 1:
        first = first * len(second)
    return Request(list(zip(first, second, strict=True)), options, _form("score", call, body))


_SIDES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


def _sides(body: ScoreRequest) -> tuple[list[str], list[str]]:
    """Return the two lists of texts, from the one pair of fields that the body has."""
    names = {name for pair in _SIDES for name in pair if getattr(body, name) is not None}
    for pair in _SIDES:
        if names == set(pair):
            first, second = (getattr(body, name) for name in pair)
            return [first] if isinstance(first, str) else first, [second] if isinstance(second, str) else second
    pairs = ", ".join(" and ".join(pair) for pair in _SIDES)
    raise Refusal("validation", f"the body needs exactly one of these pairs of fields: {pairs}")


def _ranking_options(body: Ranking, served: Served, truncate: bool | None) -> Options:
    """Return how pairs are answered.

    `max_tokens_per_doc` cuts a document alone, which is no bound on the pair: it is accepted where the model's own
    limit is lower (Cohere's 4096), for then it says no more than that texts are to be cut.
    """
    check_ranks(served)
    if body.instruction is not None or body.chat_template_kwargs:
        raise Refusal("validation", "instruction and chat_template_kwargs need a chat template: this model has none")
    for name in ("max_tokens_per_query", "max_tokens_per_doc"):
        limit = getattr(body, name) or 0
        if 0 < limit < served.max_tokens:
            raise Refusal("validation", f"{name} must be 0 or at least {served.max_tokens}: only pairs are cut")
        truncate = True if limit else truncate
    return _options(body, served, truncate)


def _read_rerank(call: Call, served: Served) -> Request:
    body: RerankRequest = decode(call.body, RerankRequest)
    options = _ranking_options(body, served, truncate=None)
    if body.rank_fields not in (None, ["text"]):
        raise Refusal("validation", 'rank_fields must be ["text"]: that is the field of a document that is read')
    listed = [body.documents] if isinstance(body.documents, str) else body.documents
    if not listed:
        raise Refusal("validation", "documents is empty; at least one is needed")
    documents = [part if isinstance(part, str) else part.text for part in listed]
    pairs = [(body.query, document) for document in documents]
    return Request(pairs, options, _form("score", call, body, documents, body.top_n))


# --- answers ------------------------------------------------------------------------------------------------


def _write_classify(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    names, data = served.config.id2label, []
    for index, result in enumerate(results):
        probs = scores(result, served, "default" if form.activated else "none")
        label = names.get(int(probs.argmax()))
        fields = details(result, request, served)
        data.append(Classification(index, label, probs.tolist(), len(probs), fields))
    tokens = sum(result.tokens for result in results)
    answer = ClassifyAnswer(form.id, "list", int(time.time()), served.name, data, Usage(tokens, tokens))
    return Reply(msgspec.json.encode(answer))


def _write_score(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    data = [
        Score(index, "score", relevance(result, served, not form.activated), details(result, request, served))
        for index, result in enumerate(results)
    ]
    tokens = sum(result.tokens for result in results)
    answer = ScoreAnswer(form.id, "list", int(time.time()), served.name, data, Usage(tokens, tokens))
    return Reply(msgspec.json.encode(answer))


def _write_rerank(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    ranked = []
    for index in by_relevance(results, served)[: form.top_n or None]:
        value, fields = relevance(results[index], served, not form.activated), details(results[index], request, served)
        ranked.append(RankedDocument(index, DocumentText(form.documents[index]), value, fields))
    tokens = sum(result.tokens for result in results)
    usage = RerankUsage(tokens, tokens)
    return Reply(msgspec.json.encode(RerankAnswer(form.id, served.name, usage, ranked)))


def _write_models(call: Call, served: Served) -> Reply:
    card = ModelCard(served.name, "model", int(served.started), "offramp", served.name, None, served.max_tokens)
    return Reply(msgspec.json.encode(ModelList("list", [card])))


_TYPES: Mapping[int, str] = {
    400: "BadRequestError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    500: "InternalServerError",
}
_FIELD = re.compile(r"`\$\.(\w+)")


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal in vLLM's form: the `error` of OpenAI with the status as its code."""
    status, field = STATUS[refusal.kind], None
    kind = _TYPES.get(status, HTTPStatus(status).phrase)
    if refusal.kind in ("malformed", "mistyped"):
        kind = HTTPStatus.BAD_REQUEST.phrase
        field = _FIELD.search(str(refusal))
    info = ErrorInfo(str(refusal), kind, field and field[1], status)
    return Reply(msgspec.json.encode(ErrorAnswer(info)), status)


RERANK = Endpoint(
    ("/v1/rerank", "/v2/rerank"),  # `/rerank` is in `shared_paths`
    _read_rerank,
    _write_rerank,
    refuse,
    RerankRequest,
    RerankAnswer,
    "Sort documents by relevance (vLLM, Cohere).",
    "vllm",
)
ENDPOINTS = (
    Endpoint(
        ("/classify", "/v1/classify"),
        _read_classify,
        _write_classify,
        refuse,
        ClassifyRequest,
        ClassifyAnswer,
        "Classify texts (vLLM).",
        "vllm",
    ),
    Endpoint(
        ("/score", "/v1/score"),
        _read_score,
        _write_score,
        refuse,
        ScoreRequest,
        ScoreAnswer,
        "Score pairs of texts (vLLM).",
        "vllm",
    ),
    RERANK,
)
PAGES = (Page(("/v1/models",), _write_models, refuse, ModelList, "The models of this server (OpenAI)."),)
