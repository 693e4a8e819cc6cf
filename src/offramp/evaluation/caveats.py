"""Sentences on what a trace cannot show: too few rows, classes out of balance, scores that are not defined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from offramp.errors import NotApplicable
from offramp.evaluation.compare import against_full
from offramp.evaluation.intervals import rows_needed, upper_share
from offramp.evaluation.measure import replay_point
from offramp.evaluation.metrics import METRICS, check_metric, layerwise, metric_for, score
from offramp.types.operating_point import OperatingPoint, rows_text
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace, labels_of

NO_TARGET = 0.05
"""The share of lost answers that rows should be able to rule out where no target names one."""
DEFAULT_DROP = 0.01
"""The share of the score that may go where no target names one."""
MOST_FIT = 0.05
"""The share of rows that fitted the lexical exit, above which nothing is said of it."""
MAX_NAMES = 5
"""Classes that a sentence names."""


def caveats(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, names: Sequence[str] = ()
) -> list[str]:
    """Return sentences on what these rows cannot show of operating points; none where there is nothing to say.

    Args:
        trace: with labels for what is said of scores.
        points: by name; measured, or chosen, on these rows.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.
        names: of the C classes; () = their numbers.
    """
    names = names or [str(number) for number in range(trace.logits.shape[-1])]
    sentences = [
        one_class(trace, metric, names),
        few_rows(trace, points, metric, names),
        majority_agreement(trace, points, names),
    ]
    if trace.labels is not None:
        sentences += [undefined(trace, metric, names), missing_classes(trace, names)]
        sentences += [majority(trace, points, metric, names), idle_encoder(trace, metric)]
    return [sentence for sentence in sentences if sentence]


def one_class(trace: Trace, metric: str | None, names: Sequence[str]) -> str | None:
    """Say which class an F1 is of."""
    return f"f1 is that of class {names[1]!r}, the second of the two" if is_of_one_class(trace, metric) else None


def idle_encoder(trace: Trace, metric: str | None) -> str | None:
    """Say where the full model scores less than the exit before the first layer, on rows that did not fit that one."""
    if trace.layer_numbers[0] or (trace.fit_rows is not None and trace.fit_rows.double().mean() > MOST_FIT):
        return None
    scores = layerwise(trace, metric)
    if scores[-1] >= scores[0]:
        return None
    name = metric_for(trace, metric)[0]
    return (
        f"the lexical exit alone has {name} {scores[0]:.4f}, the full model {scores[-1]:.4f}: here the encoder adds "
        "nothing to it; train longer, or see whether the encoder is needed"
    )


# --- few rows -------------------------------------------------------------------------------------------------------


def tolerance(target: Mapping[str, float]) -> float:
    """Return the share of the answers, or of the score, that a target lets go; NO_TARGET for targets of speed."""
    if "agreement" in target:
        return round(1 - target["agreement"], 12)
    return target.get("max_drop", target.get("level", NO_TARGET))


def needed_rows(target: Mapping[str, float]) -> int:
    """Return the fewest rows that can show a target, by no loss among them; for "no loss at all" those of 1%."""
    return rows_needed(tolerance(target)) or rows_needed(DEFAULT_DROP) or 1


def few_rows(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None, names: Sequence[str]
) -> str | None:
    """Say how many answers may be lost where the rows could not show a point's target, even without any loss.

    Of several points it is the one with the highest bound. Points with a certificate have a bound of their own.
    """
    if trace.problem_type == REGRESSION:
        return _few_values(trace, metric) if points else None
    bounds = {}
    for name, point in points.items():
        counted, lost = _lost(trace, point, metric)
        rows, losses = int(counted.sum()), int((counted & lost).sum())
        leaves = min(point.thresholds, default=math.inf) < math.inf
        if leaves and point.certificate is None and rows < needed_rows(point.target):
            bounds[name] = (upper_share(losses, rows) if rows else 1.0, losses, rows)
    if not bounds:
        return None
    name = max(bounds, key=lambda key: bounds[key])
    bound, losses, rows = bounds[name]
    if not rows:
        return f"{_little(trace, metric, names)}: no answer of the full model is right here, so none can be lost"
    what = "answers" if trace.labels is None else "right answers"
    allowance = ""
    if {"max_drop", "agreement"} & set(points[name].target):
        allowed, needed = tolerance(points[name].target), needed_rows(points[name].target)
        allowance = f"; {name!r} allows {allowed:.2%}, which {needed} {what} without a loss would show"
    return (
        f"{_little(trace, metric, names)}: {losses} of {rows} {what} of the full model "
        f"{'is' if losses == 1 else 'are'} lost here, but the share of lost answers may be as high as {bound:.1%} "
        f"(95%){allowance}"
    )


def _little(trace: Trace, metric: str | None, names: Sequence[str]) -> str:
    """Return "n rows promise little", for f1 the rows of the class whose F1 it is."""
    one_class = is_of_one_class(trace, metric)
    rows = int((labels_of(trace) == 1).sum()) if one_class else len(trace)
    of_class = f" of class {names[1]!r}" if one_class else ""
    return f"{rows_text(rows)}{of_class} {'promises' if rows == 1 else 'promise'} little"


def _lost(trace: Trace, point: OperatingPoint, metric: str | None) -> tuple[Tensor, Tensor]:
    """Return the rows whose answers can be lost, (N,) bool, and those of which the point changes the answer."""
    answered, answers = replay_point(trace, point)
    full = predictions(answered.exit(trace.depth - 1))
    changed = (predictions(ExitOutput(answers.logits, problem_type=trace.problem_type)) != full).any(dim=-1)
    if trace.labels is None:
        return torch.ones_like(changed), changed
    counted = (full == labels_of(trace).long().view(len(trace), -1)).all(dim=-1)
    return counted & (labels_of(trace) == 1) if is_of_one_class(trace, metric) else counted, changed


def is_of_one_class(trace: Trace, metric: str | None) -> bool:
    """Return whether the metric is the F1 of the second of two classes."""
    return metric == "f1" and trace.problem_type == SINGLE_LABEL and trace.labels is not None


def _few_values(trace: Trace, metric: str | None) -> str | None:
    """Say what so few rows show of a correlation, by Fisher's transformation (Biometrika 1915)."""
    rows, needed = len(trace), rows_needed(NO_TARGET) or 1
    if trace.labels is None or rows >= needed or (rows > 1 and undefined(trace, metric)):
        return None
    little = _little(trace, metric, ())
    name, correlation = metric_for(trace, metric)[0], layerwise(trace, metric)[-1]
    if rows <= 3 or abs(correlation) >= 1:
        return f"{little}: no interval of {name} can be given from them"
    middle, spread = math.atanh(correlation), 1.96 / math.sqrt(rows - 3)
    low, high = math.tanh(middle - spread), math.tanh(middle + spread)
    return f"{little}: the full model's {name} of {correlation:.3f} may be {low:.3f} to {high:.3f} (95%)"


# --- classes out of balance -----------------------------------------------------------------------------------------


def majority(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None, names: Sequence[str]
) -> str | None:
    """Say where one answer for all rows would pass the target on this metric, and which metric would not pass it."""
    if trace.problem_type == REGRESSION:
        return None
    distinct, counts = _distinct(labels_of(trace))
    answer = distinct[counts.argmax()]
    if len(distinct) == 1:
        rows = "the only row has" if len(trace) == 1 else f"all {len(trace)} rows have"
        return f"{rows} {_label(answer, trace, names)}: nothing is known of others"
    levels = [tolerance(point.target) for point in points.values() if {"max_drop", "level"} & set(point.target)]
    level = min(levels, default=DEFAULT_DROP)
    name = metric_for(trace, metric)[0]
    constant, full = _constant_score(trace, answer, name), layerwise(trace, name)[-1]
    if not 0 < (1 - level) * full <= constant + 1e-12:
        return None
    outcome = f"keep {constant / full:.1%} of the full model's {name} ({constant:.4f} of {full:.4f})"
    if constant >= full:
        outcome = f"have {name} {constant:.4f}, and the full model has {full:.4f}"
    target = "and the target is" if levels else "enough for a target of"
    return (
        f"answering {_answer(answer, trace, names)} always would {outcome}, {target} {1 - level:.1%}: rare "
        f"classes may be lost unseen{_advice(trace, points, answer, level, names, name)}"
    )


def _advice(
    trace: Trace, points: Mapping[str, OperatingPoint], answer: Tensor, level: float, names: Sequence[str], metric: str
) -> str:
    """Return which other metrics one answer for all rows would not pass; what helps where a certificate counts rows."""
    if any(point.certificate is not None for point in points.values()):
        if trace.problem_type == MULTI_LABEL:
            return ""
        held_back = f"--hold-back {names[int(answer)]}:0.2 lets that answer leave later"
        return f"; the certificate counts rows of all classes alike; {held_back}"
    safer = []
    for other in ("macro-f1", "f1", "matthews"):
        try:
            check_metric(other, str(trace.problem_type), trace.logits.shape[-1])
        except NotApplicable:
            continue
        if other != metric and _constant_score(trace, answer, other) < (1 - level) * layerwise(trace, other)[-1]:
            safer.append(other)
    return f"; choose --metric {' or '.join(safer[:2])}" if safer else ""


def majority_agreement(trace: Trace, points: Mapping[str, OperatingPoint], names: Sequence[str]) -> str | None:
    """Say where one answer for all rows would pass a target of agreement with the full model."""
    target = max((point.target["agreement"] for point in points.values() if "agreement" in point.target), default=None)
    if target is None or trace.problem_type == REGRESSION:
        return None
    distinct, counts = _distinct(labels_of(against_full(trace)))
    share, answer = (counts.max() / len(trace)).item(), distinct[counts.argmax()]
    if share < target or len(distinct) == 1:
        return None
    advice = "" if trace.problem_type == MULTI_LABEL else f", or --hold-back {names[int(answer)]}:0.2"
    return (
        f"answering {_answer(answer, trace, names)} always would agree with the full model on {share:.1%} of the "
        f"rows, and the target is {target:.1%}: rare classes may be lost unseen; choose --max-drop with --metric "
        f"macro-f1{advice}"
    )


def missing_classes(trace: Trace, names: Sequence[str]) -> str | None:
    """Say which classes have no row, where several have some."""
    if trace.problem_type == REGRESSION:
        return None
    labels = labels_of(trace).long()
    counts = labels.sum(dim=0) if trace.problem_type == MULTI_LABEL else torch.bincount(labels, minlength=len(names))
    missing = [repr(name) for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if not missing or len(missing) > len(names) - (1 if trace.problem_type == MULTI_LABEL else 2):
        return None  # `majority` says it
    more = f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
    return f"no row has the label {', '.join(missing[:MAX_NAMES])}{more}: nothing is known of it"


def undefined(trace: Trace, metric: str | None, names: Sequence[str] = ()) -> str | None:
    """Say why a metric is not defined on these labels, where it counts as 0."""
    labels, name = labels_of(trace), metric_for(trace, metric)[0]
    if trace.problem_type == REGRESSION:
        columns = labels.view(len(trace), -1)
        if len(trace) == 1:
            return f"one row has no {name}; it counts as 0"
        if not (columns != columns[:1]).any():
            return f"the labels of all {len(trace)} rows are alike: {name} is not defined and counts as 0"
    elif trace.problem_type == MULTI_LABEL:
        if name != "accuracy" and not (labels > 0).any():
            return f"no row has a label: {name} counts as 0"
    elif name == "matthews" and not (labels != labels[:1]).any():
        return f"all rows have one label: {name} is not defined and counts as 0"
    elif is_of_one_class(trace, name) and not (labels == 1).any():
        return f"no row has the label {repr(names[1]) if names else 1}, whose f1 this is: it counts as 0"
    return None


def _distinct(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct labels, (D, G), and how many rows have each, (D,)."""
    distinct, counts = torch.unique(labels.long().view(len(labels), -1), dim=0, return_counts=True)
    return distinct, counts


def _answer(answer: Tensor, trace: Trace, names: Sequence[str]) -> str:
    """Return an answer (G,) in words: "'no'", "'a', 'b'" or "no label"."""
    if trace.problem_type != MULTI_LABEL:
        return repr(names[int(answer)])
    return ", ".join(repr(name) for name, has in zip(names, answer.tolist(), strict=True) if has) or "no label"


def _label(answer: Tensor, trace: Trace, names: Sequence[str]) -> str:
    words = _answer(answer, trace, names)
    return words if words == "no label" else f"the label {words}"


def _constant_score(trace: Trace, answer: Tensor, metric: str) -> float:
    """Return the score of one answer (G,) for all rows."""
    classes = trace.logits.shape[-1]
    row = answer if trace.problem_type == MULTI_LABEL else torch.nn.functional.one_hot(answer[0], classes)
    out = ExitOutput((row - 0.5).expand(len(trace), classes), problem_type=trace.problem_type)
    return score(METRICS[metric], out, labels_of(trace)).item()
