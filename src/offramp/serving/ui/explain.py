"""A row's logits at every exit -> what each operating point does with them, in numbers and in words. No I/O.

The scores are those of `offramp.policies`, the one code of them, which needs torch: a process of its own runs this
(`offramp.serving.ui.explain_process`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import msgspec
import numpy as np
import torch
from torch import Tensor

from offramp.data.padding import Array
from offramp.errors import OfframpError, one_line
from offramp.inference.answers import chosen_labels, probabilities
from offramp.policies.decision import continues, nan_where_invalid, thresholds_per_exit
from offramp.policies.registry import load_policy
from offramp.policies.replay import answers_at, run_policy
from offramp.serving.served import FULL
from offramp.serving.ui.words import GOES_ON, LAST, reason
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace

TOP = 5
"""Outputs of an exit that are named; the others are counted."""


class ExplainedExit(msgspec.Struct):
    """An exit that a point reads.

    Attributes:
        layer: its number.
        outputs: the largest probabilities with their labels; of a regression the values.
        others: how many outputs are not among them.
        score: of the policy; None = none yet, or full depth.
        threshold: None = never or always, or the last exit.
        leaves: whether a row leaves here, if not before.
        reason: the score against the threshold, in words.
    """

    layer: int
    outputs: list[tuple[str, float]]
    others: int
    score: float | None
    threshold: float | None
    leaves: bool
    reason: str


class ExplainedPoint(msgspec.Struct):
    """What an operating point does with a row.

    Attributes:
        name: FULL = full depth.
        policy: its name; "" = full depth.
        exits: that it reads, in order, those after the row has left too.
        exit_layer: the layer after which the row leaves; 0 = before the first.
        answer: the labels of the answer, the values of a regression; several labels may be none.
        error: why the point cannot be replayed; "" = it can.
    """

    name: str
    policy: str
    exits: list[ExplainedExit]
    exit_layer: int
    answer: list[str]
    error: str = ""


@final
@dataclass(frozen=True)
class Explainable:
    """A model as far as its exits are explained.

    Attributes:
        problem_type: one of PROBLEM_TYPES.
        labels: of the outputs.
        layers: of all exits of the model.
        points: by name, in the order of the answer; FULL may be among them, whatever it holds.
    """

    problem_type: str
    labels: Sequence[str]
    layers: Sequence[int]
    points: Mapping[str, OperatingPoint | None]

    def explain(self, layers: Sequence[int], logits: Array) -> list[ExplainedPoint]:
        """Return what each point does with a row.

        Args:
            layers: of the exits that were read.
            logits: (E, C) float32, the exits' own.
        """
        trace = Trace(
            torch.from_numpy(np.array(logits, np.float32))[:, None],
            layers=torch.tensor(layers),
            problem_type=self.problem_type,
        )
        return [self._point(name, point, trace) for name, point in self.points.items()]

    def _point(self, name: str, point: OperatingPoint | None, trace: Trace) -> ExplainedPoint:
        if point is None or name == FULL:
            return self._full(trace)
        try:
            return self._replayed(name, point, trace.select(point.layers_read(self.layers)))
        except OfframpError as error:
            return ExplainedPoint(name, str(point.policy["name"]), [], -1, [], one_line(error))

    def _full(self, trace: Trace) -> ExplainedPoint:
        last = trace.layer_numbers[-1]
        exits = [
            self._exit(layer, own, None, None, layer == last, LAST if layer == last else GOES_ON)
            for layer, own in zip(trace.layer_numbers, trace.logits[:, 0], strict=True)
        ]
        return ExplainedPoint(FULL, "", exits, last, self._answer(trace.logits[-1, 0], None))

    def _replayed(self, name: str, point: OperatingPoint, trace: Trace) -> ExplainedPoint:
        policy = str(point.policy["name"])
        score, logits = run_policy(load_policy(point.policy), trace)  # (L, 1), (L, 1, C)
        answers = answers_at(trace, score, logits, point.thresholds)
        limits = thresholds_per_exit(point.thresholds, trace.depth)
        exits = []
        for number, (layer, limit) in enumerate(zip(trace.layer_numbers, limits, strict=True)):
            leaves = not continues(nan_where_invalid(score[number], logits[number]), limit).item()
            value, last = score[number].item(), number == trace.depth - 1
            words = LAST if last else reason(policy, value, limit, leaves)
            exits.append(self._exit(layer, logits[number, 0], value, limit, leaves, words))
        left = int(answers.exit_layers)
        return ExplainedPoint(name, policy, exits, left, self._answer(answers.logits[0], point))

    def _exit(
        self, layer: int, logits: Tensor, score: float | None, limit: float | None, leaves: bool, words: str
    ) -> ExplainedExit:
        values = self._values(logits.numpy())
        order = range(len(values)) if self.problem_type == REGRESSION else np.argsort(-values, kind="stable").tolist()
        outputs = [(self.labels[index], round(float(values[index]), 6)) for index in order[:TOP]]
        others = max(len(values) - TOP, 0)
        return ExplainedExit(layer, outputs, others, _finite(score), _finite(limit), leaves, words)

    def _values(self, logits: Array) -> Array:
        """Return probabilities, or a regression's values, (C,)."""
        values: Array = logits if self.problem_type == REGRESSION else probabilities(logits[None], self.problem_type)[0]
        return values

    def _answer(self, logits: Tensor, point: OperatingPoint | None) -> list[str]:
        values = logits.numpy()
        if self.problem_type == REGRESSION:
            return [f"{value:.4g}" for value in values.tolist()]
        if self.problem_type == MULTI_LABEL:
            return [self.labels[index] for index in np.flatnonzero(chosen_labels(values[None], point)[0]).tolist()]
        return [self.labels[int(values.argmax())]]


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number
