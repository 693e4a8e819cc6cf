"""A comparison of policies, and slices, as text and as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.evaluation.compare import Comparison
from offramp.evaluation.curves import area, score_at
from offramp.evaluation.slices import Slice
from offramp.evaluation.sweep import Curve
from offramp.policies.registry import policy_to_dict, summarize
from offramp.report.tables import table

SHARES = (1 / 4, 1 / 3, 1 / 2, 2 / 3)
"""Of the layers: the budgets at which policies are told."""


def comparison_text(found: Comparison) -> str:
    """A line for each policy, the one with the largest area first, and one for the oracle."""
    low, high = found.limits
    lines = comparison_data(found)
    told = {**lines["policies"], **({"oracle": lines["oracle"]} if found.oracle else {})}
    rows = [
        [name, *(_cell(budget) for budget in line["budgets"]), "" if line["area"] is None else f"{line['area']:.4f}"]
        for name, line in told.items()
    ]
    head = ["policy", *(f"{share:.0%} of layers" for share in SHARES), "area"]
    about = f"{found.metric} of every policy, on {len(found.trace)} rows on which nothing was fitted"
    return f"{about} (95% intervals; area: mean score from mean exit {low:.2f} to {high:g})\n{table(head, rows)}"


def comparison_data(found: Comparison) -> dict[str, Any]:
    """What `comparison_text` says, and every point of every line, for JSON."""
    low, high = found.limits
    lines = {
        name: {"policy": summarize(policy_to_dict(found.policies[name])), **_line(found, band)}
        for name, band in found.bands.items()
    }
    by_area = sorted(lines, key=lambda name: -(lines[name]["area"] or 0))
    return {
        "metric": found.metric,
        "rows": len(found.trace),
        "area_from": low,
        "area_to": high,
        "policies": {name: lines[name] for name in by_area},
        "oracle": None if found.oracle is None else _line(found, found.oracle),
    }


def _line(found: Comparison, seen: Curve | BootstrapCurve) -> dict[str, Any]:
    """A curve at the budgets, its area, its points."""
    low, high = found.limits
    budgets = []
    for share in SHARES:
        mean_exit = share * high
        values = {"score": seen.scores} | (
            {"low": seen.low, "high": seen.high} if isinstance(seen, BootstrapCurve) else {}
        )
        told = {name: score_at(seen.mean_exits, each, mean_exit) for name, each in values.items()}
        budgets.append({"share": share, "mean_exit": mean_exit, **told})
    points = {name: _numbers(each) for name, each in vars(seen).items()}
    return {"budgets": budgets, "area": area(seen, low, high) if low < high else None, "points": points}


def _cell(budget: dict[str, float | None]) -> str:
    if budget["score"] is None:
        return "-"
    interval = f" ({budget['low']:.3f}-{budget['high']:.3f})" if "low" in budget else ""
    return f"{budget['score']:.4f}{interval}"


def _numbers(values: Tensor) -> list[float | str]:
    return ["never" if value == math.inf else value for value in values.tolist()]


def slices_text(slices: Sequence[Slice], by: str, metric: str) -> str:
    """A line for each slice."""
    head = [by, "rows", metric, "full model", "lost", "mean exit", "agreement"]
    rows = []
    for each in slices:
        lost = None if each.score is None or each.full_score is None else each.full_score - each.score
        scores = (each.score, each.full_score, lost, each.agreement)
        *told, agreement = ("" if value is None else f"{value:.4f}" for value in scores)
        rows.append([each.name, str(each.rows), *told, f"{each.mean_exit:.2f}", agreement])
    filled = [number for number in range(len(head)) if any(row[number] for row in rows)]
    return table([head[number] for number in filled], [[row[number] for number in filled] for row in rows])


def slices_data(slices: Sequence[Slice], by: str, point: str) -> dict[str, Any]:
    """What `slices_text` says, for JSON."""
    return {"by": by, "point": point, "slices": [asdict(each) for each in slices]}
