"""Reliability diagrams, one for each exit, small enough to stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from offramp.evaluation.reliability import Reliability
from offramp.report.html.chart_style import LINE, MUTED, SERIES, to_spec
from offramp.report.html.content import FEW_ANSWERS
from offramp.types.exit_names import exit_title

AS_IT_IS, TEMPERED = "as it is", "with its temperature"
FAINT = 0.3
HEIGHT = 130


def reliability_charts(exits: Sequence[Reliability], tempered: Sequence[Reliability]) -> dict[str, dict[str, Any]]:
    """Return a chart for each exit by its name in `data-chart`; all have the same axes and sizes of marks.

    Args:
        exits: of a page.
        tempered: of those exits that have a temperature.
    """
    scaled = {one.layer: one for one in tempered}
    kinds = {
        one.layer: {AS_IT_IS: one, **({TEMPERED: scaled[one.layer]} if one.layer in scaled else {})} for one in exits
    }
    least = min((one.bins[0].confidence for one in (*exits, *tempered)), default=0.0)
    start = 0.5 if least >= 0.5 else 0.0  # of two choices the likelier one has at least a half
    most = max((mark.answers for one in (*exits, *tempered) for mark in one.bins), default=1)
    return {f"reliability-{layer}": _chart(layer, kind, start, most) for layer, kind in kinds.items()}


def _chart(layer: int, kinds: dict[str, Reliability], start: float, most: int) -> dict[str, Any]:
    rows = [
        {
            **{"what": what, "answers": mark.answers, "few": mark.answers < FEW_ANSWERS},
            **{"confidence": round(mark.confidence, 4), "right": round(mark.right, 4)},
            **{"low": round(mark.interval[0], 4), "high": round(mark.interval[1], 4)},
        }
        for what, one in kinds.items()
        for mark in one.bins
    ]
    across = alt.X(
        "confidence:Q",
        title=None,
        scale=alt.Scale(domain=[start, 1], nice=False),
        axis=alt.Axis(values=[start, (start + 1) / 2, 1], format=".2~f", grid=False, labelFlush=False),
    )
    axis = alt.Axis(values=[0, 0.5, 1], format=".1~f", gridColor=LINE)
    up = alt.Y("right:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=axis)
    colour = alt.Color("what:N", legend=None, scale=alt.Scale(domain=[AS_IT_IS, TEMPERED], range=list(SERIES[:2])))
    ends = [{"confidence": start, "right": start}, {"confidence": 1, "right": 1}]
    exact = alt.Chart(alt.Data(values=ends)).mark_line(color=MUTED, strokeDash=[4, 3], strokeWidth=1)
    strength = alt.condition("datum.few", alt.value(FAINT), alt.value(1.0))
    hover = [
        *(alt.Tooltip("what:N", title=" "), alt.Tooltip("answers:Q")),
        *(alt.Tooltip("confidence:Q", format=".3f"), alt.Tooltip("right:Q", format=".3f")),
        *(alt.Tooltip("low:Q", format=".3f", title="95% from"), alt.Tooltip("high:Q", format=".3f", title="to")),
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(across, colour, opacity=strength, tooltip=hover)
    spans = base.mark_rule(strokeWidth=1.5).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    size = alt.Size("answers:Q", legend=None, scale=alt.Scale(domain=[0, most], range=[12, 150]))
    marks = base.mark_circle().encode(up, size)
    title = f"share of right answers by confidence, exit {exit_title(layer)}; dashed: exact confidence"
    return to_spec(alt.layer(exact.encode(across, up), spans, marks), HEIGHT, title)
