"""Open Inference Protocol: bodies of requests and answers, as msgspec reads and writes them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class RequestParameters(msgspec.Struct):
    """Parameters of a request; those of early exit stand among them."""

    operating_point: str | None = None
    max_depth: int | None = None
    details: bool = False
    latency_budget_ms: float | None = None
    binary_data_output: bool = False


class InputParameters(msgspec.Struct):
    """Parameters of an input."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None
    shared_memory_region: str | None = None


class RequestInput(msgspec.Struct):
    """A tensor of texts: shape [N] or [N, 1]; its data here, or in the bytes behind the JSON."""

    name: str
    shape: list[Annotated[int, Meta(ge=0)]]
    datatype: str
    parameters: InputParameters | None = None
    data: list[str | list[str]] | None = None


class OutputParameters(msgspec.Struct):
    """Parameters of an output."""

    binary_data: bool | None = None
    classification: Annotated[int, Meta(ge=0)] = 0
    shared_memory_region: str | None = None


class RequestOutput(msgspec.Struct):
    """An output that the answer is to have."""

    name: str
    parameters: OutputParameters | None = None


class InferRequest(msgspec.Struct):
    """A request."""

    inputs: list[RequestInput]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[RequestOutput] | None = None


class BinarySize(msgspec.Struct):
    """Parameters of an output whose data stand behind the JSON."""

    binary_data_size: int


class AnswerOutput(msgspec.Struct, omit_defaults=True):
    """A tensor of an answer."""

    name: str
    datatype: str
    shape: list[int]
    parameters: BinarySize | None = None
    data: list[str | float] | None = None


class InferAnswer(msgspec.Struct, omit_defaults=True):
    """An answer."""

    model_name: str
    model_version: str
    outputs: list[AnswerOutput]
    id: str | None = None


class TensorMetadata(msgspec.Struct):
    """A tensor; -1 = any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Ready(msgspec.Struct, omit_defaults=True):
    """Whether rows are answered."""

    ready: bool
    name: str | None = None


class ErrorAnswer(msgspec.Struct):
    """The answer to a refused request."""

    error: str
