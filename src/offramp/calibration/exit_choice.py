"""Which exits operating points read: those that save more than chance, by the costs that are known.

Where the time of each exit is known and what reading it takes (`offramp.types.cost_table`), any exit but the last may
go: the one that saves least goes first, and the others are looked at again without it (backward elimination). Else the
exit before the first layer alone may go, and the others are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from offramp.policies.fitting import halves
from offramp.types.cost_table import CostTable
from offramp.types.exit_names import layers_text
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
        reason: why others are not read, in a sentence; empty where all are.
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
    """Choose the exits that points read: those that lower the mean cost by more than chance.

    A threshold for the target is chosen on these rows with an exit and without it. The mean over the rows of what the
    exit saves must be more than STANDARD_ERRORS of its standard errors. Costs are the times of a table that knows what
    reading an exit takes; without one those of `Measured.speedup`, and the exit before the first layer alone may go. A
    target of speed that is out of reach without an exit has it read.

    Among many sets of exits some have a loose threshold by chance. So by price the threshold of each half of the rows
    is counted on the other half (cross-fitting).

    Args:
        trace: a full-depth pass over rows that are neither trained on nor certified nor reported on; labels for
            `max_drop`.
        fit: returns the policy for a trace of these rows with all exits that are read, fitted where it needs numbers.
        target: `max_drop` or `agreement` of the points to come; None or one of speed = `max_drop` of DEFAULT_DROP,
            without labels the same agreement.
        metric: a name of `offramp.evaluation.metrics.METRICS`, of a `max_drop`; None = the problem's default.
        label_thresholds: as of `offramp.calibrate`.
        cost: the time to each exit; without it no `latency_ms` is out of reach.

    Raises:
        InvalidInput: as `offramp.calibrate`.
        NotApplicable: likewise.
    """
    layers = tuple(trace.layer_numbers)
    rows = _Rows(trace, fit, target, metric, label_thresholds, cost)
    may_go = layers[:-1] if rows.is_priced else tuple(layer for layer in layers if not layer)
    if not may_go or len(layers) < 3:  # nothing to choose, or no other exit to leave at
        return ExitChoice(layers)
    if rows.is_priced and len(trace) < 2:  # no halves
        return ExitChoice(layers)
    if not rows.is_priced and not rows.reaches(layers[1:]):
        return ExitChoice(layers)
    if rows.aim is not target and trace.labels is None and trace.problem_type == REGRESSION:
        return ExitChoice(layers)
    try:
        read, saved = _eliminate(rows, layers, may_go)
    except CannotReach:
        return ExitChoice(layers)  # whoever chooses a threshold will hear of it
    reason = "" if read == layers else _reason(rows, layers, read, saved)
    return ExitChoice(read, tuple(sorted(set(row_hashes(trace)))), reason)


@dataclass(frozen=True)
class _Rows:
    """The rows that choose, and how a point is chosen on them; as of `choose_exits`."""

    trace: Trace
    fit: Callable[[Trace], Policy]
    target: Target | None
    metric: str | None
    label_thresholds: LabelThresholds | None
    cost: CostTable | None

    @property
    def aim(self) -> Target:
        """Return the target at which exits are compared."""
        if self.target is not None and self.target.kind in ("max_drop", "agreement"):
            return self.target
        without_labels = self.trace.labels is None
        return Target(agreement=1 - DEFAULT_DROP) if without_labels else Target(max_drop=DEFAULT_DROP)

    def reaches(self, layers: Sequence[int]) -> bool:
        """Return whether a target of speed is in reach where these exits are read; True where there is none."""
        target = self.target
        if target is None or target is self.aim or (target.kind == "latency_ms" and self.cost is None):
            return True
        try:
            point_for(self._outputs(layers, self.trace), target, cost=self.cost)
        except CannotReach:
            return False
        return True

    def spent(self, layers: Sequence[int]) -> Tensor:
        """Return what each row takes where these exits are read, (N,), in shares of full depth with all exits."""
        if self.is_priced:
            one, other = halves(self.trace)
            return torch.cat([self._spent_ms(layers, one, other), self._spent_ms(layers, other, one)])
        costs, exits = exit_costs(self.trace), self._exits(layers, self.trace, self.trace)  # (L, N), (N,)
        own = costs[[self.trace.layer_numbers.index(layer) for layer in layers]]
        lexical = costs[0] if self.trace.layer_numbers[0] == 0 and layers[0] else 0.0  # in all times behind it
        return (own.gather(0, exits.unsqueeze(0))[0] - lexical) / costs[-1].mean()

    @property
    def is_priced(self) -> bool:
        """Return whether it is known what reading an exit takes."""
        return self.cost is not None and self.cost.exit_ms is not None

    def _spent_ms(self, layers: Sequence[int], choose: Trace, count: Trace) -> Tensor:
        """Return what the rows that count take at the point of those that choose, in shares as of `spent`."""
        assert self.cost is not None
        table, exits = self.cost.select(layers), self._exits(layers, choose, count)
        ms = torch.tensor(table.ms, dtype=torch.float64)[exits]
        cuts = table.mean_ms(torch.tensor(layers)[exits]) - ms.mean()  # of all rows alike
        return (ms + cuts) / self.cost.ms[-1]

    def _exits(self, layers: Sequence[int], choose: Trace, count: Trace) -> Tensor:
        """Return at which of these exits, by number, the rows that count leave, at the point of those that choose."""
        point = point_for(self._outputs(layers, choose), self.aim, self.metric)
        return torch.searchsorted(torch.tensor(layers), replay_point(count.select(layers), point)[1].exit_layers)

    def _outputs(self, layers: Sequence[int], rows: Trace) -> PolicyOutputs:
        rows = rows.select(layers)
        return policy_outputs(rows, self.fit(rows), self.label_thresholds)


def _eliminate(rows: _Rows, layers: tuple[int, ...], may_go: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
    """Return the exits that stay, and what each row saves by the exit that went last, (N,).

    Raises:
        CannotReach: not even full depth holds the target.
    """
    read, last = layers, torch.zeros(len(rows.trace))
    while len(read) > 2:
        spent, least = rows.spent(read), None
        for layer in (layer for layer in may_go if layer in read):
            fewer = tuple(other for other in read if other != layer)
            if not rows.reaches(fewer):
                continue
            saved = rows.spent(fewer) - spent  # (N,)
            if not _is_beyond_chance(saved) and (least is None or saved.mean() < least[1].mean()):
                least = fewer, saved
        if least is None:
            break
        read, last = least
    return read, last


def _is_beyond_chance(saved: Tensor) -> bool:
    """Return whether the mean of what rows save, (N,), is above 0 by more than chance."""
    return len(saved) > 1 and saved.mean().item() > STANDARD_ERRORS * _standard_error(saved)


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _reason(rows: _Rows, layers: Sequence[int], read: Sequence[int], saved: Tensor) -> str:
    """Return in a sentence why exits are not read; `saved` (N,) by the last of them, in shares of the cost."""
    where = f"{rows.aim.kind} {rows.aim.value:g} on {rows_text(len(rows.trace))}"
    if rows.cost is not None and rows.is_priced:
        skipped = [layer for layer in layers if layer not in read]
        exits = "the exit at layer {} is" if len(skipped) == 1 else "the exits at layers {} are"
        full = rows.cost.ms[-1]
        without, with_all = (full * rows.spent(some).mean().item() for some in (read, layers))
        return (
            f"{exits.format(layers_text(skipped))} not read: for {where} a row takes {without:.3g} ms so, and "
            f"{with_all:.3g} ms with all exits ({rows.cost.describe()})"
        )
    mean, error = saved.mean().item(), _standard_error(saved)
    amount = f"saves {mean:.1%} of the cost, with a standard error of {error:.1%}" if mean > 1e-9 else "saves nothing"
    return f"the lexical exit is not read: for {where} it {amount}"
