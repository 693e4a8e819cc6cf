"""`offramp evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import (
    FILE,
    FOLDER,
    column_options,
    json_option,
    read_trace,
    scored_options,
    silence_transformers,
)
from offramp.cli.points import saved_points
from offramp.errors import InvalidInput

if TYPE_CHECKING:
    from offramp.evaluation.bootstrap import BootstrapCurve
    from offramp.evaluation.compare import Comparison
    from offramp.evaluation.slices import Slice
    from offramp.evaluation.sweep import Curve
    from offramp.types.operating_point import OperatingPoint
    from offramp.types.trace import Trace

KNOWN = ("label", "length")  # what a trace can be sliced by


@click.command()
@click.argument("folder", type=FOLDER)
@scored_options("test")
@click.option("--slice-by", metavar="COLUMN", help="Tell the default point apart by label, length, or a file's column.")
@click.option("--picture", type=FILE, help="Draw every policy: .png, .svg or .pdf.")
@column_options
@json_option
def evaluate(folder: Path, slice_by: str | None, picture: Path | None, as_json: bool, **given: Any) -> None:
    """Score every exit and every operating point of a model, and compare all policies.

    Policies are told at budgets of a quarter, a third, half and two thirds of the layers, on a random half of the
    rows: consistency and gain are fitted on the other half. The oracle, which knows who is right where, is the bound.

    \b
    offramp evaluate model --data test.csv
    offramp evaluate model --data test.csv --slice-by length --picture policies.png
    """
    silence_transformers()
    from offramp.evaluation.compare import compare
    from offramp.evaluation.metrics import metric_for
    from offramp.report.comparison import comparison_data, comparison_text, slices_data, slices_text
    from offramp.report.tables import scores_data, scores_text
    from offramp.types.operating_point import DEFAULT

    groups = _groups(slice_by, given)  # before the model runs: a wrong name is told at once
    trace, points, metric = read_trace(folder, given), saved_points(folder), given["metric"]
    slices = None if slice_by is None else _slices(folder, trace, points, slice_by, groups, metric)
    found = compare(trace, metric) if trace.depth > 1 and len(trace) > 1 else None
    if picture is not None:
        _draw(found, points, picture, metric)
    if as_json:
        told = scores_data(trace, points, metric)
        told["comparison"] = None if found is None else comparison_data(found)
        if slices is not None:
            told["slices"] = slices_data(slices, str(slice_by), DEFAULT)
        click.echo(json.dumps(told))
        return
    parts = [scores_text(trace, points, metric)]
    parts.append("one exit or one row: no policies to compare" if found is None else comparison_text(found))
    if slices is not None:
        parts.append(slices_text(slices, str(slice_by), metric_for(trace, metric)[0]))
    click.echo("\n\n".join(part for part in parts if part))


def _groups(by: str | None, given: Mapping[str, Any]) -> list[str]:
    """The group of each row, where a column of the data says it."""
    from offramp.data.examples import read_column

    if by in (None, *KNOWN) or (given["data"] is None and given["trace"] is None):
        return []
    if given["data"] is None:
        raise InvalidInput(f"a trace has no columns; give --data to slice by {by!r}, or slice by label or length")
    return read_column(given["data"], str(by), split=given["split"])


def _slices(
    folder: Path,
    trace: Trace,
    points: Mapping[str, OperatingPoint],
    by: str,
    groups: list[str],
    metric: str | None,
) -> tuple[Slice, ...]:
    """Slices of the default point."""
    from offramp.evaluation.slices import by_groups, by_label, by_length
    from offramp.model.hub import load_config
    from offramp.types.operating_point import DEFAULT

    if DEFAULT not in points:
        raise InvalidInput(f"{folder} has no operating point {DEFAULT!r} to slice; `offramp calibrate` makes one")
    if by == "label":
        config = load_config(folder)
        return by_label(trace, points[DEFAULT], metric, [config.id2label[k] for k in range(config.num_labels)])
    if by == "length":
        return by_length(trace, points[DEFAULT], metric)
    return by_groups(trace, points[DEFAULT], groups, metric)


def _draw(found: Comparison | None, points: Mapping[str, OperatingPoint], picture: Path, metric: str | None) -> None:
    from offramp.report.plots import draw_curves

    if found is None:
        raise InvalidInput("one exit or one row: there are no policies to draw")
    lines: dict[str, Curve | BootstrapCurve] = {**found.bands}
    if found.oracle is not None:
        lines["oracle"] = found.oracle
    title = f"every policy, on {len(found.trace)} rows on which nothing was fitted"
    draw_curves(found.trace, lines, points, picture, title, metric, found.metric)
