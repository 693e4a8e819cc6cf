"""Operating points and scores as text and data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from offramp.evaluation.bootstrap import point_loss_interval
from offramp.evaluation.exit_values import ExitValue, exit_values
from offramp.evaluation.intervals import agreement_interval
from offramp.evaluation.measure import measure_all, measure_point
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.evaluation.summary import exit_score_summary, histogram
from offramp.policies.registry import summarize
from offramp.types.cost_table import CostTable
from offramp.types.exit_names import exit_title, layers_text
from offramp.types.operating_point import Measured, OperatingPoint, label_thresholds_text, rows_text, threshold_words
from offramp.types.trace import Trace


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return plain text columns, the first aligned to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def point_table(points: Mapping[str, Measured], more: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Return a table of operating points, one in a line, and a line on the unit of the speed-up, where costs are known.

    Args:
        points: measurements by the name to show, all on the same data.
        more: further columns: title -> name -> cell.
    """
    more = more or {}
    metric = next((measured.metric for measured in points.values()), None)
    times = {name: measured.expected_ms for name, measured in points.items() if measured.expected_ms is not None}
    if times:
        more = {"ms a sample": {name: f"{ms:.2f}" for name, ms in times.items()}, **more}
    units = {measured.speedup_of for measured in points.values()} - {"layers"}
    if units:
        more = {"speed-up": {name: speedup_text(measured.speedup) for name, measured in points.items()}, **more}
    rows = []
    for name, measured in points.items():
        score = measured.agreement if measured.score is None else measured.score
        score_cell = "" if score is None else f"{score:.4f}"
        layers = f"{measured.mean_exit:.2f} of {measured.depth}"
        rows.append([name, score_cell, layers, f"{measured.saving:.0%}", *(cells[name] for cells in more.values())])
    text = table(["operating point", metric or "agreement", "mean exit", "layers saved", *more], rows)
    return "\n".join([text, *(f"speed-up: {unit} at full depth over those at the point" for unit in sorted(units))])


def speedup_text(speedup: float) -> str:
    """Return a speed-up such as "2.95" or "414,726"; "-" where rows cost nothing that was counted."""
    if speedup == math.inf:
        return "-"
    return f"{speedup:.2f}" if speedup < 100 else f"{speedup:,.0f}"


def scores_text(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, cost: CostTable | None = None
) -> str:
    """Return the scores of every exit (needs labels) and of operating points on one trace, as text."""
    tables = []
    if trace.labels is not None:
        row = [f"{score:.4f}" for score in layerwise(trace, metric)]
        head = [exit_title(layer) for layer in trace.layer_numbers]
        labels = ", labels above 0.5" if any(point.label_thresholds for point in points.values()) else ""
        title = f"{metric_for(trace, metric)[0]} of every exit, on {rows_text(len(trace))}{labels}"
        summary = exit_score_summary(trace, metric)
        behind = "" if trace.layer_numbers[0] else "after a layer: "
        title += f"; {behind}average {summary.average:.4f}, best {summary.best:.4f}, deviation {summary.deviation:.4f}"
        tables.append(f"{title}\n{table(head, [row])}")
    if points:
        title = "agreement, 95%" if trace.labels is None else "lost, 95%"
        intervals = {name: _interval_text(trace, point, metric) for name, point in points.items()}
        more = before_first_layer(trace, points)
        if any(intervals.values()):
            more[title] = intervals
        tables.append(
            "\n".join([point_table(measure_all(trace, points, metric, cost), more), *_skipped(trace, points)])
        )
    if cost is not None:
        values = {name: exit_values(trace, point, cost) for name, point in points.items()}
        tables += [exit_values_text(name, some, cost) for name, some in values.items() if some]
    return "\n\n".join(tables)


def before_first_layer(trace: Trace, points: Mapping[str, OperatingPoint]) -> dict[str, dict[str, str]]:
    """Return a column for `point_table`, the share of the rows that leave at layer 0; {} where no point reads it."""
    layers = trace.layer_numbers
    if not any(0 in point.layers_read(layers) for point in points.values()):
        return {}
    shares = {name: histogram(trace, point)[0] / len(trace) for name, point in points.items()}
    return {"before layer 1": {name: f"{share:.0%}" for name, share in shares.items()}}


def exit_values_text(name: str, values: Sequence[ExitValue], cost: CostTable) -> str:
    """Return a table of what the exits of a point take and save, in milliseconds a row."""
    rows = [
        [
            exit_title(value.layer),
            f"{value.takes_ms:.4f}",
            "not read" if value.saves_ms is None else f"{value.saves_ms:.4f}",
        ]
        for value in values
    ]
    title = f"ms a row at each exit of {name} ({cost.describe()})"
    note = "takes: to read it, of a row that reaches it; saves: what a row would take more on average without it"
    return f"{title}\n{table(['exit', 'takes', 'saves'], rows)}\n{note}"


def _skipped(trace: Trace, points: Mapping[str, OperatingPoint]) -> list[str]:
    """Return a line for each point that does not read all exits of a trace."""
    layers = tuple(trace.layer_numbers)
    read = {name: point.layers_read(layers) for name, point in points.items()}
    return [skipped_text(name, read[name], layers) for name in points if read[name] != layers]


def skipped_text(subject: str, read: Sequence[int], layers: Sequence[int]) -> str:
    """Return which exits a point reads: "fast reads the exits at layers 1, 4 and skips 0 (lexical), 2"."""
    skipped = layers_text(sorted({*layers} - {*read}))
    return f"{subject} reads the exits at layers {layers_text(read)} and skips {skipped}"


def scores_data(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, cost: CostTable | None = None
) -> dict[str, Any]:
    """Return the content of `scores_text` as data for JSON."""
    measured = measure_all(trace, points, metric, cost)
    return {
        "metric": metric_for(trace, metric)[0],
        "layers": trace.layer_numbers,
        "layerwise": layerwise(trace, metric) if trace.labels is not None else None,
        "exit_summary": asdict(exit_score_summary(trace, metric)) if trace.labels is not None else None,
        "points": {
            name: {**_point_data(trace, point, measured[name]), **exit_values_data(trace, point, cost)}
            for name, point in points.items()
        },
    }


def exit_values_data(trace: Trace, point: OperatingPoint, cost: CostTable | None) -> dict[str, Any]:
    """Return what the exits of a point take and save as data for JSON; {} where that is not known."""
    values = exit_values(trace, point, cost)
    return {"exit_values": [asdict(value) for value in values]} if values else {}


def _point_data(trace: Trace, point: OperatingPoint, measured: Measured) -> dict[str, Any]:
    """Return a point as in its file, with these measurements and their 95% intervals."""
    data = replace(point, measured=measured).to_json()
    loss = None if trace.labels is None else point_loss_interval(trace, point, measured.metric)
    intervals = {"loss_interval": loss, "agreement_interval": _agreement_interval(point, measured)}
    leaving = histogram(trace, point)
    speedup = measured.speedup if measured.speedup < math.inf else None  # no layer runs, and costs are not known
    data["measured"] |= {"speedup": speedup, "speedup_of": measured.speedup_of, "saving": measured.saving}
    data["measured"] |= {**intervals, "leaving": leaving}
    return data


def _agreement_interval(point: OperatingPoint, measured: Measured) -> tuple[float, float] | None:
    """Return the 95% interval of the agreement; (1, 1) where the point is the full model."""
    if min(point.thresholds, default=math.inf) == math.inf and measured.agreement == 1:
        return 1.0, 1.0
    return agreement_interval(measured)


def _interval_text(trace: Trace, point: OperatingPoint, metric: str | None) -> str:
    """Return the 95% interval of the loss, without labels that of the agreement; "" where there is none."""
    if trace.labels is not None:
        interval = point_loss_interval(trace, point, metric)
    else:
        interval = _agreement_interval(point, measure_point(trace, point))
    return interval_text(interval)


def interval_text(interval: tuple[float, float] | None) -> str:
    """Return an interval such as "-0.010 to 0.020"; "" for None."""
    return "" if interval is None else " to ".join(f"{round(end, 3) + 0.0:.3f}" for end in interval)  # no -0.000


def thresholds_text(point: OperatingPoint) -> str:
    """Return one number where all exits share their threshold, else one for each: "layer 1: 0.25, layer 2: never"."""
    words = threshold_words(point.thresholds)
    if len(set(words)) == 1:
        return words[0]
    if point.exit_layers is None:
        return ", ".join(words)
    return ", ".join(f"layer {layer}: {word}" for layer, word in zip(point.exit_layers, words, strict=False))


def point_text(point: OperatingPoint, layers: Sequence[int] | None = None) -> str:
    """Return an operating point in words: policy, thresholds, target, measurements and certificate.

    Args:
        point: of a model.
        layers: of the model's exits; those that the point skips are named. None = not known.
    """
    parameters = "".join(f" {key}={value}" for key, value in summarize(point.policy).items() if key != "name")
    target = ", ".join(f"{key} {value:g}" for key, value in point.target.items()) or "set by hand"
    lines = [f"{point.policy['name']}{parameters}, thresholds {thresholds_text(point)} ({target})"]
    if layers is not None and (read := point.layers_read(layers)) != tuple(layers):
        lines.append(f"  {skipped_text('it', read, layers)}")
    if point.label_thresholds is not None:
        lines.append(f"  {label_thresholds_text(point.label_thresholds)}")
    if point.measured is not None:
        lines += _measured_lines(point.measured)
    if point.certificate is not None:
        lines.append(f"  {point.certificate.describe()}")
    if point.agreement is not None:
        lines.append(f"  {point.agreement.describe()}")
    return "\n".join(lines)


def _measured_lines(measured: Measured) -> list[str]:
    """Return score, mean exit and provenance in one line, and the expected time in another where there is one."""
    score = ""
    if measured.score is not None:
        score = f"{measured.metric} {measured.score:.4f} (full model {measured.full_score:.4f}), "
    provenance = ", ".join(
        f"{key} {value}" for key, value in measured.provenance.items() if key not in ("weights", "timed")
    )
    mean_exit = f"mean exit {measured.mean_exit:.2f} of {measured.depth}"
    if measured.speedup_of != "layers":
        mean_exit += f", speed-up {speedup_text(measured.speedup)} in {measured.speedup_of}"
    lines = [f"  {score}{mean_exit} on {measured.rows} rows ({provenance})"]
    if measured.expected_ms is not None:
        timed = measured.provenance.get("timed", "unknown")
        lines.append(f"  {measured.expected_ms:.2f} ms a sample expected ({timed})")
    return lines
