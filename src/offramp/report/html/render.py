"""The page as one HTML file that loads nothing: template, style, charts, and what draws them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from offramp.errors import InvalidInput
from offramp.evaluation.slices import Slice
from offramp.report.comparison import comparison_data
from offramp.report.html.content import Page
from offramp.report.html.verdict import percent

MOST_SLICES = 12
"""So many labels are shown, those that lose most."""
FEW = 10
"""A slice of fewer rows is never called the worst."""


def render(page: Page) -> str:
    """HTML.

    Raises:
        InvalidInput: what draws charts is not installed.
    """
    script = vega()
    from offramp.report.html.charts import CONFIG, charts

    folder = resources.files("offramp.report.html")
    style, template = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.html"))
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"percent": percent, "code": code}
    return jinja.from_string(template).render(
        page=page,
        told=comparison_data(page.comparison),
        slices={by: worst_first(slices) if by == "label" else list(slices) for by, slices in page.slices.items()},
        worst={by: worst(slices) for by, slices in page.slices.items()},
        style=style,
        vega=script,
        charts=in_script({"config": CONFIG, "charts": charts(page)}),
    )


def code(text: str) -> Markup:
    """HTML of a text in which `backticks` mark what is typed."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts)
    )


def lost(each: Slice) -> float:
    """The full model's score minus the early one."""
    return (each.full_score or 0.0) - (each.score or 0.0)


def worst_first(slices: Sequence[Slice]) -> list[Slice]:
    """The MOST_SLICES that lose most."""
    return sorted(slices, key=lost, reverse=True)[:MOST_SLICES]


def worst(slices: Sequence[Slice]) -> Slice | None:
    """The slice of at least FEW rows that loses most; None where none loses."""
    top = max((each for each in slices if each.rows >= FEW), key=lost, default=None)
    return top if top is not None and lost(top) > 0 else None


def vega() -> str:
    """The JavaScript that draws Vega-Lite charts, in one piece.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        from altair import SCHEMA_VERSION
        from vl_convert import javascript_bundle
    except ImportError:
        raise InvalidInput("the page needs altair and vl-convert-python: pip install 'offramp[report]'") from None
    major, minor, *_ = SCHEMA_VERSION.lstrip("v").split(".")
    bundle: str = javascript_bundle(vl_version=f"{major}.{minor}")  # type: ignore[call-arg]  # its stub lacks a default
    return bundle.replace("</script", "<\\/script")


def in_script(data: Any) -> str:
    """JSON that can stand in a script element: no character of it is HTML's.

    Raises:
        ValueError: a number that is not finite, for which JSON has no word.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
