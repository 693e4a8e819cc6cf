"""The page's charts as Vega-Lite specifications. Colours are variables of the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from torch import Tensor

from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.model.token_similarity import TokenSimilarity
from offramp.report.html.chart_style import INK, MUTED, SERIES, layer_axis, to_spec
from offramp.report.html.content import Page
from offramp.report.html.exits import ExitRow
from offramp.report.html.reliability_charts import reliability_charts
from offramp.report.html.times import TimeRow, time_rows
from offramp.types.exit_names import exit_time, mean_exit_title
from offramp.types.operating_point import Measured

MAX_CURVE_POINTS = 90
"""Points of a curve that are drawn."""
MAX_MARK_LABELS = 4
"""With more marks than this, the saved points' names are in tooltips only."""


def charts(page: Page) -> dict[str, dict[str, Any]]:
    """Return the charts by the name in their `data-chart` attribute."""
    specs = {
        "curves": curves(page),
        "layerwise": layerwise(page.exits, page.metric),
        "histogram": histogram(page.exits),
    }
    if page.exits[0].confidence is not None:
        specs["confidence"] = confidence(page.exits)
    if not isinstance(page.similarity, str):
        specs["similarity"] = similarity(page.similarity)
    if page.times is not None:
        specs["times"] = times(time_rows(page.times))
    return specs | reliability_charts(page.reliability, page.tempered)


def curves(page: Page) -> dict[str, Any]:
    """Draw score against mean exit layer: policies and oracle as lines, saved points and single exits as marks."""
    comparison, layers = page.comparison, page.comparison.trace.layer_numbers
    names = [name for name in comparison.bands if name != "fixed"]  # "fixed" is drawn as the single exits
    chosen = alt.selection_point(name="chosen", fields=["policy"], bind="legend", value=[{"policy": page.policy_name}])
    scale = alt.Scale(domain=[layers[0], layers[-1]], nice=False)
    across = alt.X("mean_exit:Q", title=mean_exit_title(layers), scale=scale, axis=alt.Axis(values=layers, format="d"))
    up = alt.Y("score:Q", title=comparison.metric, scale=alt.Scale(zero=False))
    rows = {name: curve_rows(name, comparison.bands[name], page.ms.get(name)) for name in names}
    lines = _lines(rows, across, up, chosen, comparison.metric)
    single = [
        {"mean_exit": layer, "score": score, "what": f"everybody leaves {exit_time(layer)}"}
        for layer, score in zip(layers, page.layerwise, strict=True)
    ]
    marks = _marks(page.marks)
    overlays = [_plain(single, across, up).mark_point(shape="square", color=MUTED, size=45, strokeWidth=1.5)]
    if comparison.oracle is not None:
        overlays += _oracle(comparison.oracle.mean_exits, comparison.oracle.scores, across, up)
    if marks:
        points = _plain(marks, across, up)
        overlays.append(points.mark_point(shape="diamond", size=130, filled=True, color=INK, opacity=1))
        overlays.append(points.mark_text(dx=9, dy=12, align="left", color=INK, fontSize=12).encode(text="label:N"))
    description = f"{comparison.metric} against mean exit layer: {', '.join(names)}; the table below has the numbers"
    return to_spec(alt.layer(*lines, *overlays).add_params(chosen), 380, description)


def _marks(points: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Return the marks of saved points; points with equal measurements share one mark."""
    names_at: dict[tuple[float, float | None], list[str]] = {}
    for name, measured in points.items():
        names_at.setdefault((measured.mean_exit, measured.score), []).append(name)
    marks = []
    for (mean_exit, score), names in names_at.items():
        label = ", ".join(names) if len(names_at) <= MAX_MARK_LABELS else ""
        marks.append({"mean_exit": mean_exit, "score": score, "label": label, "what": f"saved: {', '.join(names)}"})
    return marks


def _lines(
    rows: Mapping[str, list[dict[str, Any]]], across: alt.X, up: alt.Y, chosen: alt.Parameter, metric: str
) -> list[alt.Chart]:
    """Draw a line and a 95% band for each policy, with a tooltip at each point."""
    values = [point for points in rows.values() for point in points]
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


def curve_rows(policy: str, band: BootstrapCurve, ms: Tensor | None = None) -> list[dict[str, Any]]:
    """Return about MAX_CURVE_POINTS of a curve's K points, evenly over the mean exits, with both ends; ms: (K,)."""
    exits = band.mean_exits.tolist()  # they fall
    step = (exits[0] - exits[-1]) / MAX_CURVE_POINTS
    rows: list[dict[str, Any]] = []
    for number, mean_exit in enumerate(exits):
        if 0 < number < len(exits) - 1 and rows[-1]["mean_exit"] - mean_exit < step:
            continue
        score, low, high = (round(values[number].item(), 4) for values in (band.scores, band.low, band.high))
        point = {"mean_exit": round(mean_exit, 4), "score": score, "low": low, "high": high}
        time = {} if ms is None else {"ms": round(ms[number].item(), 3)}
        rows.append({"policy": policy, "threshold": _threshold(band.thresholds[number].item()), **point, **time})
    return rows


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
    """Draw the score of every exit where all rows leave there."""
    rows = [{"layer": row.layer, "score": row.score} for row in exits]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=60, color=SERIES[0]), color=SERIES[0], strokeWidth=2)
        .encode(
            layer_axis(),
            alt.Y("score:Q", title=metric, scale=alt.Scale(zero=False)),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("score:Q", format=".4f")],
        )
    )
    return to_spec(chart, 220, f"{metric} of every exit, if everybody left there")


def histogram(exits: Sequence[ExitRow]) -> dict[str, Any]:
    """Draw the share of rows that leave at each exit."""
    total = sum(row.leaving for row in exits)
    rows = [{"layer": row.layer, "share": row.leaving / total, "rows": row.leaving} for row in exits]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=SERIES[0])
        .encode(
            layer_axis(),
            alt.Y("share:Q", title="rows that leave here", axis=alt.Axis(format=".0%")),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("rows:Q"), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return to_spec(chart, 220, "share of the rows that leave at each exit")


def confidence(exits: Sequence[ExitRow]) -> dict[str, Any]:
    """Draw mean confidence and accuracy of every exit."""
    lines, spans = [], []
    for row in exits:
        assert row.confidence is not None  # not drawn for regression
        low, mean, high = row.confidence
        lines.append({"layer": row.layer, "what": "mean confidence", "value": mean})
        lines.append({"layer": row.layer, "what": "share that is right", "value": row.accuracy})
        spans.append({"layer": row.layer, "low": low, "high": high})
    span = (
        alt.Chart(alt.Data(values=spans))
        .mark_area(opacity=0.15, color=SERIES[0])
        .encode(layer_axis(), alt.Y("low:Q", title="probability"), alt.Y2("high:Q"))
    )
    line = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2)
        .encode(
            layer_axis(),
            alt.Y("value:Q", scale=alt.Scale(zero=False)),
            alt.Color("what:N", scale=alt.Scale(range=list(SERIES[:2])), legend=alt.Legend(columns=2)),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("what:N", title=" "), alt.Tooltip("value:Q", format=".3f")],
        )
    )
    return to_spec(alt.layer(span, line), 240, "mean confidence and share that is right, by layer")


def similarity(tokens: TokenSimilarity) -> dict[str, Any]:
    """Draw the mean similarity of the tokens of a text by layer, its spread over texts, and that between texts."""
    names = ["embedding", *map(str, range(1, len(tokens.within)))]
    outer = tokens.within.new_tensor([0.1, 0.9])
    spans, lines = [], []
    for name, within, between in zip(names, tokens.within, tokens.between.tolist(), strict=True):
        low, high = within.quantile(outer).tolist()
        spans.append({"layer": name, "low": round(low, 4), "high": round(high, 4)})
        lines.append({"layer": name, "what": "of one text", "value": round(within.mean().item(), 4)})
        if math.isfinite(between):
            lines.append({"layer": name, "what": "of two texts", "value": round(between, 4)})
    across = alt.X("layer:O", title="layer", sort=names, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    span = alt.Chart(alt.Data(values=spans)).mark_area(opacity=0.15, color=SERIES[0])
    span = span.encode(across, alt.Y("low:Q", title="cosine similarity"), alt.Y2("high:Q"))
    line = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2)
        .encode(
            across,
            alt.Y("value:Q"),
            alt.Color("what:N", scale=alt.Scale(range=list(SERIES[:2])), legend=alt.Legend(columns=2)),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("what:N", title=" "), alt.Tooltip("value:Q", format=".3f")],
        )
    )
    return to_spec(alt.layer(span, line), 240, "mean cosine similarity between tokens, by layer")


def times(rows: Sequence[TimeRow]) -> dict[str, Any]:
    """Draw expected and measured milliseconds a text."""
    values = [
        {"run": row.run, "ms": row.measured.median, "low": row.measured.low, "high": row.measured.high}
        | {"expected": row.expected}
        for row in rows
    ]
    hover = [
        *(alt.Tooltip("expected:Q", format=".3"), alt.Tooltip("ms:Q", format=".3", title="measured")),
        *(alt.Tooltip("low:Q", format=".3", title="least"), alt.Tooltip("high:Q", format=".3", title="largest")),
    ]
    up = alt.Y("run:N", title=None, sort=[row.run for row in rows], axis=alt.Axis(grid=True))
    base = alt.Chart(alt.Data(values=values)).encode(up, tooltip=hover)
    title = "milliseconds a text"
    spans = base.mark_rule(strokeWidth=2, color=SERIES[0]).encode(alt.X("low:Q", title=title), alt.X2("high:Q"))
    dots = base.mark_circle(size=70, color=SERIES[0], opacity=1).encode(alt.X("ms:Q", title=title))
    marks = base.mark_point(shape="diamond", size=150, color=INK, strokeWidth=1.5)
    across = alt.X("expected:Q", title=title, scale=alt.Scale(zero=True))
    return to_spec(alt.layer(spans, dots, marks.encode(across)), 100, "expected and measured milliseconds a text")
