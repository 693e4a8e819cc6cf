"""Trade-off curves in a number: the score at a budget, the area under one, the area of one above another.

A curve is points joined by straight lines. A point between two thresholds can be reached: draw one of the two for each
sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.evaluation.sweep import Curve

Numbers = NDArray[np.float64]


def score_at(mean_exits: Tensor, values: Tensor, mean_exit: float) -> float | None:
    """Return a curve's value at a mean exit layer, from (K,) each; None outside of the curve."""
    if not mean_exits.min() - 1e-9 <= mean_exit <= mean_exits.max() + 1e-9:
        return None
    return float(np.interp(mean_exit, _rising(mean_exits), _rising(values)))


def area(curve: Curve | BootstrapCurve, low: float | None = None, high: float | None = None) -> float:
    """Return the mean score over all mean exits from `low` to `high`: the area under the curve, over their distance.

    Args:
        curve: two curves can be compared only over the same range.
        low: a mean exit layer; None = the curve's earliest.
        high: likewise; None = the curve's last.

    Raises:
        InvalidInput: the curve does not reach `low` or `high`, or `low` is not below `high`.
    """
    at, scores = _rising(curve.mean_exits), _rising(curve.scores)
    low, high = float(at[0]) if low is None else low, float(at[-1]) if high is None else high
    if low < at[0] - 1e-9 or high > at[-1] + 1e-9 or low >= high:
        raise InvalidInput(f"no area from {low:.4g} to {high:.4g}: the curve reaches from {at[0]:.4g} to {at[-1]:.4g}")
    knots = np.concatenate(([low], at[(at > low) & (at < high)], [high]))
    heights = np.interp(knots, at, scores)
    return float((np.diff(knots) * (heights[:-1] + heights[1:]) / 2).sum() / (high - low))


def area_above(one: Curve | BootstrapCurve, other: Curve | BootstrapCurve) -> float:
    """Return the area between two curves where the first lies above the second, in the score's unit times layers.

    Xin et al., "BERxiT", EACL 2021, section 5.3; with scores in percent, as there, it is 100 times this.

    Raises:
        InvalidInput: the curves share no mean exits.
    """
    lines = [(_rising(curve.mean_exits), _rising(curve.scores)) for curve in (one, other)]
    low, high = max(at[0] for at, _ in lines), min(at[-1] for at, _ in lines)
    if low >= high:
        raise InvalidInput("the two curves share no mean exits")
    knots = np.unique(np.clip(np.concatenate([at for at, _ in lines]), low, high))
    gap = np.interp(knots, *lines[0]) - np.interp(knots, *lines[1])
    start, end = gap[:-1], gap[1:]
    above = np.maximum(start, 0) + np.maximum(end, 0)
    crosses = start * end < 0  # then the area above is a triangle over a share of the distance
    share = np.where(crosses, above / np.where(crosses, np.abs(start) + np.abs(end), 1), 1)
    return float((np.diff(knots) * share * above / 2).sum())


def _rising(values: Tensor) -> Numbers:
    """Return a curve's values (K,) from the first exit to full depth."""
    return np.asarray(values.flip(0).double().numpy())
