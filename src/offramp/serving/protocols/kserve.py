"""KServe's protocol v1: `{"instances": [...]}` -> `{"predictions": [...]}`, as its Hugging Face server answers.

A prediction is the number of the class, of several labels the numbers of those in the answer, of a regression the
value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from offramp.serving.endpoint import STATUS, Call, EarlyExit, Endpoint, ExitDetails, Page, Reply, decode, early_options
from offramp.serving.outputs import check_all_answered, details, labels, scores
from offramp.serving.request import Item, Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION


class TextPair(msgspec.Struct):
    """A text, or a pair of texts."""

    text: str
    text_pair: str | None = None


class Parameters(msgspec.Struct):
    """Predictions as {number of the class: its probability}, or {number: its logit}; with neither the best class."""

    return_probabilities: bool = False
    return_raw_logits: bool = False


class PredictRequest(msgspec.Struct):
    """Texts: a text each, a pair as {"text", "text_pair"} or as a list of two."""

    instances: list[str | TextPair | list[str]]
    parameters: Parameters | None = None
    early_exit: EarlyExit | None = None


class PredictAnswer(msgspec.Struct, omit_defaults=True):
    """A prediction for each instance; the fields of early exit beside them, where they are wanted."""

    predictions: list[Any]
    early_exit: list[ExitDetails] | None = None


class ModelAnswer(msgspec.Struct):
    """Whether a model is ready."""

    name: str
    ready: bool


class ErrorAnswer(msgspec.Struct):
    """The reason why there is no answer."""

    error: str


def _read(call: Call, served: Served) -> Request:
    served.check_model(call.path["name"])
    body: PredictRequest = decode(call.body, PredictRequest)
    if not body.instances:
        raise Refusal("validation", "instances is empty; at least one is needed")
    form = body.parameters or Parameters()
    if form.return_probabilities and served.config.problem_type == REGRESSION:
        raise Refusal("not_applicable", "a regression has no probabilities; leave return_probabilities out")
    options = early_options(body.early_exit)
    return Request([_item(instance) for instance in body.instances], options, form)


def _item(instance: str | TextPair | list[str]) -> Item:
    if isinstance(instance, str):
        return instance
    if isinstance(instance, TextPair):
        return instance.text if instance.text_pair is None else (instance.text, instance.text_pair)
    if len(instance) != 2:
        raise Refusal("validation", f"an instance that is a list must be a pair of texts; got {len(instance)}")
    return (instance[0], instance[1])


def _write(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    predictions = [_prediction(result, request, served) for result in results]
    fields = [row for result in results if (row := details(result, request, served)) is not None]
    return Reply(msgspec.json.encode(PredictAnswer(predictions, fields or None)))


def _prediction(result: RowResult, request: Request, served: Served) -> Any:
    """Return a prediction in the form that the request's parameters name."""
    form: Parameters = request.form
    values = scores(result, served, "none" if form.return_raw_logits else "default").tolist()
    if form.return_raw_logits or form.return_probabilities:
        return {str(number): value for number, value in enumerate(values)}
    kind = served.config.problem_type
    if kind == REGRESSION:
        return values[0] if len(values) == 1 else values
    numbers = [served.config.label2id[label] for label in labels(result, request, served)]
    return numbers if kind == MULTI_LABEL else numbers[0]


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal in KServe's form."""
    return Reply(msgspec.json.encode(ErrorAnswer(str(refusal))), STATUS[refusal.kind])


def _write_model(call: Call, served: Served) -> Reply:
    served.check_model(call.path["name"])
    return Reply(msgspec.json.encode(ModelAnswer(served.name, True)))


ENDPOINTS = (
    Endpoint(
        ("/v1/models/{name}:predict",),
        _read,
        _write,
        refuse,
        PredictRequest,
        PredictAnswer,
        "Classify texts (KServe v1).",
        "kserve",
    ),
)
PAGES = (
    Page(("/v1/models/{name}",), _write_model, refuse, ModelAnswer, "Whether the model is ready (KServe v1).", True),
)
