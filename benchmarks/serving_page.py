"""The page of `serving.py`, the figures that it puts into the guide, and the picture of a burst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from machine import as_lines

LADDER, FULL, FIXED = "ladder", "full depth", "certified point"
"""The servers."""
NAMES = {
    "clinc150": "CLINC150, MiniLM (6 layers)",
    "sst2": "SST-2, MiniLM",
    "mpnet-clinc150": "CLINC150, MPNet-base (12 layers)",
    "mpnet-sst2": "SST-2, MPNet-base",
}
TARGETS = {"clinc150": 2, "sst2": 2, "mpnet-clinc150": 3, "mpnet-sst2": 3}
"""Times the requests a second of full depth."""
PICTURED = ("sst2", "mpnet-clinc150")
BEGIN, END = "<!-- figures of benchmarks/serving.py -->", "<!-- end of these figures -->"
INTRODUCTION = """# What the ladder is worth

`offramp serve --ladder` against the same server at full depth (the same engine, in its best setting) and at the loosest
certified point of the ladder. One text a request, real texts that chose no threshold; a client in a process of its own,
over loopback, on the same cores; Poisson arrivals, and a time counts from the moment at which its request was due.
*Rate within a bound*: the highest at which the 99th percentile of {seconds:g} s stays within it, after {lead:g} s that
do not count; median of the rounds, lowest and highest in brackets. *Agreement*: of answers that came with those of full
depth; *accuracy*: with the labels. *Layers* and *points* are those of the server's own counters. The three servers run
side by side, and one of them is asked at a time. *Cores*: that were busy, of the server, the client, and all others."""


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    setting = results["setting"]
    lines = [INTRODUCTION.format(seconds=setting["seconds"], lead=setting["lead_s"]), ""]
    lines += [*rates_table(results), "", *burst_table(results)]
    for task, figures in results["tasks"].items():
        lines += ["", f"## {NAMES[task]}", "", as_lines(figures["about"]), "", *_task(figures, setting["rates"])]
    return "\n".join(lines) + "\n"


def rates_table(results: dict[str, Any]) -> list[str]:
    """Return the rates within the bounds, and their ratios."""
    lines = [
        "| | p99 within | ladder | full depth | certified point | ladder / full depth | target |",
        "|---" * 7 + "|",
    ]
    for task, figures in results["tasks"].items():
        for bound in figures["rounds"][FULL][0]["limits"] if all(figures["rounds"].values()) else ():
            limits = {name: [run["limits"][bound] for run in runs] for name, runs in figures["rounds"].items()}
            full = median(limits[FULL])
            ratio = f"{median(limits[LADDER]) / full:.1f}" if full else "full depth has no rate within it"
            cells = " | ".join(_spread(limits[name]) for name in (LADDER, FULL, FIXED))
            lines.append(f"| {NAMES[task]} | {bound} ms | {cells} | {ratio} | {TARGETS[task]} |")
    return lines


def burst_table(results: dict[str, Any]) -> list[str]:
    """Return what holds of the bursts."""
    head = ["", "base, burst (a second)", "server", "target", "p99 of the burst", "seconds of it within the target"]
    head += ["seconds after it within", "point without load is back after", "missed", "agreement before, in, after"]
    lines = _head(head)
    for task, figures in results["tasks"].items():
        for name, run in figures["burst"].items():
            claims, phases = run["claims"], run["phases"]
            kept, after = ("{} of {}".format(*claims[key]) for key in ("kept", "kept_after"))
            back = "never" if claims["back_s"] is None else f"{claims['back_s']:.1f} s"
            of_ladder = [back, ", ".join(claims["missed"]) or "nothing"] if name == LADDER else ["", ""]
            cells = [NAMES[task], f"{run['base']:.0f}, {results['setting']['times'] * run['base']:.0f}", name]
            cells += [f"{figures['target_ms']} ms", _ms(claims["p99_ms"]), kept, after, *of_ladder]
            cells.append(", ".join(_share(phase["agreement"]) for phase in phases))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _task(figures: dict[str, Any], rates: Sequence[float]) -> list[str]:
    tried = ", ".join(f"`{setting}` {speed:.0f}" for setting, speed in figures["tried"].items())
    head = ["times full depth's rate", "requests a second", "server", "p50", "p99", "layers", "agreement", "accuracy"]
    lines = [
        f"{figures['texts']} texts. Full depth runs with `{figures['setting']}`; of {tried} a second.",
        f"The certified point is {figures['fixed']}.",
        "",
        *_head([*head, "points", "cores"]),
    ]
    for number, share in enumerate(rates):
        for name, runs in figures["rates"].items():
            if number >= len(runs):
                continue
            run = runs[number]
            points = ", ".join(f"{point} {part:.0%}" for point, part in run["shares"].items() if part >= 0.005)
            cores = ", ".join(f"{run[f'{kind}_cores']:.2f}" for kind in ("server", "client", "other"))
            cells = [f"{share:g}", f"{run['rate']:.0f}", name, _ms(run["p50_ms"]), _ms(run["p99_ms"])]
            cells += [f"{run['layers']:.2f}", _share(run["agreement"]), _share(run["accuracy"]), points, cores]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def insert_figures(file: Path, results: dict[str, Any]) -> None:
    """Put the tables into a page, between the lines BEGIN and END."""
    before, _, behind = file.read_text().partition(BEGIN + "\n")
    after = behind.partition(END)[2]
    tables = "\n".join(["", *rates_table(results), "", *burst_table(results), ""])
    file.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the bursts of PICTURED as far as they are measured."""
    tasks = [task for task in PICTURED if len(results["tasks"].get(task, {}).get("burst", ())) == 2]
    if not tasks:
        return
    figure = Figure(figsize=(4.9 * len(tasks), 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(5, len(tasks), sharex="col", squeeze=False, height_ratios=(2, 3, 2, 2, 2))
    for column, task in enumerate(tasks):
        _draw_burst(columns[:, column], results["tasks"][task], results["setting"])
        columns[0, column].set_title(NAMES[task], fontsize=10)
    labels = ("requests a second", "p99, ms", "point in force", "layers", "agreement")
    for axes, label in zip(columns[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    figure.savefig(file, dpi=95)


def _draw_burst(rows: Sequence[Axes], figures: dict[str, Any], setting: dict[str, Any]) -> None:
    arrivals, times, points, layers, agreement = rows
    own, full = (figures["burst"][name] for name in (LADDER, FULL))
    middle = [second["start"] + 0.5 for second in own["seconds"]]
    arrivals.bar(middle, [second["requests"] for second in own["seconds"]], width=0.85, color="0.6")
    for run, color, label in ((full, "0.5", "full depth"), (own, "C0", "ladder")):
        p99 = [second["p99_ms"] or float("nan") for second in run["seconds"]]
        times.plot(middle, p99, ".-", color=color, label=label, linewidth=1.6)
    times.axhline(figures["target_ms"], color="C3", linestyle="--", linewidth=1, label="target")
    times.set_yscale("log")
    times.legend(frameon=False, fontsize=9)
    names = figures["ladder"]
    at = [look["at"] for look in own["looks"]]
    points.step(at, [names.index(look["point"]) for look in own["looks"]], where="post", color="C0", linewidth=1.6)
    points.set_yticks(range(len(names)), names, fontsize=9)
    points.set_ylim(len(names) - 0.5, -0.5)  # the strictest on top
    busy = [look for look in own["looks"] if look["layers"]]
    layers.plot([look["at"] for look in busy], [look["layers"] for look in busy], color="C0", linewidth=1.6)
    layers.set_ylim(0, None)
    agreement.plot(middle, [second["agreement"] for second in own["seconds"]], ".-", color="C0", linewidth=1.6)
    agreement.set_ylim(min(0.9, *(second["agreement"] or 1 for second in own["seconds"])) - 0.01, 1.005)
    agreement.set_xlabel("seconds")
    start, length, _ = setting["burst_s"]
    for axes in rows:
        axes.axvspan(start, start + length, color="C1", alpha=0.12, zorder=0)
        axes.set_xlim(0, sum(setting["burst_s"]))
        axes.grid(alpha=0.25)


def _head(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def _ms(value: float | None) -> str:
    return "some never came" if value is None else f"{value:.0f} ms"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
