"""The page of `serving_race.py`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from machine import as_lines

TARGETS = {"clinc150": 1.5, "sst2": 1.5, "mpnet-clinc150": 2.5, "mpnet-sst2": 2.5}
INTRODUCTION = """# Requests a second at equal 99th percentile

`offramp serve` at its default point against LitServe and FastAPI on uvicorn around the full-depth model that is the
fastest on this machine, and (where measured) against itself at full depth. One text a request, answered at `/predict`
in the same JSON; a client in a process of its own, over loopback, on the same cores; Poisson arrivals, and a time
counts from the moment at which its request was due. *p99*: the highest rate at which the 99th percentile stays within
the bound; median of the rounds, lowest and highest in brackets. *Saturation*: as many as are answered to 32
connections that always ask. *Accuracy*: of the answers served, on the texts that race, which chose no threshold.
*Cores*: that were busy during the steps: of the server, of the client, of anything else on the machine."""


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [INTRODUCTION, "", "| task | against | p99 within | target | measured |", "|---|---|---|---|---|"]
    for task, figures in results["tasks"].items():
        for rival, ratios in figures["ratios"].items():
            for bound, ratio in ratios.items():
                measured = f"{rival} has no rate within it" if ratio is None else f"{ratio:.2f}"
                lines.append(f"| {task} | {rival} | {bound} ms | {TARGETS[task]} | {measured} |")
    for task, figures in results["tasks"].items():
        lines += ["", f"## {task}", "", as_lines(figures["about"]), "", *_table(figures), "", *_settings(figures)]
    return "\n".join(lines) + "\n"


def _table(figures: dict[str, Any]) -> list[str]:
    bounds = list(next(iter(figures["servers"].values()))["limits"])
    named = " | ".join(f"p99 <= {bound} ms" for bound in bounds)
    lines = [f"{figures['texts']} texts.", "", f"| server | accuracy | {named} | saturation | cores |"]
    lines.append("|---" * (len(bounds) + 4) + "|")
    for name, server in figures["servers"].items():
        limits = " | ".join(_spread(server["limits"][bound]) for bound in bounds)
        cores = ", ".join(f"{kind} {value:.2f}" for kind, value in server["cores"].items())
        lines.append(f"| {name} | {server['accuracy']:.3f} | {limits} | {_spread(server['saturated'])} | {cores} |")
    return lines


def _settings(figures: dict[str, Any]) -> list[str]:
    lines = ["Full-depth models, texts a second on two cores:", "", "| model | batch 1 | batch 8 |", "|---|---|---|"]
    small, large = figures["full_depth"].values()
    lines += [f"| {name} | {small[name]:.0f} | {large[name]:.0f} |" for name in small]
    lines += [
        "",
        "Settings, requests a second in the trial (geometric mean with 8 and 32 connections that always ask):",
        "",
        "| server | setting | model | a second |",
    ]
    lines.append("|---|---|---|---|")
    for name, server in figures["servers"].items():
        for speed, (kind, options) in server["tried"]:
            chosen = " (chosen)" if [kind, options] == server["setting"] else ""
            lines.append(f"| {name} | `{options}`{chosen} | {figures['models'].get(kind, 'its own')} | {speed:.0f} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"
