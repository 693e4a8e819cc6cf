"""Comparisons of policies and slices as text and as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from offramp.errors import InvalidInput
from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.evaluation.compare import Comparison
from offramp.evaluation.curves import area, area_above, score_at
from offramp.evaluation.slices import Slice
from offramp.evaluation.sweep import Curve
from offramp.policies.registry import policy_to_dict, summarize
from offramp.report.tables import interval_text, table
from offramp.types.operating_point import rows_text

MAX_CLASSES = 12
"""Classes whose recall a table shows, those that lose most."""
SHARES = (1 / 4, 1 / 3, 1 / 2, 2 / 3)
"""Budgets at which policies are compared, as shares of the layers."""


def comparison_text(comparison: Comparison) -> str:
    """Return a line for each policy, in order of falling area, and one for the oracle."""
    low, high = comparison.limits
    data = comparison_data(comparison)
    lines = {**data["policies"], **({"oracle": data["oracle"]} if comparison.oracle else {})}
    rows = [
        [name, *(_cell(budget) for budget in line["budgets"]), "" if line["area"] is None else f"{line['area']:.4f}"]
        for name, line in lines.items()
    ]
    head = ["policy", *(f"{share:.0%} of layers" for share in SHARES), "area"]
    title = f"{comparison.metric} of every policy, on {rows_text(len(comparison.trace))} on which nothing was fitted"
    return f"{title} (95% intervals; area: mean score from mean exit {low:.2f} to {high:g})\n{table(head, rows)}"


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return the content of `comparison_text` and all points of the curves as data for JSON."""
    low, high = comparison.limits
    lines = {
        name: {
            "policy": summarize(policy_to_dict(comparison.policies[name])),
            **_line(comparison, band),
            "area_above_fixed": _area_above(band, comparison.bands["fixed"]),
        }
        for name, band in comparison.bands.items()
    }
    by_area = sorted(lines, key=lambda name: -(lines[name]["area"] or 0))
    return {
        "metric": comparison.metric,
        "rows": len(comparison.trace),
        "area_from": low,
        "area_to": high,
        "policies": {name: lines[name] for name in by_area},
        "oracle": None if comparison.oracle is None else _line(comparison, comparison.oracle),
    }


def _line(comparison: Comparison, curve: Curve | BootstrapCurve) -> dict[str, Any]:
    """Return a curve's scores at the budgets, its area and its points."""
    low, high = comparison.limits
    curves = {"score": curve.scores}
    if isinstance(curve, BootstrapCurve):
        curves |= {"low": curve.low, "high": curve.high}
    budgets = []
    for share in SHARES:
        mean_exit = share * high
        scores = {name: score_at(curve.mean_exits, values, mean_exit) for name, values in curves.items()}
        budgets.append({"share": share, "mean_exit": mean_exit, **scores})
    points = {name: _numbers(values) for name, values in vars(curve).items()}
    return {"budgets": budgets, "area": area(curve, low, high) if low < high else None, "points": points}


def _area_above(band: BootstrapCurve, other: BootstrapCurve) -> float | None:
    """Return `area_above`; None where one of the two never leaves the last exit."""
    try:
        return area_above(band, other)
    except InvalidInput:
        return None


def _cell(budget: dict[str, float | None]) -> str:
    if budget["score"] is None:
        return "-"
    low, high = budget.get("low"), budget.get("high")
    if low is None or high is None:
        return f"{budget['score']:.4f}"
    interval = interval_text((low, high))
    return f"{budget['score']:.4f} ({interval.replace(' to ', '-') if low >= 0 else interval})"


def _numbers(values: Tensor) -> list[float | str]:
    return ["never" if value == math.inf else value for value in values.tolist()]


def slices_text(slices: Sequence[Slice], by: str, metric: str) -> str:
    """Return a line for each slice; columns without any value are left out."""
    head = [by, "rows", metric, "full model", "lost", "lost, 95%", "mean exit", "before layer 1", "agreement"]
    rows = []
    for group in slices:
        loss = None if group.score is None or group.full_score is None else group.full_score - group.score
        values = (group.score, group.full_score, loss, group.agreement)
        *scores, agreement = ("" if value is None else f"{round(value, 4) + 0.0:.4f}" for value in values)
        interval = interval_text(group.loss_interval)
        share = "" if group.lexical_share is None else f"{group.lexical_share:.0%}"
        rows.append([group.name, str(group.rows), *scores, interval, f"{group.mean_exit:.2f}", share, agreement])
    filled = [number for number in range(len(head)) if any(row[number] for row in rows)]
    return table([head[number] for number in filled], [[row[number] for number in filled] for row in rows])


def recalls_text(point: str, recalls: Sequence[Slice]) -> str:
    """Return a table of the classes that lose most, MAX_CLASSES of them; the slices are worst first."""
    shown = recalls[:MAX_CLASSES]
    which = f", the {len(shown)} of {len(recalls)} that lose most" if len(shown) < len(recalls) else ""
    return f"recall by class at {point!r}, worst loss first{which}\n{slices_text(shown, 'class', 'recall')}"


def slices_data(slices: Sequence[Slice], by: str, point: str) -> dict[str, Any]:
    """Return slices as data for JSON."""
    return {"by": by, "point": point, "slices": [asdict(group) for group in slices]}
