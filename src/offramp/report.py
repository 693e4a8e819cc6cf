"""What early exit does, as text, data and pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from offramp.errors import InvalidInput
from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.evaluation.sweep import Curve, curve
from offramp.policies.registry import load_policy, summarize
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Measured, OperatingPoint
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace

CLASSIFICATION_POLICIES = ("entropy", "margin", "pcee", "patience")
REGRESSION_POLICIES = ("stability",)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def point_table(points: Mapping[str, Measured], more: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Operating points, one a line.

    Args:
        points: what each did, by the name to show; all on the same data.
        more: further columns: title -> name -> cell.
    """
    more = more or {}
    metric = next((told.metric for told in points.values()), None)
    if timed := {name: f"{told.expected_ms:.2f}" for name, told in points.items() if told.expected_ms is not None}:
        more = {"ms a sample": timed, **more}
    rows = []
    for name, told in points.items():
        score = told.agreement if told.score is None else told.score
        shown = "" if score is None else f"{score:.4f}"
        layers = f"{told.mean_exit:.2f} of {told.depth}"
        rows.append([name, shown, layers, f"{told.saving:.0%}", *(cells[name] for cells in more.values())])
    return table(["operating point", metric or "agreement", "mean exit", "layers saved", *more], rows)


def scores_text(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, cost: CostTable | None = None
) -> str:
    """Scores of every exit, where there are labels, and of operating points, on one trace."""
    parts = []
    if trace.labels is not None:
        shown = [[f"{score:.4f}" for score in layerwise(trace, metric)]]
        head = [f"layer {layer}" for layer in trace.layer_numbers]
        parts.append(f"{metric_for(trace, metric)[0]} of every exit, on {len(trace)} rows\n{table(head, shown)}")
    if points:
        parts.append(point_table(measure_all(trace, points, metric, cost)))
    return "\n\n".join(parts)


def scores_data(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, cost: CostTable | None = None
) -> dict[str, Any]:
    """What `scores_text` says, as data for JSON."""
    found = measure_all(trace, points, metric, cost)
    told = {name: {**asdict(value), "speedup": value.speedup, "saving": value.saving} for name, value in found.items()}
    return {
        "metric": metric_for(trace, metric)[0],
        "layers": trace.layer_numbers,
        "layerwise": layerwise(trace, metric) if trace.labels is not None else None,
        "points": {name: {**points[name].to_json(), "measured": value} for name, value in told.items()},
    }


def measure_all(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, cost: CostTable | None = None
) -> dict[str, Measured]:
    """What every operating point does on a trace."""
    return {name: measure(trace, point.policy, point.thresholds, metric, cost) for name, point in points.items()}


def point_text(point: OperatingPoint) -> str:
    """An operating point in words: where it leaves, what was asked for, what was measured, what is promised."""
    limits = ", ".join("never" if value == math.inf else f"{value:.4g}" for value in point.thresholds)
    parameters = "".join(f" {key}={value}" for key, value in summarize(point.policy).items() if key != "name")
    asked = ", ".join(f"{key} {value:g}" for key, value in point.target.items()) or "set by hand"
    lines = [f"{point.policy['name']}{parameters}, thresholds {limits} ({asked})"]
    told = point.measured
    if told is not None:
        score = "" if told.score is None else f"{told.metric} {told.score:.4f} (full model {told.full_score:.4f}), "
        where = ", ".join(f"{key} {told.about[key]}" for key in told.about if key not in ("weights", "timed"))
        lines.append(f"  {score}mean exit {told.mean_exit:.2f} of {told.depth} on {told.rows} rows ({where})")
        if told.expected_ms is not None:
            lines.append(f"  {told.expected_ms:.2f} ms a sample expected ({told.about.get('timed', 'unknown')})")
    if point.certificate is not None:
        lines.append(f"  {point.certificate.words()}")
    return "\n".join(lines)


def usual_curves(trace: Trace, metric: str | None = None) -> dict[str, Curve]:
    """The curves of the best-known policies."""
    names = REGRESSION_POLICIES if trace.problem_type == REGRESSION else CLASSIFICATION_POLICIES
    return {name: curve(trace, load_policy(name), metric) for name in names}


def draw_curves(
    trace: Trace,
    lines: Mapping[str, Curve | BootstrapCurve],
    points: Mapping[str, OperatingPoint],
    path: str | os.PathLike[str],
    title: str,
    metric: str | None = None,
    score_name: str | None = None,
) -> None:
    """Draw score against mean exit layer: a line for each policy, a mark for each operating point.

    Args:
        trace: with labels; not the one on which the points were chosen.
        lines: by policy; a band's intervals are shaded.
        points: marks, measured on `trace`.
        path: .png, .svg or .pdf.
        title: over the picture.
        metric: a name of `offramp.evaluation.metrics.METRICS`.
        score_name: beside the picture; None = the metric's name.

    Raises:
        InvalidInput: matplotlib is not installed, or does not write such a file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInput("drawing needs matplotlib: pip install 'offramp[demo]'") from None
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, seen) in enumerate(lines.items()):
        color = f"C{number % 10}"
        axes.plot(seen.mean_exits, seen.scores, label=name, linewidth=1.6, color=color)
        if isinstance(seen, BootstrapCurve):
            axes.fill_between(seen.mean_exits, seen.low, seen.high, color=color, alpha=0.07, linewidth=0)
    axes.plot(
        trace.layer_numbers,
        layerwise(trace, metric),
        "o",
        color="0.6",
        markersize=4,
        label="everybody at one exit",
    )
    for name, told in measure_all(trace, points, metric).items():
        place = (told.mean_exit, float(told.score or 0))
        axes.plot(*place, "*", color="black", markersize=11)
        axes.annotate(name, place, textcoords="offset points", xytext=(6, -13))
    axes.margins(x=0.08)  # room for the names
    axes.set_xlabel(f"mean exit layer (of {trace.layer_numbers[-1]})")
    axes.set_ylabel(score_name or metric_for(trace, metric)[0])
    axes.set_title(title)
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside right upper")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise InvalidInput(f"{os.fspath(path)}: {error}") from None
