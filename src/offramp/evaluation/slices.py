"""Who pays for the speed: an operating point, told apart for groups of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.measure import measure
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace, labels_of

MOST = 200
"""So many slices can still be read."""


@dataclass(frozen=True)
class Slice:
    """What an operating point does on some of the rows.

    Attributes:
        name: of the slice.
        rows: how many.
        score: at the point; None where there are no labels.
        full_score: of the full model on the same rows.
        mean_exit: mean exit layer.
        agreement: share of rows with the full model's answer; None for regression.
    """

    name: str
    rows: int
    score: float | None
    full_score: float | None
    mean_exit: float
    agreement: float | None


def by_label(
    trace: Trace, point: OperatingPoint, metric: str | None = None, label_names: Sequence[str] | None = None
) -> tuple[Slice, ...]:
    """A slice for each label that is there, in the order of the classes.

    Of several labels a row is in the slice of each that it has.

    Args:
        trace: with labels.
        point: where to leave.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one.
        label_names: the C classes' names; None = their numbers.

    Raises:
        InvalidInput: no labels.
        NotApplicable: the labels of a regression are no groups.
    """
    labels = labels_of(trace)
    if trace.problem_type == REGRESSION:
        raise NotApplicable("the labels of a regression are values, not groups; slice by length or by a column")
    classes = range(trace.logits.shape[-1])
    names = [str(number) for number in classes] if label_names is None else label_names
    has = labels > 0 if trace.problem_type == MULTI_LABEL else labels.unsqueeze(-1) == torch.arange(len(classes))
    return _slices(trace, point, metric, {names[number]: has[:, number] for number in classes})


def by_length(trace: Trace, point: OperatingPoint, metric: str | None = None, buckets: int = 4) -> tuple[Slice, ...]:
    """Slices of about equally many rows, from the shortest to the longest in tokens; equal lengths stay together.

    Raises:
        InvalidInput: the trace does not know its lengths.
    """
    if trace.tokens is None:
        raise InvalidInput("this trace does not know how long its rows are; record it again, from texts")
    tokens = trace.tokens
    edges = torch.unique(tokens.double().quantile(torch.linspace(0, 1, buckets + 1, dtype=torch.float64)[1:-1]))
    bucket = torch.bucketize(tokens.double(), edges)  # (N,) an edge belongs to the bucket below it
    members = [bucket == number for number in range(len(edges) + 1)]
    named = {_span(tokens[rows]): rows for rows in members if rows.any()}
    return _slices(trace, point, metric, named)


def by_groups(
    trace: Trace, point: OperatingPoint, names: Sequence[str], metric: str | None = None
) -> tuple[Slice, ...]:
    """A slice for each group, sorted by name.

    Args:
        trace: labels for scores.
        point: where to leave.
        names: the group of each row, N.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one.

    Raises:
        InvalidInput: another number of names than rows, or more groups than can be read.
    """
    if len(names) != len(trace):
        raise InvalidInput(f"{len(trace)} rows take {len(trace)} names of groups, got {len(names)}")
    groups = sorted(set(names))
    if len(groups) > MOST:
        raise InvalidInput(f"{len(groups)} groups are too many to tell apart; at most {MOST}")
    number = {name: place for place, name in enumerate(groups)}
    places = torch.tensor([number[name] for name in names])
    return _slices(trace, point, metric, {name: places == place for name, place in number.items()})


def _slices(trace: Trace, point: OperatingPoint, metric: str | None, members: dict[str, Tensor]) -> tuple[Slice, ...]:
    """The slices that have rows; members: (N,) bool for each name."""
    found = []
    for name, rows in members.items():
        if rows.any():
            told = measure(trace.take(rows.nonzero().squeeze(-1)), point.policy, point.thresholds, metric)
            found.append(Slice(name, told.rows, told.score, told.full_score, told.mean_exit, told.agreement))
    return tuple(found)


def _span(tokens: Tensor) -> str:
    """Such as "4-9 tokens"."""
    low, high = int(tokens.min()), int(tokens.max())
    return f"{low} tokens" if low == high else f"{low}-{high} tokens"
