"""The page of `serve_day.py`, and the tables that it puts into docs/scaling.md."""

from __future__ import annotations

from statistics import median
from typing import Any

from machine import as_lines

BEGIN, END = "<!-- tables of benchmarks/serve_day.py -->", "<!-- end of these tables -->"
NAMES = {"sst2": "SST-2, MPNet-base (12 layers)", "clinc150": "CLINC150, MPNet-base"}
COLUMNS = {
    "replica-hours": ("hours", 1, ".0f"),
    "p50, ms": ("p50_ms", 1, ".0f"),
    "p99, ms": ("p99_ms", 1, ".0f"),
    "later than 50 ms, %": ("late_50", 100, ".2f"),
    "than 100 ms, %": ("late_100", 100, ".2f"),
    "in the first minute of bursts, %": ("late_100_in_first_minute_of_bursts", 100, ".1f"),
    "below full depth, %": ("below_full", 100, ".1f"),
    "other answers, %": ("differs", 100, ".2f"),
    "accuracy lost, points": ("lost", 100, ".2f"),
}


def page(state: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    return (
        f"# A day of a Ray Serve deployment\n\n{as_lines(state['about'])}\n\n{tables(state).replace('### ', '## ')}\n"
    )


def tables(state: dict[str, Any]) -> str:
    """Return the tables of the page and of the guide."""
    parts = []
    for name, systems in state["cells"].items():
        rate = f"{state['rates'][name]:.0f} rows a second on average without bursts"
        parts += [f"### {NAMES[name]}: {rate}", rungs_table(state["rungs"][name]), days_table(systems)]
    return "\n\n".join(parts)


def rungs_table(rungs: list[dict[str, Any]]) -> str:
    """Return what the rungs cost and lose on the rows that arrive."""
    lines = ["| rung | row alone, ms | of full cost | other answers | accuracy lost |", "|---|---|---|---|---|"]
    for rung in rungs:
        shares = f"{rung['cost']:.1%} | {rung['differs']:.2%} | {rung['lost']:.2%}"
        lines.append(f"| {rung['name']} | {rung['row_ms']:.1f} | {shares} |")
    return "\n".join(lines)


def days_table(systems: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return a line a system, medians of its days with the smallest and the largest."""
    lines = ["| system | days | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, days in systems.items():
        cells = [cell(list(days.values()), *column) for column in COLUMNS.values()]
        lines.append(f"| {name} | {len(days)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(days: list[dict[str, Any]], key: str, factor: float, form: str) -> str:
    """Return the median of some days; with several, the smallest and the largest in brackets."""
    if any(day[key] is None for day in days):
        return "some refused"
    found = [factor * day[key] for day in days]
    middle, low, high = (format(value, form) for value in (median(found), min(found), max(found)))
    return middle if low == high else f"{middle} ({low}-{high})"
