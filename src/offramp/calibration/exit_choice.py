"""Which exits operating points read: the exit before the first layer where it pays, else all but that one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from offramp.calibration.calibrate import exit_costs, point_for
from offramp.calibration.label_thresholds import LabelThresholds
from offramp.calibration.outputs import PolicyOutputs, policy_outputs
from offramp.errors import CannotReach
from offramp.evaluation.caveats import DEFAULT_DROP
from offramp.evaluation.measure import replay_point
from offramp.policies.base import Policy
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Target, rows_text
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, row_hashes

STANDARD_ERRORS = 2.0
"""The mean saving of an exit that pays is more than so many of its standard errors."""


@final
@dataclass(frozen=True)
class ExitChoice:
    """The exits that a point reads.

    Attributes:
        layers: their layer numbers, increasing.
        fitted_on: hashes of the rows that chose them (`offramp.types.trace.row_hashes`); () = no rows did.
        reason: why the exit before the first layer is not read, in a sentence; empty where it is, or there is none.
    """

    layers: tuple[int, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)
    reason: str = field(default="", compare=False)


def choose_exits(
    trace: Trace,
    fit: Callable[[Trace], Policy],
    target: Target | None = None,
    metric: str | None = None,
    label_thresholds: LabelThresholds | None = None,
    cost: CostTable | None = None,
) -> ExitChoice:
    """Choose whether points read the exit before the first layer: where it lowers the mean cost by more than chance.

    A threshold for the target is chosen on these rows with the exit and without it. The mean over the rows of what the
    exit saves must be more than STANDARD_ERRORS of its standard errors. Costs are those of `Measured.speedup`. A target
    of speed that is out of reach without the exit has it read.

    Args:
        trace: a full-depth pass over rows that are neither trained on nor certified nor reported on; labels for
            `max_drop`.
        fit: returns the policy for a trace of these rows with all exits that are read, fitted where it needs numbers.
        target: `max_drop` or `agreement` of the points to come; None or one of speed = `max_drop` of DEFAULT_DROP,
            without labels the same agreement.
        metric: a name of `offramp.evaluation.metrics.METRICS`, of a `max_drop`; None = the problem's default.
        label_thresholds: as of `offramp.calibrate`.
        cost: the time to each exit, of a `latency_ms`; without it none is out of reach.

    Raises:
        InvalidInput: as `offramp.calibrate`.
        NotApplicable: likewise.
    """
    first, *behind = layers = tuple(trace.layer_numbers)
    if first > 0 or len(behind) < 2:  # nothing to choose, or no other exit to leave at
        return ExitChoice(layers)
    if target is None or target.kind not in ("max_drop", "agreement"):
        rows = trace.select(behind)
        if not _is_in_reach(policy_outputs(rows, fit(rows), label_thresholds), target, cost):
            return ExitChoice(layers)
        if trace.labels is None and trace.problem_type == REGRESSION:
            return ExitChoice(layers)
        target = Target(agreement=1 - DEFAULT_DROP) if trace.labels is None else Target(max_drop=DEFAULT_DROP)
    costs = exit_costs(trace, None)  # (L, N)
    spent = []
    for read, table in ((layers, costs), (behind, costs[1:] - costs[0])):
        rows = trace.select(read)
        try:
            point = point_for(policy_outputs(rows, fit(rows), label_thresholds), target, metric)
        except CannotReach:
            return ExitChoice(layers)  # whoever chooses a threshold will hear of it
        exits = torch.searchsorted(torch.tensor(read), replay_point(rows, point)[1].exit_layers)
        spent.append(table.gather(0, exits.unsqueeze(0)).squeeze(0))  # (N,)
    reason = _reason((spent[1] - spent[0]) / costs[-1].mean(), target)
    return ExitChoice(tuple(behind) if reason else layers, tuple(sorted(set(row_hashes(trace)))), reason)


def _is_in_reach(outputs: PolicyOutputs, target: Target | None, cost: CostTable | None) -> bool:
    """Return whether a policy is fast enough on these rows for a target of speed; True where none is known."""
    if target is None or (target.kind == "latency_ms" and cost is None):
        return True
    try:
        point_for(outputs, target, cost=cost)
    except CannotReach:
        return False
    return True


def _reason(saved: Tensor, target: Target) -> str:
    """Return in a sentence why an exit is not read that saves these shares of the cost, (N,); empty where it pays."""
    mean = saved.mean().item()
    error = saved.std().item() / math.sqrt(len(saved)) if len(saved) > 1 else math.inf
    if mean > STANDARD_ERRORS * error:
        return ""
    amount = f"saves {mean:.1%} of the cost, with a standard error of {error:.1%}" if mean > 1e-9 else "saves nothing"
    where = f"{target.kind} {target.value:g} on {rows_text(len(saved))}"
    return f"the lexical exit is not read: for {where} it {amount}"
