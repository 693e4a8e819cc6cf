"""Operating points and scores as text and data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.evaluation.measure import measure_all
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.policies.registry import summarize
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Measured, OperatingPoint
from offramp.types.trace import Trace


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
    told = {
        name: {**value.to_json(), "speedup": value.speedup, "saving": value.saving} for name, value in found.items()
    }
    return {
        "metric": metric_for(trace, metric)[0],
        "layers": trace.layer_numbers,
        "layerwise": layerwise(trace, metric) if trace.labels is not None else None,
        "points": {name: {**points[name].to_json(), "measured": value} for name, value in told.items()},
    }


def point_text(point: OperatingPoint) -> str:
    """An operating point in words: where it leaves, what was asked for, what was measured, what is promised."""
    limits = ", ".join("never" if value == math.inf else f"{value:.4g}" for value in point.thresholds)
    parameters = "".join(f" {key}={value}" for key, value in summarize(point.policy).items() if key != "name")
    asked = ", ".join(f"{key} {value:g}" for key, value in point.target.items()) or "set by hand"
    lines = [f"{point.policy['name']}{parameters}, thresholds {limits} ({asked})"]
    told = point.measured
    if told is not None:
        score = "" if told.score is None else f"{told.metric} {told.score:.4f} (full model {told.full_score:.4f}), "
        where = ", ".join(f"{key} {told.provenance[key]}" for key in told.provenance if key not in ("weights", "timed"))
        lines.append(f"  {score}mean exit {told.mean_exit:.2f} of {told.depth} on {told.rows} rows ({where})")
        if told.expected_ms is not None:
            lines.append(f"  {told.expected_ms:.2f} ms a sample expected ({told.provenance.get('timed', 'unknown')})")
    if point.certificate is not None:
        lines.append(f"  {point.certificate.describe()}")
    return "\n".join(lines)
