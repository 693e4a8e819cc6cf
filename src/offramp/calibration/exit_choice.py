"""Which exits operating points read: the exit before the first layer where it pays, else all but that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from offramp.calibration.calibrate import point_for
from offramp.calibration.outputs import policy_outputs
from offramp.errors import CannotReach
from offramp.evaluation.caveats import DEFAULT_DROP
from offramp.policies.base import Policy
from offramp.types.operating_point import Target
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, row_hashes


@final
@dataclass(frozen=True)
class ExitChoice:
    """The exits that a point reads.

    Attributes:
        layers: their layer numbers, increasing.
        fitted_on: hashes of the rows that chose them (`offramp.types.trace.row_hashes`); () = no rows did.
    """

    layers: tuple[int, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)


def choose_exits(
    trace: Trace, fit: Callable[[Trace], Policy], target: Target | None = None, metric: str | None = None
) -> ExitChoice:
    """Choose whether points read the exit before the first layer: where the point for a target is cheaper with it.

    Costs are those of `Measured.speedup`. Equally cheap points do without: an exit that no row leaves at is not run.

    Args:
        trace: a full-depth pass over rows that are neither trained on nor certified nor reported on; labels for
            `max_drop`.
        fit: returns the policy for a trace of these rows with all exits that are read, fitted where it needs numbers.
        target: what the points are for; None = `max_drop` of DEFAULT_DROP, without labels the same agreement.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the problem's default.

    Raises:
        InvalidInput: as `offramp.calibrate`.
        NotApplicable: likewise.
    """
    first, *behind = layers = tuple(trace.layer_numbers)
    if first > 0 or len(behind) < 2:  # nothing to choose, or no other exit to leave at
        return ExitChoice(layers)
    if target is None:
        labelled = trace.labels is not None or trace.problem_type == REGRESSION
        target = Target(max_drop=DEFAULT_DROP) if labelled else Target(agreement=1 - DEFAULT_DROP)
    with_it, without = (_speedup(trace.select(read), fit, target, metric) for read in (layers, behind))
    return ExitChoice(layers if with_it > without else tuple(behind), tuple(sorted(set(row_hashes(trace)))))


def _speedup(trace: Trace, fit: Callable[[Trace], Policy], target: Target, metric: str | None) -> float:
    """Return the speed-up of the point for a target; 0 where it cannot be reached."""
    try:
        measured = point_for(policy_outputs(trace, fit(trace)), target, metric).measured
    except CannotReach:
        return 0.0
    return 0.0 if measured is None else measured.speedup
