"""The pictures of docs/scaling.md."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs_pictures import BLUE, GREEN, PURPLE, RED, save, styled
from scaling_page import POINTS

PICTURED = {
    "full depth, autoscaler": RED,
    "full depth, fixed for the bursts": PURPLE,
    "default point, autoscaler": GREEN,
    "ladder, autoscaler": BLUE,
}


def draw_jobs(state: dict[str, Any]) -> None:
    """Draw rows a second against workers: simulated, and the bounds as dotted lines."""
    matplotlib.rcParams.update({"svg.hashsalt": "offramp", "font.size": 11})
    figure = Figure(figsize=(4.6, 6.0), layout="constrained")
    for axes, (point, found) in zip(figure.subplots(2, sharex=True), state["points"].items(), strict=True):
        for (name, curve), color in zip(found["curves"].items(), (PURPLE, BLUE, GREEN, RED), strict=True):
            _curve(axes, curve, color, name)
        workers = [run["workers"] for run in next(iter(found["curves"].values()))]
        axes.plot(workers, [count * found["plain"] for count in workers], color="lightgray", zorder=0)
        axes.set_title(f"{POINTS[point]}, {found['plain']:,.0f} rows/s on one core", fontsize=11, loc="left")
        axes.set_xscale("log")
        axes.set_yscale("log")
        styled(axes, "", "rows a second")
    axes.set_xlabel("workers")
    axes.set_xticks((1, 10, 100, 1000), ("1", "10", "100", "1,000"))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", frameon=False, handlelength=1)
    save(figure, "scaling")


def _curve(axes: Axes, curve: list[dict[str, Any]], color: str, name: str) -> None:
    workers = [run["workers"] for run in curve]
    axes.plot(workers, [run["rate"] for run in curve], color=color, linewidth=2, label=name)
    axes.plot(workers, [run["bound"] for run in curve], color="black", linewidth=1, linestyle=":", zorder=3)


def draw_day(state: dict[str, Any]) -> None:
    """Draw the first day of SST-2: replicas over the day, and what happens after the beginning of a burst."""
    systems = state["cells"].get("sst2", {})
    if not all(name in systems for name in PICTURED):
        return
    matplotlib.rcParams.update({"svg.hashsalt": "offramp", "font.size": 11})
    figure = Figure(figsize=(4.6, 7.2), layout="constrained")
    day, late, below = figure.subplots(3)
    for name, color in PICTURED.items():
        found = systems[name]["0"]
        hours = [24 * number / len(found["day"]["rate"]) for number in range(len(found["day"]["rate"]))]
        day.step(hours, found["day"]["replicas"], color=color, linewidth=1.5, label=name)
        burst = found["burst"]
        late.plot(burst["seconds"], [100 * share for share in burst["late_100"]], color=color, linewidth=1.5)
        below.plot(burst["seconds"], [100 * share for share in burst["below_full"]], color=color, linewidth=1.5)
    day.set_ylim(bottom=0)
    day.set_xticks(range(0, 25, 6))
    styled(day, "hour of the day", "replicas")
    styled(late, "", "later than 100 ms, %")
    styled(below, "seconds after a burst begins", "below full depth, %")
    for axes in (late, below):
        axes.set_ylim(-3, 103)
        axes.axvline(0, color="lightgray", linewidth=1, zorder=0)
    figure.legend(*day.get_legend_handles_labels(), loc="outside upper center", ncols=1, frameon=False, handlelength=1)
    save(figure, "serve_day")
