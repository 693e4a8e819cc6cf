"""The content of a model's page as data: a pure function of a trace, operating points and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.calibration.lexical_rows import lexical_rows_text
from offramp.calibration.prepare import prepare_policy
from offramp.errors import CannotReach, InvalidInput
from offramp.evaluation.bootstrap import point_loss_interval
from offramp.evaluation.caveats import caveats, is_of_one_class
from offramp.evaluation.compare import Comparison, compare
from offramp.evaluation.curves import score_at
from offramp.evaluation.exit_values import ExitValue, exit_values
from offramp.evaluation.measure import measure_all, measure_point, replay_point
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.evaluation.reliability import Reliability, at_temperatures, reliability
from offramp.evaluation.slices import Slice, by_length, recall_by_class
from offramp.evaluation.sweep import per_exit_constant, sweep
from offramp.model.token_similarity import TokenSimilarity
from offramp.policies.registry import default_unfitted_policy, policy_text
from offramp.policies.replay import scores
from offramp.report.html.examples import Group, groups
from offramp.report.html.exits import ExitRow, exit_rows
from offramp.report.html.lexical import lexical_fact
from offramp.report.html.verdict import Decision, PointAssessment, certificate_text, decide
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import DEFAULT, Certificate, Measured, OperatingPoint, Target, rows_text
from offramp.types.point_times import PointTimes
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace, labels_of, trace_digest

DEFAULT_DROP = 0.01
"""Target `max_drop` of the point that the page shows where none is saved."""
FEW_ANSWERS = 10
"""Bins of fewer answers than this are drawn faint."""


@dataclass(frozen=True)
class Texts:
    """The texts of a trace's rows and the names of its classes.

    Attributes:
        texts: N texts or pairs.
        names: of the C classes; () for regression.
    """

    texts: Sequence[str | tuple[str, str]]
    names: Sequence[str]


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Attributes:
        title: heading of the page.
        decision: the summary on top.
        metric: name of the score.
        rows: number of rows in the trace.
        point_name: the point whose exits and texts are shown; "" where none is saved.
        policy_name: name of its policy.
        measured: saved point -> its measurements on all rows.
        policies: saved point -> its policy in words.
        comparison: of all policies, on one half of the rows.
        marks: saved point -> its measurements on the comparison's rows.
        ms: policy -> mean time of a row, (K,) at the thresholds of its band; empty where nothing was timed.
        layerwise: (L,) score where all of the comparison's rows leave at one exit.
        exits: of all rows.
        times: expected and measured times at the point; None where none were measured.
        similarity: of tokens, by layer; where there is none, why.
        reliability: of every exit, on all rows; () for regression.
        tempered: the same of the exits that the point reads, with the temperatures of its policy; () where it has none.
        exit_values: layer -> what the exit takes and saves at the point; empty where that is not known.
        groups: example texts.
        slices: "label" -> the point's recall of each class, or "length" -> its score on each group of rows.
        certificates: saved point -> its certificate in words.
        environment: command, versions, machine, model and data.
    """

    title: str
    decision: Decision
    metric: str
    rows: int
    point_name: str
    policy_name: str
    measured: Mapping[str, Measured]
    policies: Mapping[str, str]
    comparison: Comparison
    marks: Mapping[str, Measured]
    ms: Mapping[str, Tensor]
    layerwise: Sequence[float]
    exits: Sequence[ExitRow]
    times: PointTimes | None
    similarity: TokenSimilarity | str
    reliability: Sequence[Reliability]
    tempered: Sequence[Reliability]
    exit_values: Mapping[int, ExitValue]
    groups: Sequence[Group]
    slices: Mapping[str, Sequence[Slice]]
    certificates: Mapping[str, str]
    environment: Mapping[str, str]


def page(
    title: str,
    trace: Trace,
    texts: Texts,
    points: Mapping[str, OperatingPoint],
    *,
    name: str | None = None,
    metric: str | None = None,
    cost: CostTable | None = None,
    times: PointTimes | None = None,
    similarity: TokenSimilarity | str = "",
    environment: Mapping[str, str],
) -> Page:
    """Return the page of a model's early exit on one trace.

    Args:
        title: heading of the page.
        trace: with labels.
        texts: of its rows.
        points: the saved ones.
        name: the point that the page shows; None = the default one, or else the first.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.
        cost: of the exits of the trace; None = the page has no times.
        times: see `Page`.
        similarity: see `Page`.
        environment: see `offramp.report.html.provenance`.

    Raises:
        InvalidInput: no such point; a table of other exits; a single exit; samples whose answers are not finite.
        NotApplicable: the metric has no meaning for this kind of problem.
    """
    comparison = compare(trace, metric)
    assessment = _assess(trace, comparison, points, name, metric, cost)
    answered, answers = replay_point(trace, assessment.point)
    shown = {assessment.name or "the point found here": assessment.point}
    notes = [*caveats(trace, shown, metric, texts.names), *filter(None, [lexical_rows_text(trace)])]
    return Page(
        title=title,
        decision=decide(assessment, notes),
        metric=metric_for(trace, metric)[0],
        rows=len(trace),
        point_name=assessment.name or "",
        policy_name=assessment.point.policy["name"],
        measured=measure_all(trace, points, metric, cost),
        policies={name: policy_text(point.policy) for name, point in points.items()},
        comparison=comparison,
        marks=measure_all(comparison.trace, points, metric, cost),
        ms={} if cost is None else mean_times(comparison, cost),
        layerwise=layerwise(comparison.trace, metric),
        exits=exit_rows(trace, answers, metric),
        times=times,
        similarity=similarity,
        reliability=_reliability(trace),
        tempered=_reliability(at_temperatures(trace, assessment.point)),
        exit_values={value.layer: value for value in exit_values(trace, assessment.point, cost)},
        groups=groups(answered, answers, texts.texts, texts.names),
        slices=_slices(trace, assessment.point, texts.names, metric),
        certificates=_certificates(trace, points),
        environment=environment,
    )


def _assess(
    trace: Trace,
    comparison: Comparison,
    points: Mapping[str, OperatingPoint],
    name: str | None,
    metric: str | None,
    cost: CostTable | None,
) -> PointAssessment:
    """Measure the named point, the default one, the first one, or one chosen on these rows."""
    if name is not None and name not in points:
        raise InvalidInput(f"no saved operating point {name!r}; there are: {', '.join(points) or 'none'}")
    name = shown_name(points, name)
    point = _point_chosen_on(trace, metric) if name is None else points[name]
    compared = measure_point(comparison.trace, point, metric)
    measured = measure_point(trace, point, metric, cost)
    return PointAssessment(
        name=name,
        point=point,
        measured=measured,
        full_ms=measured.full_ms,
        best_alternative=best_alternative(comparison, point.policy["name"], compared),
        loss=point_loss_interval(trace, point, metric),
        in_sample=name is None or _is_in_sample(trace, point),
        certificate_mismatch=_certificate_mismatch(trace, point.certificate),
        counted=int((labels_of(trace) == 1).sum()) if is_of_one_class(trace, metric) else None,
        lexical=lexical_fact(trace, point, metric),
    )


def shown_name(points: Mapping[str, OperatingPoint], name: str | None) -> str | None:
    """Return the name of the point that a page shows: that one, or the default one, or the first; None without any."""
    return name or (DEFAULT if DEFAULT in points else next(iter(points), None))


def best_alternative(comparison: Comparison, policy: str, measured: Measured) -> str:
    """Return a sentence on whether another policy scores higher at a point's mean exit.

    Args:
        comparison: all policies on some rows.
        policy: name of the point's policy.
        measured: the point on these rows.
    """
    at_mean_exit = {}  # policy -> its score and interval there; of policies that reach this mean exit
    for name, band in comparison.bands.items():
        if name.split(",")[0] == policy:
            continue
        curves = (band.scores, band.low, band.high)
        values = [score_at(band.mean_exits, values, measured.mean_exit) for values in curves]
        if reached := [value for value in values if value is not None]:
            at_mean_exit[name] = reached
    if not at_mean_exit:
        return "No other reaches this mean exit."
    best = max(at_mean_exit, key=lambda name: at_mean_exit[name][0])
    score, low, high = at_mean_exit[best]
    own = measured.score or 0.0
    word = "Yes" if low > own else "Not clearly" if score > own else "No"
    return (
        f"{word}: at this mean exit the best of the others, {best}, has {comparison.metric} {score:.4f} "
        f"({low:.3f} to {high:.3f}) where {policy} has {own:.4f}, on {rows_text(len(comparison.trace))}."
    )


def _point_chosen_on(trace: Trace, metric: str | None) -> OperatingPoint:
    """Choose a point of the default policy on these rows; at full depth where none meets the target."""
    target = Target(max_drop=DEFAULT_DROP)
    try:
        return prepare_policy(trace, target=target, metric=metric).calibrate(target, metric)
    except CannotReach:
        name = default_unfitted_policy(str(trace.problem_type))
        return OperatingPoint({"name": name}, (math.inf,) * (trace.depth - 1))


def _is_in_sample(trace: Trace, point: OperatingPoint) -> bool:
    """Return whether a point was chosen on these rows, as far as digest, name and number of rows tell."""
    if point.certificate is not None:
        return point.certificate.data == trace_digest(trace)
    chosen_on = point.measured
    if chosen_on is None:
        return False
    return chosen_on.rows == len(trace) and chosen_on.provenance.get("data") == trace.provenance.get("data")


def _certificates(trace: Trace, points: Mapping[str, OperatingPoint]) -> dict[str, str]:
    """Return the certificates in words, by point; those on agreement beside another one by "POINT, agreement"."""
    quality = {name: point.certificate for name, point in points.items()}
    agreement = {f"{name}, agreement": point.agreement for name, point in points.items()}
    certified = {name: certificate for name, certificate in (quality | agreement).items() if certificate}
    return {name: certificate_text(one, _certificate_mismatch(trace, one)) for name, one in certified.items()}


def _certificate_mismatch(trace: Trace, certificate: Certificate | None) -> str:
    """Return what a certificate is of instead of the trace's weights and engine; "" where it applies."""
    if certificate is None:
        return ""
    if certificate.weights is not None and certificate.weights != trace.provenance.get("weights"):
        return "other weights"
    if certificate.engine is not None and certificate.engine != trace.provenance.get("engine"):
        return f"another engine, {certificate.engine}"
    return ""


def mean_times(comparison: Comparison, cost: CostTable) -> dict[str, Tensor]:
    """Return a row's mean time in milliseconds, (K,) at the thresholds of each policy's band."""
    times, ms = {}, cost.select(comparison.trace.layer_numbers).ms
    for name, policy in comparison.policies.items():
        swept = sweep(scores(policy, comparison.trace), per_exit_constant(comparison.trace, ms))
        index = torch.searchsorted(-swept.thresholds, -comparison.bands[name].thresholds)  # (K,) both fall
        times[name] = swept.statistics[index, 0] / len(comparison.trace)
    return times


def _reliability(trace: Trace | None) -> tuple[Reliability, ...]:
    """Return the reliability of the exits of a trace; () without one, or for a regression."""
    return () if trace is None or trace.problem_type == REGRESSION else reliability(trace)


def _slices(
    trace: Trace, point: OperatingPoint, names: Sequence[str], metric: str | None
) -> dict[str, Sequence[Slice]]:
    """Return recalls by label (not for regression) and scores by length (where known), where there are several."""
    slices: dict[str, Sequence[Slice]] = {}
    if trace.problem_type != REGRESSION:
        metric = "accuracy"  # the others have no meaning among rows of one label
        slices["label"] = recall_by_class(trace, point, names)
    if trace.tokens is not None:
        slices["length"] = by_length(trace, point, metric)
    several = trace.problem_type == MULTI_LABEL  # then one label is a group among other rows
    return {by: rows for by, rows in slices.items() if len(rows) > 1 or (several and by == "label" and rows)}
