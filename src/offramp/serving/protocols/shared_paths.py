"""Paths that two wire formats have: the fields of the body decide which one it is.

POST `/` is text-embeddings-inference's (its `/predict`, or its `/rerank`), with "parameters" Hugging Face's. POST
`/rerank` is text-embeddings-inference's with "texts", else vLLM's, which Cohere's clients speak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import msgspec
from msgspec import UNSET, UnsetType

from offramp.serving.endpoint import Call, Endpoint, Reply, body_types
from offramp.serving.protocols.huggingface import CLASSIFY
from offramp.serving.protocols.tei import PREDICT
from offramp.serving.protocols.tei import RERANK as TEI_RERANK
from offramp.serving.protocols.vllm import RERANK as VLLM_RERANK
from offramp.serving.request import Refusal, Request, RowResult
from offramp.serving.served import Served


class _Fields(msgspec.Struct):
    """The fields that decide."""

    parameters: msgspec.Raw | UnsetType = UNSET
    inputs: msgspec.Raw | UnsetType = UNSET
    texts: msgspec.Raw | UnsetType = UNSET


def _fields(call: Call) -> _Fields:
    """Return the fields of a body; none of one that cannot be read, which the format refuses."""
    try:
        return msgspec.json.decode(call.body, type=_Fields)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _Fields()


def _at_root(call: Call) -> Endpoint:
    fields = _fields(call)
    if fields.parameters is not UNSET:
        return CLASSIFY
    return TEI_RERANK if fields.inputs is UNSET and fields.texts is not UNSET else PREDICT


def _at_rerank(call: Call) -> Endpoint:
    return VLLM_RERANK if _fields(call).texts is UNSET else TEI_RERANK


@final
@dataclass(frozen=True)
class _Chosen:
    """The form of a request, with the endpoint that writes its answer."""

    endpoint: Endpoint
    request: Request


def _shared(path: str, endpoints: Sequence[Endpoint], choose: Callable[[Call], Endpoint], summary: str) -> Endpoint:
    """Return an endpoint that reads and writes as the one that is chosen for a call."""

    def read(call: Call, served: Served) -> Request:
        endpoint = choose(call)
        request = endpoint.read(call, served)
        return replace(request, form=_Chosen(endpoint, request))

    def write(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
        chosen: _Chosen = request.form
        return chosen.endpoint.write(chosen.request, results, served)

    def refuse(call: Call, refusal: Refusal) -> Reply:
        return choose(call).refuse(call, refusal)

    takes = tuple(kind for endpoint in endpoints for kind in body_types(endpoint.takes))
    gives = tuple(kind for endpoint in endpoints for kind in body_types(endpoint.gives))
    return Endpoint((path,), read, write, refuse, takes, gives, summary, "shared")


ENDPOINTS = (
    _shared(
        "/",
        (PREDICT, TEI_RERANK, CLASSIFY),
        _at_root,
        "Classify texts, or sort them (text-embeddings-inference, Hugging Face).",
    ),
    _shared(
        "/rerank",
        (TEI_RERANK, VLLM_RERANK),
        _at_rerank,
        "Sort texts by relevance (text-embeddings-inference, vLLM).",
    ),
)
