"""Does the exit before the first layer pay: does it lower the mean cost by more than chance?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offramp.calibration.calibrate import point_for
from offramp.calibration.outputs import PolicyOutputs
from offramp.evaluation.measure import replay_point
from offramp.types.operating_point import OperatingPoint, Target, rows_text
from offramp.types.trace import Trace

STANDARD_ERRORS = 2.0
"""By so many standard errors of its own the mean saving must be above 0."""


def reason_to_skip(with_exit: PolicyOutputs, without: PolicyOutputs, target: Target, metric: str | None) -> str:
    """Return why the exit before the first layer should not be read, in a sentence; empty where it pays.

    A threshold is chosen for the target with the exit and without it, on the same rows. What is compared is the mean
    cost of an answer, in multiply-accumulates, or in layers where the trace has none.

    Args:
        with_exit: a policy that has run over a trace whose first exit is at layer 0.
        without: the same policy over the same rows, without that exit.
        target: `max_drop` or `agreement`.
        metric: as of `offramp.calibrate`.

    Raises:
        CannotReach: as `offramp.calibrate`.
    """
    points = [point_for(outputs, target, metric) for outputs in (with_exit, without)]
    trace = with_exit.trace
    spent, spent_without = (_costs(trace, point) for point in points)
    full = _costs(trace, _never(points[0])).mean()
    saved = (spent_without - spent) / full  # (N,)
    mean = saved.mean().item()
    error = saved.std().item() / math.sqrt(len(trace)) if len(trace) > 1 else math.inf
    if mean > STANDARD_ERRORS * error:
        return ""
    amount = f"saves {mean:.1%} of the cost (standard error {error:.1%})" if mean > 0 else "saves nothing"
    return (
        f"the exit before the first layer is left out: for {target.kind} {target.value:g} it {amount} "
        f"on {rows_text(len(trace))}"
    )


def _never(point: OperatingPoint) -> OperatingPoint:
    """Return a point that reads the same exits and lets no row leave early."""
    return OperatingPoint(point.policy, (math.inf,) * len(point.thresholds), exit_layers=point.exit_layers)


def _costs(trace: Trace, point: OperatingPoint) -> Tensor:
    """Return the cost of every row's answer, (N,)."""
    layers = replay_point(trace, point)[1].exit_layers
    if trace.macs is None:
        return layers.double()
    exits = torch.searchsorted(torch.tensor(trace.layer_numbers), layers)
    return trace.macs.double().gather(0, exits[None]).squeeze(0)
