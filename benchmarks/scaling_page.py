"""The page of `scaling.py`, and the tables that it puts into docs/scaling.md."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any

from machine import as_lines

GUIDE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- tables of benchmarks/scaling.py -->", "<!-- end of these tables -->"
POINTS = {"full": "full depth", "default": "the default point"}
SHOWN = (1, 8, 64, 250, 1000)


def page(state: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    return f"# Batch jobs on many workers\n\n{as_lines(state['about'])}\n\n{tables(state).replace('### ', '## ')}\n"


def tables(state: dict[str, Any]) -> str:
    """Return the tables of the page and of the guide."""
    return "\n\n".join(["### Costs of one core", costs_table(state), *_points(state)])


def with_tables(guide: str, begin: str, end: str, text: str) -> str:
    """Return the guide with other tables between two marks."""
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return found.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", guide)


def costs_table(state: dict[str, Any]) -> str:
    """Return what was measured; with several rounds, the smallest and the largest in brackets."""
    measured = state["measured"]
    lines = ["| part | seconds | |", "|---|---|---|"]
    for name, found in measured["read"].items():
        lines.append(f"| reading a row of {name} | {_micro(found)} | {1 / median(found):,.0f} rows/s |")
    for point, found in measured["points"].items():
        rate = f"{1 / median(found['answer']):,.0f} rows/s"
        lines.append(f"| answering a row at {POINTS[point]} | {_micro(found['answer'])} | {rate} |")
    lines.append(f"| a row's line of JSON | {_micro(measured['points']['default']['json'])} | |")
    for rows, found in measured["ray"].items():
        name = f"Ray, a block of {int(rows):,} rows"
        clock = f"{1000 * median(found['clock']):.1f} ms by the clock with one actor"
        lines.append(f"| {name}: driver | {_milli(found['driver'])} | {clock} |")
        lines.append(f"| {name}: actor | {_milli(found['actor'])} | |")
        lines.append(f"| writing the lines of a block of {int(rows):,} rows | {_milli(measured['write'][rows])} | |")
    lines.append(f"| until an actor answers | {state['points']['default']['costs']['start']:.1f} s | |")
    return "\n".join(lines)


def _micro(found: list[float]) -> str:
    return _spread([1e6 * value for value in found], "µs")


def _milli(found: list[float]) -> str:
    return _spread([1e3 * value for value in found], "ms")


def _spread(found: list[float], unit: str) -> str:
    middle = f"{median(found):.2f} {unit}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.2f}-{max(found):.2f})"


def _points(state: dict[str, Any]) -> list[str]:
    lines = []
    for point, found in state["points"].items():
        lines += [f"### Jobs at {POINTS[point]}", curves_table(found), mishaps_table(found)]
    return lines


def curves_table(found: dict[str, Any]) -> str:
    """Return rows a second by workers, with the efficiency and the slowest part."""
    lines = ["| rows/s (efficiency; slowest part) | " + " | ".join(f"{count:,}" for count in SHOWN) + " workers |"]
    lines.append("|---" * (len(SHOWN) + 1) + "|")
    for name, curve in found["curves"].items():
        cells = [
            f"{run['rate']:,.0f} ({run['efficiency']:.0%}; {run['bottleneck']})"
            for run in curve
            if run["workers"] in SHOWN
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mishaps_table(found: dict[str, Any]) -> str:
    """Return the efficiency where things go wrong."""
    first = next(iter(found["mishaps"].values()))
    lines = ["| efficiency | " + " | ".join(f"{run['workers']:,}" for run in first) + " workers |"]
    lines.append("|---" * (len(first) + 1) + "|")
    for name, runs in found["mishaps"].items():
        cells = [f"{run['efficiency']:.0%}{_between(run)}" for run in runs]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _between(run: dict[str, Any]) -> str:
    plain = run["rate"] / run["efficiency"]
    shares = [rate / plain for rate in run["rates"]]
    return f" ({min(shares):.0%}-{max(shares):.0%})" if max(shares) - min(shares) >= 0.005 else ""
