"""The style that all charts of the page share: colours, which are variables of the page's style, fonts and axes."""

from __future__ import annotations

from typing import Any

import altair as alt

SERIES = tuple(f"var(--series-{number})" for number in range(1, 11))
INK, LINE, MUTED = "var(--ink)", "var(--line)", "var(--muted)"
CONFIG: dict[str, Any] = {  # of all charts, an option of vegaEmbed
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": INK, "titleColor": INK, "gridColor": LINE, "domainColor": MUTED, "tickColor": MUTED},
        **{"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8},
    },
    "legend": {
        **{"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 3, "title": None},
        **{"orient": "bottom", "columns": {"expr": "max(2, floor(width / 110))"}, "unselectedOpacity": 0.75},
        "symbolOpacity": 1,
    },
}


def layer_axis() -> alt.X:
    """Return the axis of exits, by layer number."""
    return alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))


def to_spec(chart: alt.Chart | alt.LayerChart, height: int, description: str) -> dict[str, Any]:
    """Return a chart as a Vega-Lite specification as wide as its place on the page."""
    spec: dict[str, Any] = chart.properties(width="container", height=height, description=description).to_dict()
    del spec["$schema"]  # a URL; the page contains none
    return spec
