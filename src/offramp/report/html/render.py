"""Render a page as one HTML file that loads nothing: template, style, charts, and the script that draws them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from offramp.errors import InvalidInput
from offramp.evaluation.metrics import BINS
from offramp.evaluation.slices import Slice
from offramp.report.comparison import MAX_CLASSES, comparison_data
from offramp.report.html.content import FEW_ANSWERS, Page
from offramp.report.html.times import gap_text, time_rows
from offramp.report.html.verdict import percent, points
from offramp.report.tables import speedup_text
from offramp.types.exit_names import LEXICAL
from offramp.types.problem_types import MULTI_LABEL

MIN_ROWS = 10
"""Rows that a slice needs to be marked as the worst."""


def render(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        InvalidInput: the packages that draw charts are not installed.
    """
    script = vega()
    from offramp.report.html.chart_style import CONFIG
    from offramp.report.html.charts import charts

    folder = resources.files("offramp.report.html")
    style, template = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.html"))
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"percent": percent, "points": points, "speedup": speedup_text, "code": code}
    return jinja.from_string(template).render(
        page=page,
        comparison=comparison_data(page.comparison),
        slices={by: worst_first(slices) if by == "label" else list(slices) for by, slices in page.slices.items()},
        worst={by: worst(slices) for by, slices in page.slices.items()},
        lexical=LEXICAL,
        bins=BINS,
        few=FEW_ANSWERS,
        several=MULTI_LABEL,
        time_rows=() if page.times is None else time_rows(page.times),
        gap="" if page.times is None else gap_text(page.times),
        style=style,
        vega=script,
        charts=script_json({"config": CONFIG, "charts": charts(page)}),
    )


def code(text: str) -> Markup:
    """Return a text as HTML, with <code> around what stands in `backticks`."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts)
    )


def loss(group: Slice) -> float:
    """Return the full model's score minus the early one."""
    return (group.full_score or 0.0) - (group.score or 0.0)


def worst_first(slices: Sequence[Slice]) -> list[Slice]:
    """Return the MAX_CLASSES with the largest loss."""
    return sorted(slices, key=loss, reverse=True)[:MAX_CLASSES]


def worst(slices: Sequence[Slice]) -> Slice | None:
    """Return the slice of at least MIN_ROWS with the largest loss; None where none has a loss above 0."""
    top = max((group for group in slices if group.rows >= MIN_ROWS), key=loss, default=None)
    return top if top is not None and loss(top) > 0 else None


def vega() -> str:
    """Return the JavaScript that draws Vega-Lite charts, as one bundle.

    Raises:
        InvalidInput: altair or vl-convert-python is not installed.
    """
    try:
        from altair import SCHEMA_VERSION
        from vl_convert import javascript_bundle
    except ImportError:
        raise InvalidInput("the page needs altair and vl-convert-python: pip install 'offramp[report]'") from None
    major, minor, *_ = SCHEMA_VERSION.lstrip("v").split(".")
    bundle: str = javascript_bundle(vl_version=f"{major}.{minor}")  # type: ignore[call-arg]  # its stub lacks a default
    return bundle.replace("</script", "<\\/script")


def script_json(data: Any) -> str:
    """Return JSON for a script element, with HTML's characters escaped.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
