"""Open Inference Protocol v2 over HTTP (KServe, Triton): JSON, Triton's binary tensors and its classification strings.

Inputs: a tensor of texts, whatever its name; or two of equal length for pairs, "text" and "text_pair", or any two other
names in their order. Outputs depend on the kind of problem; `GET /v2/models/NAME` lists them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import msgspec
import numpy as np

from offramp.data.padding import Array
from offramp.serving.endpoint import STATUS, Call, Endpoint, Page, Reply, decode
from offramp.serving.outputs import Activation, check_all_answered, details, labels, scores
from offramp.serving.protocols.oip_bodies import (
    AnswerOutput,
    BinarySize,
    ErrorAnswer,
    InferAnswer,
    InferRequest,
    InputParameters,
    ModelMetadata,
    OutputParameters,
    Ready,
    RequestInput,
    RequestParameters,
    ServerMetadata,
    TensorMetadata,
)
from offramp.serving.protocols.tensors import Tensor, texts_of
from offramp.serving.request import Item, Options, Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.serving.settings import VERSION
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

MODEL_VERSION = "1"
"""The one version of the model."""
EXTENSIONS = ["binary_tensor_data", "classification"]
HEADER_LENGTH = "inference-header-content-length"
TEXT, PAIR = "text", "text_pair"
EARLY_EXIT = "early_exit"
NAMES: Mapping[str, tuple[str, ...]] = {
    SINGLE_LABEL: ("label", "score", "probabilities", "logits"),
    MULTI_LABEL: ("labels", "probabilities", "logits"),
    REGRESSION: ("value",),
}
"""Outputs of a model, by its kind of problem."""
BY_CLASS = ("probabilities", "logits", "value")
"""Outputs with a number for each of the model's outputs, (N, C)."""


@final
@dataclass(frozen=True)
class _Output:
    """An output of an answer.

    Attributes:
        name: of it.
        binary: whether its data stand behind the JSON.
        count: of classification strings; 0 = the tensor as it is.
    """

    name: str
    binary: bool
    count: int = 0


@final
@dataclass(frozen=True)
class _Form:
    """What an answer needs of its request."""

    id: str | None
    outputs: Sequence[_Output]


def _read(call: Call, served: Served) -> Request:
    _check_model(call, served)
    length = call.headers.get(HEADER_LENGTH)
    size = len(call.body) if length is None else _header_size(length, len(call.body))
    body: InferRequest = decode(call.body[:size], InferRequest)
    columns = _columns(body.inputs, call.body[size:], length is not None)
    parameters = body.parameters or RequestParameters()
    options = Options(
        parameters.operating_point,
        parameters.max_depth,
        parameters.details,
        latency_budget_ms=parameters.latency_budget_ms,
    )
    return Request(_rows(columns), options, _Form(body.id, _wanted(body, parameters, served)))


def _check_model(call: Call, served: Served) -> None:
    served.check_model(call.path["model"])
    version = call.path.get("version", MODEL_VERSION)
    if version != MODEL_VERSION:
        raise Refusal("unknown_model", f"no version {version!r} of {served.name!r}; there is {MODEL_VERSION!r}")


def _header_size(length: str, size: int) -> int:
    if not (length.isdecimal() and len(length) < 16 and int(length) <= size):
        raise Refusal(
            "malformed", f"Inference-Header-Content-Length must be 0 to {size}, the body's; got {length!r:.40}"
        )
    return int(length)


def _columns(inputs: Sequence[RequestInput], binary: bytes, has_binary: bool) -> dict[str, list[str]]:
    """Return the texts of the inputs by their names; all of the binary data belong to one of them."""
    columns, offset = {}, 0
    for tensor in inputs:
        name, parameters = tensor.name, tensor.parameters or InputParameters()
        if parameters.shared_memory_region is not None:
            raise Refusal("validation", f"input {name!r}: shared memory is not read; send the data")
        if tensor.datatype != "BYTES":
            raise Refusal(
                "validation", f"input {name!r} must be BYTES, a text in each element; got {tensor.datatype!r}"
            )
        size = parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise Refusal("validation", f"input {name!r} needs either data or the parameter binary_data_size")
        if size is None:
            nested = [[part] if isinstance(part, str) else part for part in tensor.data or []]
            texts = [text for part in nested for text in part]
        else:
            _check_binary(name, size, len(binary) - offset, has_binary)
            texts = texts_of(binary[offset : offset + size], name)
            offset += size
        _check_shape(tensor, len(texts))
        columns[name] = texts
    if offset != len(binary):
        raise Refusal("malformed", f"{len(binary) - offset} bytes behind the JSON belong to no input")
    if len(columns) != len(inputs):
        raise Refusal("validation", "two inputs have the same name")
    return columns


def _check_binary(name: str, size: int, left: int, has_binary: bool) -> None:
    if not has_binary:
        raise Refusal("malformed", f"input {name!r} is binary: the header Inference-Header-Content-Length is missing")
    if size > left:
        raise Refusal("malformed", f"input {name!r} has {size} bytes, and {left} are left behind the JSON")


def _check_shape(tensor: RequestInput, count: int) -> None:
    shape, shown = tensor.shape, reprlib.repr(tensor.shape)
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] == 0:
        raise Refusal("validation", f"input {tensor.name!r} must have the shape [N] or [N, 1], N >= 1; got {shown}")
    if shape[0] != count:
        raise Refusal("validation", f"input {tensor.name!r} has the shape {shown}, and {count} texts")


def _rows(columns: Mapping[str, list[str]]) -> Sequence[Item]:
    """Return texts or pairs."""
    if len(columns) == 1:
        return next(iter(columns.values()))
    if len(columns) != 2:
        raise Refusal("validation", f"inputs must be one tensor of texts, or two for pairs; got {len(columns)}")
    names = (TEXT, PAIR) if set(columns) == {TEXT, PAIR} else tuple(columns)
    first, second = (columns[name] for name in names)
    if len(first) != len(second):
        raise Refusal("validation", f"the inputs of pairs must be as long; got {len(first)} and {len(second)}")
    return list(zip(first, second, strict=True))


def _wanted(body: InferRequest, defaults: RequestParameters, served: Served) -> list[_Output]:
    """Return the outputs of the answer: those that the request names, or all."""
    extra = (EARLY_EXIT,) if defaults.details else ()
    names = (*NAMES[served.config.problem_type], *extra)
    if not body.outputs:
        return [_Output(name, defaults.binary_data_output) for name in names]
    wanted: list[_Output] = []
    for output in body.outputs:
        parameters = output.parameters or OutputParameters()
        if output.name not in names:
            raise Refusal("validation", f"no output {output.name!r}; there are: {', '.join(names)}")
        if output.name in (known.name for known in wanted):
            raise Refusal("validation", f"output {output.name!r} is asked for twice")
        if parameters.shared_memory_region is not None:
            raise Refusal("validation", f"output {output.name!r}: shared memory is not written")
        if parameters.classification and output.name not in BY_CLASS:
            raise Refusal("validation", f"output {output.name!r} has no classes for the parameter classification")
        binary = defaults.binary_data_output if parameters.binary_data is None else parameters.binary_data
        wanted.append(_Output(output.name, binary, parameters.classification))
    binary = defaults.binary_data_output
    return wanted + [_Output(name, binary) for name in extra if name not in (known.name for known in wanted)]


def _write(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    form: _Form = request.form
    parts, described = [], []
    for output in form.outputs:
        tensor = _tensor(output, request, results, served)
        answer = AnswerOutput(output.name, tensor.datatype, list(tensor.shape))
        if output.binary:
            parts.append(tensor.to_bytes())
            answer.parameters = BinarySize(len(parts[-1]))
        else:
            answer.data = tensor.to_json()
        described.append(answer)
    body = msgspec.json.encode(InferAnswer(served.name, MODEL_VERSION, described, form.id))
    if not parts:
        return Reply(body)
    headers = {HEADER_LENGTH: str(len(body))}
    return Reply(b"".join([body, *parts]), headers=headers, media_type="application/octet-stream")


def _tensor(output: _Output, request: Request, results: Sequence[RowResult], served: Served) -> Tensor:
    """Return an output of all rows."""
    rows = (len(results),)
    if output.name == EARLY_EXIT:
        return Tensor(rows, [msgspec.json.encode(details(result, request, served)).decode() for result in results])
    if output.name == "label":
        return Tensor(rows, [labels(result, request, served)[0] for result in results])
    if output.name == "labels":
        return Tensor(rows, [msgspec.json.encode(labels(result, request, served)).decode() for result in results])
    kind: Activation = "none" if output.name == "logits" else "default"
    values = np.stack([scores(result, served, kind) for result in results])  # (N, C)
    if output.name == "score":
        return Tensor(rows, values.max(axis=-1))
    return _classified(values, output.count, served) if output.count else Tensor(values.shape, values)


def _classified(values: Array, count: int, served: Served) -> Tensor:
    """Return the `count` largest values of a row as "value:index:label"."""
    order = np.argsort(-values, axis=-1, kind="stable")[:, :count]
    texts = [
        f"{row[index]:f}:{index}:{served.config.id2label[index]}"
        for row, best in zip(values.tolist(), order.tolist(), strict=True)
        for index in best
    ]
    return Tensor(order.shape, texts)


def _write_server(call: Call, served: Served) -> Reply:
    return Reply(msgspec.json.encode(ServerMetadata("offramp", VERSION, EXTENSIONS)))


def _write_model(call: Call, served: Served) -> Reply:
    _check_model(call, served)
    config = served.config
    outputs = []
    for name in NAMES[config.problem_type]:
        shape = [-1, config.num_labels] if name in BY_CLASS else [-1]
        outputs.append(TensorMetadata(name, "BYTES" if name.startswith("label") else "FP32", shape))
    inputs = [TensorMetadata(name, "BYTES", [-1]) for name in (TEXT, PAIR)]
    return Reply(
        msgspec.json.encode(ModelMetadata(served.name, [MODEL_VERSION], f"offramp_{served.engine}", inputs, outputs))
    )


def _write_ready(call: Call, served: Served) -> Reply:
    return Reply(msgspec.json.encode(Ready(True)))


def _write_model_ready(call: Call, served: Served) -> Reply:
    _check_model(call, served)
    return Reply(msgspec.json.encode(Ready(True, served.name)))


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal in the protocol's form."""
    return Reply(msgspec.json.encode(ErrorAnswer(str(refusal))), STATUS[refusal.kind])


_MODEL = "/v2/models/{model}"
_MODEL_VERSION = "/v2/models/{model}/versions/{version}"
ENDPOINTS = (
    Endpoint(
        (f"{_MODEL}/infer", f"{_MODEL_VERSION}/infer"),
        _read,
        _write,
        refuse,
        InferRequest,
        InferAnswer,
        "Classify texts (Open Inference Protocol).",
        "oip",
    ),
)
PAGES = (
    Page(("/v2",), _write_server, refuse, ServerMetadata, "The server (Open Inference Protocol)."),
    Page(
        ("/v2/health/ready",), _write_ready, refuse, Ready, "Whether rows are answered (Open Inference Protocol).", True
    ),
    Page((_MODEL, _MODEL_VERSION), _write_model, refuse, ModelMetadata, "Inputs and outputs of the model."),
    Page(
        (f"{_MODEL}/ready", f"{_MODEL_VERSION}/ready"),
        _write_model_ready,
        refuse,
        Ready,
        "Whether the model answers rows.",
        True,
    ),
)
