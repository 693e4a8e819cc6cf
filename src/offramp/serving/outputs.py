"""Logits of a row -> probabilities, labels and the fields of early exit, as wire formats have them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np

from offramp.data.padding import Array
from offramp.errors import NotApplicable
from offramp.inference.answers import chosen_labels, probabilities
from offramp.inference.ranking import check_outputs, relevances
from offramp.serving.endpoint import ExitDetails, ExitProbabilities
from offramp.serving.request import Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

Activation = Literal["default", "softmax", "sigmoid", "none"]
DEFAULT_ACTIVATION: Mapping[str, Activation] = {SINGLE_LABEL: "softmax", MULTI_LABEL: "sigmoid", REGRESSION: "none"}


def check_all_answered(results: Sequence[RowResult]) -> None:
    """Refuse a request of which a row has no answer, in formats that have no error for one row.

    Raises:
        Refusal: that of the first such row; where there are several rows it names the row's number, from 0.
    """
    for number, result in enumerate(results):
        if result.error is not None:
            where = f"input {number}: " if len(results) > 1 else ""
            raise Refusal(result.error.kind, f"{where}{result.error}", result.error.retry_after_s)


def scores(result: RowResult, served: Served, activation: Activation = "default") -> Array:
    """Return a score for each output of the model, (C,) float32.

    Args:
        result: with logits.
        served: the model.
        activation: "default" = by the problem type: softmax, for several labels sigmoid, for a regression the values.
    """
    if activation == "default":
        activation = DEFAULT_ACTIVATION[served.config.problem_type]
    if activation == "none":
        return result.logits
    kind = MULTI_LABEL if activation == "sigmoid" else SINGLE_LABEL
    values: Array = probabilities(result.logits[None], kind)[0]
    return values


def ranked(result: RowResult, served: Served, activation: Activation = "default") -> list[tuple[str, float]]:
    """Return the labels with their scores, the largest first."""
    values = scores(result, served, activation)
    order = np.argsort(-values, kind="stable").tolist()
    names = served.config.id2label
    return [(names[index], score) for index, score in zip(order, values[order].tolist(), strict=True)]


def labels(result: RowResult, request: Request, served: Served) -> list[str]:
    """Return the labels that are part of the answer: the best one, or for several labels those above thresholds."""
    names = served.config.id2label
    if served.config.problem_type == MULTI_LABEL:
        point = served.point(result.point or served.point_name(request.options))
        return [names[index] for index in np.flatnonzero(chosen_labels(result.logits[None], point)[0]).tolist()]
    return [names[int(scores(result, served).argmax())]]


def check_ranks(served: Served) -> None:
    """Refuse to rank with a model that has neither one output nor two classes.

    Raises:
        Refusal: not applicable.
    """
    try:
        check_outputs(served.config)
    except NotApplicable as error:
        raise Refusal("not_applicable", str(error)) from None


def relevance(result: RowResult, served: Served, raw: bool = False) -> float:
    """Return how relevant the second text of a pair is to the first, as `offramp.Predictor.rank` does.

    Args:
        result: with logits.
        served: a model that passes `check_ranks`.
        raw: the difference of the two logits, or the output, as it is.
    """
    return float(relevances(result.logits[None], raw)[0])


def by_relevance(results: Sequence[RowResult], served: Served) -> list[int]:
    """Return the numbers of pairs, the most relevant first.

    As `offramp.Predictor.rank` sorts: by what does not run together near 0 and 1 as scores do.
    """
    return sorted(range(len(results)), key=lambda number: -relevance(results[number], served, raw=True))


def details(result: RowResult, request: Request, served: Served) -> ExitDetails | None:
    """Return the fields of early exit of a row; None where the request does not want them."""
    if not request.options.details:
        return None
    name = result.point or served.point_name(request.options)
    point, names = served.point(name), served.config.id2label
    exits = []
    for layer, logits in result.logits_by_exit.items():
        values = scores(RowResult(logits, layer, result.tokens), served).tolist()
        exits.append(ExitProbabilities(layer, {names[index]: value for index, value in enumerate(values)}))
    certificate = None if point is None or point.certificate is None else asdict(point.certificate)
    return ExitDetails(result.exit_layer, name, served.engine, exits, certificate)
