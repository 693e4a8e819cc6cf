"""Draw trade-off curves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

from offramp.errors import InvalidInput
from offramp.evaluation.bootstrap import BootstrapCurve
from offramp.evaluation.measure import measure_all
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.evaluation.sweep import Curve, curve
from offramp.policies.registry import load_policy
from offramp.types.exit_names import mean_exit_title
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace
from offramp.types.whole_file import whole_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSIFICATION_POLICIES = ("entropy", "margin", "pcee", "patience")
REGRESSION_POLICIES = ("stability",)
NAMES_BELOW = (-13, 8, -26, 22)
"""Heights of the names of points beside each other, in typographic points, so that they do not cover each other."""


def usual_curves(trace: Trace, metric: str | None = None) -> dict[str, Curve]:
    """Return the curves of the best-known policies."""
    names = REGRESSION_POLICIES if trace.problem_type == REGRESSION else CLASSIFICATION_POLICIES
    return {name: curve(trace, load_policy(name), metric) for name in names}


def draw_curves(
    trace: Trace,
    lines: Mapping[str, Curve | BootstrapCurve],
    points: Mapping[str, OperatingPoint],
    path: str | os.PathLike[str],
    title: str,
    metric: str | None = None,
    score_name: str | None = None,
) -> None:
    """Draw score against mean exit layer: a line for each policy, a star for each operating point.

    Args:
        trace: with labels; not the one on which the points were chosen.
        lines: curves by policy; a bootstrap curve gets its interval shaded.
        points: measured on `trace` and drawn as stars.
        path: .png, .svg or .pdf.
        title: above the plot.
        metric: a name of `offramp.evaluation.metrics.METRICS`.
        score_name: label of the vertical axis; None = the metric's name.

    Raises:
        InvalidInput: matplotlib is not installed or cannot write this kind of file.
    """
    figure = _new_figure()
    axes = figure.add_subplot()
    _draw_lines(axes, lines)
    layer_scores = layerwise(trace, metric)
    axes.plot(trace.layer_numbers, layer_scores, "o", color="0.6", markersize=4, label="everybody at one exit")
    by_exit = sorted(measure_all(trace, points, metric).items(), key=lambda item: item[1].mean_exit)
    for (name, measured), below in zip(by_exit, cycle(NAMES_BELOW), strict=False):
        position = (measured.mean_exit, float(measured.score or 0))
        axes.plot(*position, "*", color="black", markersize=11)
        axes.annotate(name, position, textcoords="offset points", xytext=(6, below))
    axes.margins(x=0.08)  # room for the names
    axes.set_xlabel(mean_exit_title(trace.layer_numbers))
    axes.set_ylabel(score_name or metric_for(trace, metric)[0])
    axes.set_title(title)
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside right upper")
    try:
        with whole_path(path) as unfinished:
            figure.savefig(unfinished, dpi=150)
    except ValueError as error:
        raise InvalidInput(f"{os.fspath(path)}: {error}") from None


def _new_figure() -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInput("drawing needs matplotlib: pip install 'offramp[demo]'") from None
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_lines(axes: Axes, lines: Mapping[str, Curve | BootstrapCurve]) -> None:
    for number, (name, line) in enumerate(lines.items()):
        color = f"C{number % 10}"
        axes.plot(line.mean_exits, line.scores, label=name, linewidth=1.6, color=color)
        if isinstance(line, BootstrapCurve):
            axes.fill_between(line.mean_exits, line.low, line.high, color=color, alpha=0.07, linewidth=0)
