"""A model as the wire formats know it: names, classes and points, without weights."""

from __future__ import annotations

import math

import numpy as np

from offramp.model.graph_config import EncoderSizes, GraphConfig
from offramp.serving.request import Refusal, RowResult
from offramp.serving.served import Served
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import SINGLE_LABEL

QUICK = OperatingPoint({"name": "margin"}, (0.5, 0.5, 0.5))


def served_model(*labels: str, problem_type: str = SINGLE_LABEL) -> Served:
    """Return a model called "tiny" of four exits behind layers 0, 1, 2 and 4, with the points "default" and "quick"."""
    config = GraphConfig(
        "/models/tiny",
        EncoderSizes("bert", 40, 64, 0),
        [0, 1, 2, 4],
        problem_type,
        dict(enumerate(labels or ("bad", "fine", "good"))),
        False,
    )
    points = {"default": OperatingPoint({"name": "margin"}, (0.9, 0.9, 0.9)), "quick": QUICK}
    return Served("tiny", config, points, "default", "onnx-int8", (0, 1, 2, 4), 32, "0" * 64, 1_700_000_000.5)


def answered(*shares: float, tokens: int = 5, layer: int = 2) -> RowResult:
    """Return a row whose logits are the logarithms of the numbers: their softmax is each one's share of the sum."""
    return RowResult(np.array([math.log(share) for share in shares], np.float32), layer, tokens)


def refused(refusal: Refusal) -> RowResult:
    """Return a row without an answer."""
    return RowResult(np.empty(0, np.float32), 0, 0, refusal)
