"""Hugging Face's inference API: `{"inputs", "parameters"}` at POST `/`, answered nested, as its client reads it.

Errors have text-embeddings-inference's form, which holds Hugging Face's own, {"error": ...}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import msgspec
from msgspec import Meta

from offramp.serving.endpoint import Call, Endpoint, ExitDetails, Reply, decode
from offramp.serving.outputs import Activation, check_all_answered, details, ranked
from offramp.serving.protocols.tei import refuse
from offramp.serving.request import Item, Options, Refusal, Request, RowResult
from offramp.serving.served import Served


class TextPair(msgspec.Struct, forbid_unknown_fields=True):
    """A text, or a pair of texts."""

    text: str
    text_pair: str | None = None


class Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """How the texts are answered; those of early exit are the last four."""

    top_k: Annotated[int, Meta(ge=1)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    truncation: bool | None = None
    max_length: Annotated[int, Meta(ge=1)] | None = None
    operating_point: str | None = None
    max_depth: int | None = None
    details: bool = False
    latency_budget_ms: float | None = None


class TextClassificationRequest(msgspec.Struct):
    """Texts to classify: a text, a pair as {"text", "text_pair"}, or a list of these."""

    inputs: str | TextPair | list[str | TextPair]
    parameters: Parameters | None = None


class Label(msgspec.Struct, omit_defaults=True):
    """A label with its score; the first one of a row has the fields of early exit, where they are wanted."""

    label: str
    score: float
    early_exit: ExitDetails | None = None


@final
@dataclass(frozen=True)
class _Form:
    """What an answer needs of its request: how many labels, and the function of their scores."""

    top_k: int | None
    activation: Activation


def _read(call: Call, served: Served) -> Request:
    body: TextClassificationRequest = decode(call.body, TextClassificationRequest)
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    if not inputs:
        raise Refusal("validation", "inputs is empty; at least one text is needed")
    parameters = body.parameters or Parameters()
    options = Options(
        parameters.operating_point,
        parameters.max_depth,
        parameters.details,
        parameters.truncation,
        parameters.max_length,
        latency_budget_ms=parameters.latency_budget_ms,
    )
    items: list[Item] = [_item(text) for text in inputs]
    return Request(items, options, _Form(parameters.top_k, parameters.function_to_apply or "default"))


def _item(text: str | TextPair) -> Item:
    if isinstance(text, str):
        return text
    return text.text if text.text_pair is None else (text.text, text.text_pair)


def _write(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    rows = []
    for result in results:
        row = [Label(label, score) for label, score in ranked(result, served, form.activation)[: form.top_k]]
        row[0].early_exit = details(result, request, served)
        rows.append(row)
    return Reply(msgspec.json.encode(rows))


CLASSIFY = Endpoint(
    ("/",),
    _read,
    _write,
    refuse,
    TextClassificationRequest,
    list[list[Label]],
    "Classify texts (Hugging Face).",
    "huggingface",
)
