"""Draw the pictures of the explanation pages, from the traces of twelve real layers.

    python benchmarks/docs_pictures.py

Reads `results/traces/mpnet-*.safetensors` (MPNet-base on CLINC150, SST-2 and SNLI). Writes `docs/pictures/*.svg` and,
with the figures behind them, `results/docs_pictures.json`. Seconds on one core; needs matplotlib (`[demo]`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

import offramp
from coverage import NO_PROMISE, Rows, search
from machine import provenance
from offramp.calibration.bounds import binomial
from offramp.calibration.certify import losses
from offramp.policies.fitting import halves

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
TASKS = {"clinc150": "CLINC150", "sst2": "SST-2", "snli": "SNLI"}
LEVELS = (0.01, 0.02, 0.05)
LOST = (0, 1, 2, 5, 10, 20)
DELTA = 0.05
DRAWS, DRAWN_ROWS, LEVEL = 500, 1000, 0.01
BLUE, RED, GREEN, PURPLE = "#1f6fb4", "#c8442c", "#2d8a4e", "#7a4fa3"


def trace_of(task: str) -> offramp.Trace:
    """Return the rows of a task that fitted nothing."""
    trace = offramp.Trace.load(RESULTS / "traces" / f"mpnet-{task}.safetensors")
    return trace if trace.fit_rows is None else trace.take(~trace.fit_rows)


def point_and_rows(task: str) -> tuple[offramp.OperatingPoint, offramp.Trace]:
    """Return a point that loses at most 1 % on a random half of the rows, and the other half, which reports."""
    chosen_on, reported = halves(trace_of(task))
    policy = offramp.load_policy("margin", **offramp.fit_lines("margin", chosen_on))
    return offramp.calibrate(chosen_on, policy, offramp.Target(max_drop=0.01)), reported


def save(figure: Figure, name: str) -> None:
    """Write a picture, the same bytes whenever the figures are the same."""
    FigureCanvasSVG(figure)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})


def styled(axes: Axes, x: str, y: str) -> None:
    """Label the axes and take the frame away at the top and on the right."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


# --- scores and thresholds --------------------------------------------------------------------------------------------


def examples(exit_layers: Tensor, layers: tuple[int, ...] = (0, 3, 5, 8)) -> list[int]:
    """Return the first row that leaves at each of some layers."""
    return [int((exit_layers == layer).nonzero()[0]) for layer in layers]


def draw_scores() -> dict[str, object]:
    """Draw four samples of SST-2: their margin at each exit up to the one where they leave, and the thresholds."""
    point, rows = point_and_rows("sst2")
    score = offramp.scores(offramp.load_policy(point.policy), rows)  # (L, N)
    answers = offramp.replay(rows, point.policy, point.thresholds)
    samples = examples(answers.exit_layers)
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes = figure.subplots()
    for exit, threshold in enumerate(point.thresholds):
        height = max(threshold, 0.0)
        label = "threshold" if exit == 0 else None
        axes.hlines(height, exit - 0.4, exit + 0.4, color="black", linewidth=2.5, label=label, zorder=3)
    for row, color, marker in zip(samples, (BLUE, GREEN, PURPLE, RED), "osD^", strict=True):
        last = int(answers.exit_layers[row])  # the exits are those of layers 0 to 12
        axes.plot(range(last + 1), score[: last + 1, row], color=color, linewidth=1.5)
        axes.plot(last, score[last, row], marker, color=color, markersize=9, label=f"leaves at {last}", zorder=4)
    styled(axes, "exit (0 = before the first layer)", "score: margin")
    axes.set_xticks(range(rows.depth))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, handlelength=1, columnspacing=1)
    save(figure, "scores")
    thresholds = ["always" if value == -math.inf else round(value, 4) for value in point.thresholds]
    paths = {int(answers.exit_layers[row]): [round(value, 4) for value in score[:, row].tolist()] for row in samples}
    return {"thresholds": thresholds, "samples": paths}


# --- exits ------------------------------------------------------------------------------------------------------------


def draw_exits() -> dict[str, object]:
    """Draw the share of the rows that leave at each exit, on three tasks, asked to lose at most 1 %."""
    figure = Figure(figsize=(4.6, 5.6), layout="constrained")
    figures: dict[str, object] = {}
    for axes, (task, title) in zip(figure.subplots(3, sharex=True), TASKS.items(), strict=True):
        point, rows = point_and_rows(task)
        answers = offramp.replay(rows, point.policy, point.thresholds)
        shares = torch.bincount(answers.exit_layers, minlength=rows.depth).double() / len(rows)
        accuracy = (rows.logits.argmax(dim=-1) == rows.labels).double().mean(dim=1)
        early = (answers.logits.argmax(dim=-1) == rows.labels).double().mean().item()
        layers, full = answers.exit_layers.double().mean().item(), accuracy[-1].item()
        axes.bar(range(rows.depth), shares, color=BLUE)
        axes.set_title(f"{title}: {layers:.1f} of 12 layers, {early:.3f} of {full:.3f}", fontsize=11, loc="left")
        styled(axes, "", "share")
        axes.set_ylim(0, 1)
        axes.set_xticks(range(rows.depth))
        figures[title] = {
            "rows": len(rows),
            "layers": round(layers, 4),
            "score": round(early, 4),
            "full_score": round(full, 4),
            "shares": [round(value, 4) for value in shares.tolist()],
            "accuracy": [round(value, 4) for value in accuracy.tolist()],
        }
    axes.set_xlabel("exit (0 = before the first layer)")
    save(figure, "exits")
    return figures


# --- certificates -----------------------------------------------------------------------------------------------------


def most_lost(rows: int, level: float) -> int:
    """Return the most losses among some rows with which a level can be certified; -1 if none can be."""
    return int((binomial(rows, level) <= DELTA).sum()) - 1


def rows_needed(level: float, lost: int) -> int:
    """Return the fewest rows on which a level can be certified with so many losses among them."""
    low, high = lost, 2  # too few; perhaps enough
    while most_lost(high, level) < lost:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if most_lost(middle, level) >= lost else (middle, high)
    return high


def draw_rows() -> dict[str, object]:
    """Draw the share of the rows that may be lost so that a level is certified, against the number of rows."""
    figure = Figure(figsize=(4.6, 3.3), layout="constrained")
    axes = figure.subplots()
    counts = torch.logspace(1.5, 4, 120).round().long().unique().tolist()
    for level, color in zip(LEVELS, (BLUE, GREEN, RED), strict=True):
        enough = [rows for rows in counts if most_lost(rows, level) >= 0]
        first = rows_needed(level, 0)
        shares = [100 * most_lost(rows, level) / rows for rows in (first, *enough)]
        axes.plot((first, *enough), shares, color=color, linewidth=2, label=f"{100 * level:.0f} %")
        axes.axhline(100 * level, color=color, linewidth=1, linestyle=":")
        axes.annotate(str(first), (first, 0), (0, -3), textcoords="offset points", ha="center", va="top", color=color)
    axes.set_xscale("log")
    axes.set_ylim(-0.6, 5.3)
    axes.set_xticks((100, 1000, 10000), ("100", "1,000", "10,000"))
    styled(axes, "rows that certify", "lost among them, at most, %")
    axes.legend(title="certified", loc="upper left", bbox_to_anchor=(0.0, 0.9), frameon=False)
    save(figure, "rows")
    return {f"{level:g}": {str(lost): rows_needed(level, lost) for lost in LOST} for level in LEVELS}


def draw_draws() -> dict[str, object]:
    """Draw the true risk of thresholds chosen on 500 draws of 1,000 rows of CLINC150, with a certificate and without.

    The rows are drawn with replacement, so the risk on all rows is the true one.
    """
    trace = trace_of("clinc150")
    loss, counted = losses(trace, trace.logits, "quality")
    rows = Rows(offramp.scores(offramp.load_policy("margin"), trace), loss, counted, torch.tensor(trace.layer_numbers))
    risks: dict[str, list[float]] = {NO_PROMISE: [], "binomial": []}
    exits: dict[str, list[float]] = {method: [] for method in risks}
    for seed in range(DRAWS):
        drawn = rows.take(torch.randint(len(trace), (DRAWN_ROWS,), generator=torch.Generator().manual_seed(seed)))
        for method, found in risks.items():
            threshold = search(drawn, method, LEVEL)
            found.append(rows.risk(threshold))
            exits[method].append(rows.mean_exit(threshold))
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    titles = ("loosest on the rows", "certified, 95 % confidence")
    for axes, title, values in zip(figure.subplots(2, sharex=True, sharey=True), titles, risks.values(), strict=True):
        percent = [100 * value for value in values]
        _, edges, bars = axes.hist(percent, bins=[number / 10 for number in range(26)], color=BLUE)
        for left, bar in zip(edges, bars, strict=False):
            bar.set_facecolor(RED if left >= 100 * LEVEL - 1e-9 else BLUE)
        axes.axvline(100 * LEVEL, color="black", linewidth=1.5)
        broken = sum(value > LEVEL for value in values) / DRAWS
        axes.set_title(f"{title}: {100 * broken:.0f} % are above 1 %", fontsize=11, loc="left")
        styled(axes, "", "draws")
    axes.set_xlabel("truly lost, % of all rows")
    save(figure, "draws")
    return {
        "without" if method == NO_PROMISE else "certified": {
            "broken": round(sum(value > LEVEL for value in values) / DRAWS, 4),
            "mean_risk": round(sum(values) / DRAWS, 5),
            "mean_exit": round(sum(exits[method]) / DRAWS, 3),
        }
        for method, values in risks.items()
    }


def main() -> None:
    """Draw all pictures and write their figures."""
    matplotlib.rcParams.update({"svg.hashsalt": "offramp", "font.size": 11})
    figures = {"scores": draw_scores(), "exits": draw_exits(), "rows": draw_rows(), "draws": draw_draws()}
    text = json.dumps({"about": provenance(), **figures}, indent=1)
    (RESULTS / "docs_pictures.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
