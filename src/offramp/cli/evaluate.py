"""`offramp evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import (
    FILE,
    FOLDER,
    SCORE,
    class_names,
    column_options,
    columns_of,
    json_option,
    read_trace,
    reading_of,
    reading_options,
    scored_options,
    silence_transformers,
)
from offramp.cli.points import (
    cost_of_folder,
    finite_only,
    metric_of,
    other_weights,
    print_notes,
    readable_points,
    saved_points,
)
from offramp.errors import InvalidInput
from offramp.types.whole_file import refuse_output

if TYPE_CHECKING:
    from offramp.evaluation.bootstrap import BootstrapCurve
    from offramp.evaluation.compare import Comparison
    from offramp.evaluation.slices import Slice
    from offramp.evaluation.sweep import Curve
    from offramp.types.operating_point import OperatingPoint
    from offramp.types.trace import Trace

TRACE_SLICES = ("label", "length")  # known from the trace; other slices need a column of the data


@click.command()
@click.argument("folder", type=FOLDER)
@scored_options("test", f"{SCORE}  [default: that of the default point, else accuracy or pearson]")
@click.option("--slice-by", metavar="COLUMN", help="Score the default point by label, length, or a column of the data.")
@click.option("--picture", type=FILE, help="File for a plot of all policies: .png, .svg or .pdf.")
@column_options
@reading_options
@json_option
def evaluate(folder: Path, slice_by: str | None, picture: Path | None, as_json: bool, **options: Any) -> None:
    """Score every exit and every operating point of a model, and compare all policies.

    Policies are compared at budgets of a quarter, a third, half and two thirds of the layers, on a random half of the
    rows; consistency and gain are fitted on the other half. The oracle, which knows each row's right exits, is the
    upper bound.

    Where the times of the exits are kept (costs.json, by `offramp calibrate --batch-size` or `offramp bench`), a table
    shows what each exit of the default point takes and saves.

    \b
    offramp evaluate model --data test.csv
    offramp evaluate model --data test.csv --slice-by length --picture policies.png
    """
    silence_transformers()
    from offramp.calibration.lexical_rows import lexical_rows_text
    from offramp.evaluation.caveats import caveats
    from offramp.evaluation.compare import compare
    from offramp.evaluation.exit_values import exit_values
    from offramp.evaluation.metrics import metric_for
    from offramp.report.comparison import comparison_data, comparison_text, recalls_text, slices_data, slices_text
    from offramp.report.tables import exit_values_data, exit_values_text, scores_data, scores_text
    from offramp.types.operating_point import DEFAULT

    if picture is not None:
        refuse_output(picture, options["data"], options["trace"], folder)
    groups = _groups(folder, slice_by, options)  # before the model runs, so that a wrong name fails at once
    recorded = read_trace(folder, options)
    trace, rows = finite_only(recorded)
    groups = [groups[row] for row in rows] if len(groups) == len(recorded) else groups
    points, names = readable_points(trace, saved_points(folder)), class_names(folder)
    metric = options["metric"] or metric_of(points.get(DEFAULT))
    slices = None if slice_by is None else _slices(folder, trace, points, slice_by, groups, metric)
    recalls = _recalls(trace, points, names)
    comparison = compare(trace, metric) if trace.depth > 1 and len(trace) > 1 else None
    notes = other_weights(folder, trace) + caveats(trace, points, metric, names)
    notes += filter(None, [lexical_rows_text(trace)])
    if picture is not None:
        _draw(comparison, points, picture, metric)
    print_notes(notes)
    cost, default = cost_of_folder(folder, trace), points.get(DEFAULT)
    if as_json:
        data = scores_data(trace, points, metric)
        data["comparison"] = None if comparison is None else comparison_data(comparison)
        data["recall"] = None if recalls is None else slices_data(recalls[1], "class", recalls[0])
        if default is not None:
            data |= exit_values_data(trace, default, cost)
        if slices is not None:
            data["slices"] = slices_data(slices, str(slice_by), DEFAULT)
        click.echo(json.dumps({**data, "notes": notes}))
        return
    parts = [scores_text(trace, points, metric)]
    parts.append("one exit or one row: no policies to compare" if comparison is None else comparison_text(comparison))
    if cost is not None and default is not None and (values := exit_values(trace, default, cost)):
        parts.append(exit_values_text(DEFAULT, values, cost))
    if recalls is not None:
        parts.append(recalls_text(*recalls))
    if slices is not None:
        parts.append(slices_text(slices, str(slice_by), metric_for(trace, metric)[0]))
    click.echo("\n\n".join(part for part in parts if part))


def _recalls(
    trace: Trace, points: Mapping[str, OperatingPoint], names: Sequence[str]
) -> tuple[str, tuple[Slice, ...]] | None:
    """Return the name of the default point, or else the first, and each class's recall there; None without any."""
    from offramp.evaluation.slices import recall_by_class
    from offramp.types.operating_point import DEFAULT
    from offramp.types.problem_types import REGRESSION

    name = DEFAULT if DEFAULT in points else next(iter(points), None)
    if name is None or trace.labels is None or trace.problem_type == REGRESSION:
        return None
    return name, recall_by_class(trace, points[name], names)


def _groups(folder: Path, by: str | None, options: Mapping[str, Any]) -> list[str]:
    """Return the group of each row with a label from a column of the data; [] for slices that the trace knows."""
    from offramp.data.examples import read_column
    from offramp.inference.record import read_for
    from offramp.model.hub import load_config

    if by in (None, *TRACE_SLICES) or (options["data"] is None and options["trace"] is None):
        return []
    if options["data"] is None:
        raise InvalidInput(f"a trace has no columns; give --data to slice by {by!r}, or slice by label or length")
    data, split, reading = options["data"], options["split"], reading_of(options)
    groups = read_column(data, str(by), split=split, reading=reading)
    rows = read_for(load_config(folder), data, columns_of(options), split, reading).rows
    return groups if rows is None else [groups[row] for row in rows]


def _slices(
    folder: Path,
    trace: Trace,
    points: Mapping[str, OperatingPoint],
    by: str,
    groups: list[str],
    metric: str | None,
) -> tuple[Slice, ...]:
    """Score the default point on each slice."""
    from offramp.evaluation.slices import by_groups, by_label, by_length
    from offramp.types.operating_point import DEFAULT

    if DEFAULT not in points:
        raise InvalidInput(f"{folder} has no operating point {DEFAULT!r} to slice; `offramp calibrate` makes one")
    if by == "label":
        return by_label(trace, points[DEFAULT], metric, class_names(folder))
    if by == "length":
        return by_length(trace, points[DEFAULT], metric)
    return by_groups(trace, points[DEFAULT], groups, metric)


def _draw(
    comparison: Comparison | None, points: Mapping[str, OperatingPoint], picture: Path, metric: str | None
) -> None:
    from offramp.report.plots import draw_curves

    if comparison is None:
        raise InvalidInput("one exit or one row: there are no policies to draw")
    lines: dict[str, Curve | BootstrapCurve] = {**comparison.bands}
    if comparison.oracle is not None:
        lines["oracle"] = comparison.oracle
    title = f"every policy, on {len(comparison.trace)} rows on which nothing was fitted"
    draw_curves(comparison.trace, lines, points, picture, title, metric, comparison.metric)
