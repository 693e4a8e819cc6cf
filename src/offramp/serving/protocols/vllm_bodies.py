"""vLLM's bodies of requests and answers, as msgspec reads and writes them; bounds are vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from offramp.serving.endpoint import EarlyExit, ExitDetails


class Common(msgspec.Struct, kw_only=True):
    """Fields of all routes; `user`, `padding` and `cache_salt` change no answer."""

    model: str | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    padding: Literal["max_length", "do_not_pad"] | None = None
    request_id: str | None = None
    priority: int | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    use_activation: bool | None = None
    early_exit: EarlyExit | None = None


class TextPart(msgspec.Struct):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    """A message of a chat; a classifier takes one, the user's."""

    role: str
    content: str | list[TextPart]


class ClassifyRequest(Common, kw_only=True):
    """Texts to classify: either `input` (texts, or token ids with the special ones) or one message."""

    input: str | list[str | int | list[int]] | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    normalize: Any | UnsetType = UNSET


class Ranking(Common, kw_only=True):
    """Fields of `/score` and `/rerank`."""

    max_tokens_per_query: Annotated[int, Meta(ge=0)] | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=0)] | None = None
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ScoreRequest(Ranking, kw_only=True):
    """Pairs of texts to score, in one of four pairs of fields: one text with several, or as many as there are."""

    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


class DocumentText(msgspec.Struct):
    """A document, as Cohere's first version has it; in an answer, as vLLM has it."""

    text: str


class RerankRequest(Ranking, kw_only=True):
    """Documents to sort by their relevance to a query; `top_n` 0 = all of them."""

    query: str
    documents: str | list[str | DocumentText]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    rank_fields: list[str] | None = None


class Usage(msgspec.Struct):
    """Tokens of a request, special ones included."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class RerankUsage(msgspec.Struct):
    """Tokens of a request, special ones included."""

    prompt_tokens: int
    total_tokens: int


class Classification(msgspec.Struct, omit_defaults=True):
    """The classes of a text; raw logits where `use_activation` is false."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int
    early_exit: ExitDetails | None = None


class ClassifyAnswer(msgspec.Struct):
    """An answer of `/classify`."""

    id: str
    object: str
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class Score(msgspec.Struct, omit_defaults=True):
    """The score of a pair."""

    index: int
    object: str
    score: float
    early_exit: ExitDetails | None = None


class ScoreAnswer(msgspec.Struct):
    """An answer of `/score`."""

    id: str
    object: str
    created: int
    model: str
    data: list[Score]
    usage: Usage


class RankedDocument(msgspec.Struct, omit_defaults=True):
    """A document, its index in the request, and its relevance."""

    index: int
    document: DocumentText
    relevance_score: float
    early_exit: ExitDetails | None = None


class RerankAnswer(msgspec.Struct):
    """An answer of `/rerank`, the most relevant document first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RankedDocument]


class ModelCard(msgspec.Struct):
    """A model of `/v1/models`."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(msgspec.Struct):
    """The answer of `/v1/models`."""

    object: str
    data: list[ModelCard]


class ErrorInfo(msgspec.Struct):
    """The reason of a refusal; `code` is the status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(msgspec.Struct):
    """The answer to a refused request."""

    error: ErrorInfo
