"""What the page of a model says, as data: a pure function of a trace, operating points and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.calibration.calibrate import calibrate
from offramp.errors import CannotReach, InvalidInput
from offramp.evaluation.bootstrap import loss_interval
from offramp.evaluation.compare import Comparison, compare
from offramp.evaluation.curves import score_at
from offramp.evaluation.measure import measure, measure_all
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.evaluation.slices import Slice, by_label, by_length
from offramp.evaluation.sweep import per_exit_constant, sweep
from offramp.policies.fitting import fit_default_policy
from offramp.policies.registry import default_policy
from offramp.policies.replay import replay, scores
from offramp.report.html.examples import Group, groups
from offramp.report.html.exits import ExitRow, exit_rows
from offramp.report.html.verdict import Decision, PointAssessment, certificate_text, decide, policy_text
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import DEFAULT, Measured, OperatingPoint, Target
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, trace_digest

USUAL_DROP = 0.01
"""What a point would be allowed to lose where none is saved."""


@dataclass(frozen=True)
class Texts:
    """What the rows of a trace were.

    Attributes:
        texts: N texts or pairs.
        names: of the C classes; () for regression.
    """

    texts: Sequence[str | tuple[str, str]]
    names: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes:
        title: over it.
        decision: on top.
        metric: the name of the score.
        rows: how many rows there are.
        shown: the point whose exits and texts are shown; "" where none is saved.
        policy: the name of its policy.
        points: saved points -> what they do here.
        policies: of the saved points, in words.
        comparison: of all policies, on a part of the rows.
        marks: what the saved points do on that part.
        ms: policy -> mean time of a row, (K,) at the thresholds of its band; empty where nothing was timed.
        one_exit: score of everybody at one exit, on that part.
        exits: of all rows.
        groups: texts.
        slices: by what -> what the point does on each group of rows.
        certificates: saved points -> what is promised of them.
        environment: what made this, on what, of what.
    """

    title: str
    decision: Decision
    metric: str
    rows: int
    shown: str
    policy: str
    points: Mapping[str, Measured]
    policies: Mapping[str, str]
    comparison: Comparison
    marks: Mapping[str, Measured]
    ms: Mapping[str, Tensor]
    one_exit: Sequence[float]
    exits: Sequence[ExitRow]
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
    environment: Mapping[str, str],
) -> Page:
    """What is to be said of a model's early exit on one trace.

    Args:
        title: over the page.
        trace: with labels.
        texts: of its rows.
        points: the saved ones.
        name: the one that the page is about; None = the default one, or else the first.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one.
        cost: of the exits of the trace; None = no time is told.
        environment: what made this.

    Raises:
        InvalidInput: no such point; a table of other exits; a single exit; samples whose answers are not finite.
        NotApplicable: the metric has no meaning for this kind of problem.
    """
    seen = compare(trace, metric)
    case = _case(trace, seen, points, name, metric, cost)
    answers = replay(trace, case.point.policy, case.point.thresholds)
    return Page(
        title=title,
        decision=decide(case),
        metric=metric_for(trace, metric)[0],
        rows=len(trace),
        shown=case.name,
        policy=case.point.policy["name"],
        points=measure_all(trace, points, metric, cost),
        policies={each: policy_text(point) for each, point in points.items()},
        comparison=seen,
        marks=measure_all(seen.trace, points, metric, cost),
        ms={} if cost is None else times(seen, cost),
        one_exit=layerwise(seen.trace, metric),
        exits=exit_rows(trace, answers, metric),
        groups=groups(trace, answers, texts.texts, texts.names),
        slices=_slices(trace, case.point, texts.names, metric),
        certificates={
            each: certificate_text(point.certificate, _void(trace, point))
            for each, point in points.items()
            if point.certificate
        },
        environment=environment,
    )


def _case(
    trace: Trace,
    seen: Comparison,
    points: Mapping[str, OperatingPoint],
    name: str | None,
    metric: str | None,
    cost: CostTable | None,
) -> PointAssessment:
    if name is not None and name not in points:
        raise InvalidInput(f"no saved operating point {name!r}; there are: {', '.join(points) or 'none'}")
    name = name or (DEFAULT if DEFAULT in points else next(iter(points), None))
    point = _found_here(trace, metric) if name is None else points[name]
    return PointAssessment(
        name=name or "",
        point=point,
        told=measure(trace, point.policy, point.thresholds, metric, cost),
        full_ms=None if cost is None else cost.ms[-1],
        rivals=best_alternative(
            seen, point.policy["name"], measure(seen.trace, point.policy, point.thresholds, metric)
        ),
        loss=loss_interval(trace, replay(trace, point.policy, point.thresholds), metric),
        saved=name is not None,
        seen=name is None or _chosen_here(trace, point),
        void=_void(trace, point),
    )


def best_alternative(seen: Comparison, policy: str, told: Measured) -> str:
    """Whether another policy would do better at a point's mean exit, in words.

    Args:
        seen: all policies on some rows.
        policy: the name of the point's.
        told: what the point does on these rows.
    """
    found = {
        name: [score_at(band.mean_exits, values, told.mean_exit) for values in (band.scores, band.low, band.high)]
        for name, band in seen.bands.items()
        if name.split(",")[0] != policy
    }
    there = {name: [value for value in values if value is not None] for name, values in found.items()}
    there = {name: values for name, values in there.items() if values}
    if not there:
        return "No other reaches this mean exit."
    best = max(there, key=lambda name: there[name][0])
    score, low, high = there[best]
    own = told.score or 0.0
    word = "Yes" if low > own else "Not clearly" if score > own else "No"
    return (
        f"{word}: at this mean exit the best of the others, {best}, has {seen.metric} {score:.4f} "
        f"({low:.3f} to {high:.3f}) where {policy} has {own:.4f}, on {len(seen.trace)} rows."
    )


def _found_here(trace: Trace, metric: str | None) -> OperatingPoint:
    """The point that would be saved if these rows chose it."""
    policy, rows = fit_default_policy(trace)
    try:
        return calibrate(rows, policy, Target(max_drop=USUAL_DROP), metric)
    except CannotReach:
        return OperatingPoint({"name": default_policy(str(trace.problem_type))}, (math.inf,) * (trace.depth - 1))


def _chosen_here(trace: Trace, point: OperatingPoint) -> bool:
    """Whether the rows are those that a point was chosen on, as far as names and numbers tell."""
    if point.certificate is not None:
        return point.certificate.data == trace_digest(trace)
    there = point.measured
    data = trace.provenance.get("data")
    return there is not None and there.rows == len(trace) and there.provenance.get("data") == data


def _void(trace: Trace, point: OperatingPoint) -> str:
    """Of what else a certificate is than of what was run; "" where there is none."""
    promised = point.certificate
    if promised is None:
        return ""
    if promised.weights is not None and promised.weights != trace.provenance.get("weights"):
        return "other weights"
    if promised.engine is not None and promised.engine != trace.provenance.get("engine"):
        return f"another engine, {promised.engine}"
    return ""


def times(seen: Comparison, cost: CostTable) -> dict[str, Tensor]:
    """Mean time of a row in milliseconds, (K,) at the thresholds of each policy's band."""
    found = {}
    for name, policy in seen.policies.items():
        swept = sweep(scores(policy, seen.trace), per_exit_constant(seen.trace, cost.ms))
        at = torch.searchsorted(-swept.thresholds, -seen.bands[name].thresholds)  # both fall
        found[name] = swept.statistics[at, 0] / len(seen.trace)
    return found


def _slices(
    trace: Trace, point: OperatingPoint, names: Sequence[str], metric: str | None
) -> dict[str, Sequence[Slice]]:
    """By label, of a regression not, and by length, where that is known; in one slice is nothing to compare."""
    found: dict[str, Sequence[Slice]] = {}
    if trace.problem_type != REGRESSION:
        metric = "accuracy"  # the others have no meaning among rows of one label
        found["label"] = by_label(trace, point, metric, names)
    if trace.tokens is not None:
        found["length"] = by_length(trace, point, metric)
    return {by: slices for by, slices in found.items() if len(slices) > 1}
