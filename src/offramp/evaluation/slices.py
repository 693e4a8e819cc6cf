"""An operating point's results on groups of rows: by label, by length, by a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.bootstrap import is_full_model, loss_interval, point_loss_interval
from offramp.evaluation.measure import measure_answers, replay_point
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace, labels_of

MAX_SLICES = 200
"""The largest number of slices: more cannot be read."""


@dataclass(frozen=True)
class Slice:
    """An operating point's results on some of the rows.

    Attributes:
        name: of the slice.
        rows: number of rows.
        score: at the point; None where there are no labels.
        full_score: of the full model on the same rows.
        mean_exit: mean exit layer.
        agreement: share of rows with the full model's answer; None for regression.
        loss_interval: 95% interval of the full model's score minus the point's (`offramp.evaluation.bootstrap`); None
            where there are no labels, or the rows show none.
        lexical_share: share of the rows that leave before layer 1; None where the trace has no exit there.
    """

    name: str
    rows: int
    score: float | None
    full_score: float | None
    mean_exit: float
    agreement: float | None
    loss_interval: tuple[float, float] | None = None
    lexical_share: float | None = None


def by_label(
    trace: Trace, point: OperatingPoint, metric: str | None = None, label_names: Sequence[str] | None = None
) -> tuple[Slice, ...]:
    """Return a slice for each label that has rows, in the order of the classes.

    With several labels a row is in the slice of each of its labels.

    Args:
        trace: with labels.
        point: its policy and thresholds.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.
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


def recall_by_class(trace: Trace, point: OperatingPoint, label_names: Sequence[str] | None = None) -> tuple[Slice, ...]:
    """Return the recall of each class that has rows: the share of its rows in whose answer it is; worst loss first.

    A slice's scores are the recalls at the point and of the full model. With several labels each is a class of its own.

    Args:
        trace: with labels.
        point: policy, thresholds and label thresholds.
        label_names: the C classes' names; None = their numbers.

    Raises:
        InvalidInput: no labels.
        NotApplicable: a regression has no classes.
    """
    labels = labels_of(trace)
    if trace.problem_type == REGRESSION:
        raise NotApplicable("a regression has no classes, and so no recall")
    several = trace.problem_type == MULTI_LABEL
    answered, answers = replay_point(trace, point)
    full_depth = is_full_model(point, answered, answers)
    slices = []
    for number, name in enumerate(label_names or [str(number) for number in range(trace.logits.shape[-1])]):
        rows = ((labels[:, number] > 0) if several else (labels == number)).nonzero().squeeze(-1)
        if not len(rows):
            continue
        columns = [number] if several else slice(None)
        own_labels = labels[rows][:, columns] if several else labels[rows]
        group = replace(answered.take(rows), logits=answered.logits[:, rows][..., columns], labels=own_labels)
        own = Answers(answers.logits[rows][:, columns], answers.exit_layers[rows], answers.failed[rows])
        interval = (0.0, 0.0) if full_depth else loss_interval(group, own, "accuracy")
        slices.append(_slice(name, group, own, "accuracy", interval))
    return tuple(sorted(slices, key=lambda group: ((group.score or 0) - (group.full_score or 0), group.score or 0)))


def by_length(trace: Trace, point: OperatingPoint, metric: str | None = None, buckets: int = 4) -> tuple[Slice, ...]:
    """Return slices of about equally many rows, by length in tokens; equal lengths stay together.

    Raises:
        InvalidInput: the trace has no token counts.
    """
    if trace.tokens is None:
        raise InvalidInput("this trace has no token counts of its rows; record it again, from texts")
    tokens = trace.tokens
    edges = torch.unique(tokens.double().quantile(torch.linspace(0, 1, buckets + 1, dtype=torch.float64)[1:-1]))
    bucket = torch.bucketize(tokens.double(), edges)  # (N,) an edge belongs to the bucket below it
    members = [bucket == number for number in range(len(edges) + 1)]
    named = {_span(tokens[rows]): rows for rows in members if rows.any()}
    return _slices(trace, point, metric, named)


def by_groups(
    trace: Trace, point: OperatingPoint, names: Sequence[str], metric: str | None = None
) -> tuple[Slice, ...]:
    """Return a slice for each group, sorted by name.

    Args:
        trace: labels for scores.
        point: its policy and thresholds.
        names: the group of each row, N.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.

    Raises:
        InvalidInput: another number of names than rows, or more groups than MAX_SLICES.
    """
    if len(names) != len(trace):
        raise InvalidInput(f"{len(trace)} rows take {len(trace)} names of groups, got {len(names)}")
    groups = sorted(set(names))
    if len(groups) > MAX_SLICES:
        raise InvalidInput(f"{len(groups)} groups are too many to compare; at most {MAX_SLICES}")
    number = {name: index for index, name in enumerate(groups)}
    group = torch.tensor([number[name] for name in names])  # (N,)
    return _slices(trace, point, metric, {name: group == index for name, index in number.items()})


def _slices(trace: Trace, point: OperatingPoint, metric: str | None, members: dict[str, Tensor]) -> tuple[Slice, ...]:
    """Return the slices that have rows; members: (N,) bool for each name."""
    slices = []
    for name, rows in members.items():
        if rows.any():
            group = trace.take(rows.nonzero().squeeze(-1))
            interval = None if group.labels is None else point_loss_interval(group, point, metric)
            slices.append(_slice(name, *replay_point(group, point), metric, interval))
    return tuple(slices)


def _slice(
    name: str, group: Trace, answers: Answers, metric: str | None, interval: tuple[float, float] | None
) -> Slice:
    """Return a slice from the answers to its rows."""
    m = measure_answers(group, answers, metric)
    has_lexical = group.layer_numbers[0] == 0
    share = (answers.exit_layers == 0).double().mean().item() if has_lexical else None
    return Slice(name, m.rows, m.score, m.full_score, m.mean_exit, m.agreement, interval, share)


def _span(tokens: Tensor) -> str:
    """Return the range of token counts, such as "4-9 tokens"."""
    low, high = int(tokens.min()), int(tokens.max())
    return f"{low} tokens" if low == high else f"{low}-{high} tokens"
