"""The page's charts, as Vega-Lite: data in, a specification out. Colours are variables of the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from torch import Tensor

from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.report.html.content import Page
from offramp.report.html.exits import ExitRow
from offramp.types.operating_point import Measured

MOST_PLACES = 90
"""Places of a curve that are drawn."""
MOST_NAMES = 4
"""Saved points that are named in the picture."""
SERIES = tuple(f"var(--series-{number})" for number in range(1, 11))
INK, LINE, MUTED = "var(--ink)", "var(--line)", "var(--muted)"
CONFIG: dict[str, Any] = {  # of all charts, handed to what draws them
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


def charts(page: Page) -> dict[str, dict[str, Any]]:
    """The name of each chart's place in the page -> Vega-Lite."""
    found = {
        "curves": curves(page),
        "layerwise": layerwise(page.exits, page.metric),
        "histogram": histogram(page.exits),
    }
    if page.exits[0].confidence is not None:
        found["confidence"] = confidence(page.exits)
    return found


def curves(page: Page) -> dict[str, Any]:
    """Score against mean exit layer: a line for each policy, marks for the saved points, the oracle, single exits."""
    seen, layers = page.comparison, page.comparison.trace.layer_numbers
    names = [name for name in seen.bands if name != "fixed"]  # that one is the single exits
    chosen = alt.selection_point(name="chosen", fields=["policy"], bind="legend", value=[{"policy": page.policy}])
    scale = alt.Scale(domain=[layers[0], layers[-1]], nice=False)
    title = f"mean exit layer (of {layers[-1]})"
    across = alt.X("mean_exit:Q", title=title, scale=scale, axis=alt.Axis(values=layers, format="d"))
    up = alt.Y("score:Q", title=seen.metric, scale=alt.Scale(zero=False))
    rows = {name: places(name, seen.bands[name], page.ms.get(name)) for name in names}
    lines = _lines(rows, across, up, chosen, seen.metric)
    single = [
        {"mean_exit": layer, "score": score, "what": f"everybody at exit {layer}"}
        for layer, score in zip(layers, page.one_exit, strict=True)
    ]
    marks = _marks(page.marks)
    more = [_plain(single, across, up).mark_point(shape="square", color=MUTED, size=45, strokeWidth=1.5)]
    if seen.oracle is not None:
        more += _oracle(seen.oracle.mean_exits, seen.oracle.scores, across, up)
    if marks:
        points = _plain(marks, across, up)
        more.append(points.mark_point(shape="diamond", size=130, filled=True, color=INK, opacity=1))
        more.append(points.mark_text(dx=9, dy=12, align="left", color=INK, fontSize=12).encode(text="label:N"))
    words = f"{seen.metric} against mean exit layer: {', '.join(names)}; the table below has the numbers"
    return _finished(alt.layer(*lines, *more).add_params(chosen), 380, words)


def _marks(points: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """A mark for each place, since points may do the same; where there are many, names are seen on hovering alone."""
    there: dict[tuple[float, float | None], list[str]] = {}
    for name, told in points.items():
        there.setdefault((told.mean_exit, told.score), []).append(name)
    found = []
    for (mean_exit, score), names in there.items():
        label = ", ".join(names) if len(there) <= MOST_NAMES else ""
        found.append({"mean_exit": mean_exit, "score": score, "label": label, "what": f"saved: {', '.join(names)}"})
    return found


def _lines(
    rows: Mapping[str, list[dict[str, Any]]], across: alt.X, up: alt.Y, chosen: alt.Parameter, metric: str
) -> list[alt.Chart]:
    values = [place for places in rows.values() for place in places]
    colour = alt.Color(
        "policy:N",
        scale=alt.Scale(domain=list(rows), range=[SERIES[number % len(SERIES)] for number in range(len(rows))]),
    )
    near = alt.selection_point(name="near", on="pointerover", empty=False, clear="pointerout")
    hover = [
        *(alt.Tooltip("policy:N"), alt.Tooltip("threshold:N"), alt.Tooltip("score:Q", format=".4f")),
        *(alt.Tooltip("low:Q", format=".4f", title="95% from"), alt.Tooltip("high:Q", format=".4f", title="to")),
        alt.Tooltip("mean_exit:Q", format=".2f", title="mean exit"),
        *([alt.Tooltip("ms:Q", format=".3", title="ms a row")] if "ms" in values[0] else []),
    ]
    base = alt.Chart(alt.Data(values=values)).encode(across, colour)
    span = base.mark_area(opacity=0.18).encode(alt.Y("low:Q", title=metric), alt.Y2("high:Q"))
    width = alt.condition(chosen, alt.value(3.5), alt.value(1.5))
    shown = alt.condition(near, alt.value(0.6), alt.value(0))
    return [
        span.transform_filter(chosen),
        base.mark_line().encode(up, strokeWidth=width),
        base.mark_circle(size=220).encode(up, opacity=shown, tooltip=hover).add_params(near),
    ]


def places(policy: str, band: BootstrapCurve, ms: Tensor | None = None) -> list[dict[str, Any]]:
    """What is drawn of a curve: at most about MOST_PLACES of its thresholds, evenly over the mean exits; ms: (K,)."""
    exits = band.mean_exits.tolist()  # they fall
    step = (exits[0] - exits[-1]) / MOST_PLACES
    found: list[dict[str, Any]] = []
    for number, mean_exit in enumerate(exits):
        if 0 < number < len(exits) - 1 and found[-1]["mean_exit"] - mean_exit < step:
            continue
        score, low, high = (round(part[number].item(), 4) for part in (band.scores, band.low, band.high))
        place = {"mean_exit": round(mean_exit, 4), "score": score, "low": low, "high": high}
        time = {} if ms is None else {"ms": round(ms[number].item(), 3)}
        found.append({"policy": policy, "threshold": _threshold(band.thresholds[number].item()), **place, **time})
    return found


def _threshold(value: float) -> str:
    return "never" if value == math.inf else f"{value:.4g}"


def _plain(rows: Sequence[Mapping[str, Any]], across: alt.X, up: alt.Y) -> alt.Chart:
    hover = [
        *(alt.Tooltip("what:N", title=" "), alt.Tooltip("score:Q", format=".4f")),
        alt.Tooltip("mean_exit:Q", format=".2f", title="mean exit"),
    ]
    return alt.Chart(alt.Data(values=list(rows))).encode(across, up, tooltip=hover)


def _oracle(mean_exits: Tensor, scores: Tensor, across: alt.X, up: alt.Y) -> list[alt.Chart]:
    rows = [
        {"mean_exit": mean_exit, "score": score, "what": "oracle"}
        for mean_exit, score in zip(mean_exits.tolist(), scores.tolist(), strict=True)
    ]
    line = _plain(rows, across, up).mark_line(color=MUTED, strokeDash=[5, 4], strokeWidth=1.5)
    name = _plain(rows[:1], across, up).mark_text(text="oracle", align="right", dy=-8, color=MUTED, fontSize=12)
    return [line, name]


def layerwise(exits: Sequence[ExitRow], metric: str) -> dict[str, Any]:
    """The score of every exit, if everybody left there."""
    rows = [{"layer": each.layer, "score": each.score} for each in exits]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=60, color=SERIES[0]), color=SERIES[0], strokeWidth=2)
        .encode(
            _layer(),
            alt.Y("score:Q", title=metric, scale=alt.Scale(zero=False)),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("score:Q", format=".4f")],
        )
    )
    return _finished(chart, 220, f"{metric} of every exit, if everybody left there")


def histogram(exits: Sequence[ExitRow]) -> dict[str, Any]:
    """How many rows leave at each exit."""
    total = sum(each.leaving for each in exits)
    rows = [{"layer": each.layer, "share": each.leaving / total, "rows": each.leaving} for each in exits]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=SERIES[0])
        .encode(
            _layer(),
            alt.Y("share:Q", title="rows that leave here", axis=alt.Axis(format=".0%")),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("rows:Q"), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return _finished(chart, 220, "share of the rows that leave at each exit")


def confidence(exits: Sequence[ExitRow]) -> dict[str, Any]:
    """How sure each exit is, and how often it is right."""
    lines, spans = [], []
    for each in exits:
        assert each.confidence is not None  # not drawn for regression
        low, mean, high = each.confidence
        lines.append({"layer": each.layer, "what": "mean confidence", "value": mean})
        lines.append({"layer": each.layer, "what": "share that is right", "value": each.accuracy})
        spans.append({"layer": each.layer, "low": low, "high": high})
    span = (
        alt.Chart(alt.Data(values=spans))
        .mark_area(opacity=0.15, color=SERIES[0])
        .encode(_layer(), alt.Y("low:Q", title="probability"), alt.Y2("high:Q"))
    )
    line = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2)
        .encode(
            _layer(),
            alt.Y("value:Q", scale=alt.Scale(zero=False)),
            alt.Color("what:N", scale=alt.Scale(range=list(SERIES[:2])), legend=alt.Legend(columns=2)),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("what:N", title=" "), alt.Tooltip("value:Q", format=".3f")],
        )
    )
    return _finished(alt.layer(span, line), 240, "mean confidence and share that is right, by layer")


def _layer() -> alt.X:
    return alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))


def _finished(chart: alt.Chart | alt.LayerChart, height: int, description: str) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=height, description=description).to_dict()
    del spec["$schema"]  # an address, and the page names none
    return spec
