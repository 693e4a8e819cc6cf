"""Operating points on the command line: a folder's points, read, saved and printed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import weights_digest
from offramp.types.ladder_names import LADDER_NAMES

if TYPE_CHECKING:
    from offramp.types.cost_table import CostTable
    from offramp.types.operating_point import OperatingPoint
    from offramp.types.trace import Trace


def refuse_other_weights(folder: Path, trace: Trace) -> None:
    """Refuse to certify a folder's model on a trace of other weights.

    Raises:
        InvalidInput: the trace was recorded with other weights, or does not name its weights.
    """
    if trace.provenance.get("weights") != weights_digest(folder):
        raise InvalidInput(
            f"the trace was not recorded with the weights in {folder}, so no certificate can hold for them"
        )


def other_weights(folder: Path, trace: Trace) -> list[str]:
    """Return a sentence where a trace is of other weights than a folder's; none where it names no weights."""
    weights = trace.provenance.get("weights")
    if weights is None or not folder.is_dir() or weights == weights_digest(folder):
        return []
    return [f"the trace was recorded with other weights than those in {folder}: no figure here is of this model"]


def saved_points(folder: Path) -> dict[str, OperatingPoint]:
    """Read the operating points of a folder, by name; those of other weights are left out with a warning."""
    from offramp.model.points import load_points

    return load_points(folder) if folder.is_dir() else {}


def metric_of(point: OperatingPoint | None) -> str | None:
    """Return the metric that a point's target is of; None = the default one."""
    if point is None or point.measured is None or "max_drop" not in point.target:
        return None
    return point.measured.metric


def add_points(folder: Path, points: Mapping[str, OperatingPoint], instead_of: Collection[str] = ()) -> None:
    """Save points with a folder's others, but for those of the names `instead_of`.

    Raises:
        InvalidInput: the folder's model has no exits, or not those that a point reads.
    """
    from offramp.model.card import save_points
    from offramp.model.hub import load_config

    layers = load_config(folder).layers
    for point in points.values():
        _refuse_other_trace(folder, point)
        try:
            point.layers_read(layers)
        except InvalidInput as error:
            raise InvalidInput(f"{folder} has other exits than the trace: {error}") from None
    others = {name: point for name, point in saved_points(folder).items() if name not in instead_of}
    save_points({**others, **points}, folder)


def _refuse_other_trace(folder: Path, point: OperatingPoint) -> None:
    """Refuse a point that was chosen on a trace of other weights than a folder's."""
    weights = point.measured.provenance.get("weights") if point.measured is not None else None
    if weights not in (None, weights_digest(folder)):
        raise InvalidInput(
            f"the trace was recorded with other weights than those in {folder}; `offramp record` records it anew"
        )


def add_ladder(folder: Path, points: Mapping[str, OperatingPoint]) -> None:
    """Save a ladder with a folder's points, in place of the ladder before."""
    add_points(folder, points, LADDER_NAMES)


def readable_points(trace: Trace, points: Mapping[str, OperatingPoint]) -> dict[str, OperatingPoint]:
    """Return the points whose exits a trace has, by name; print which others are left out."""
    readable = {}
    for name, point in points.items():
        try:
            point.layers_read(trace.layer_numbers)
            readable[name] = point
        except InvalidInput as error:
            print_notes([f"the operating point {name!r} is left out: {error}"])
    return readable


def cost_of_folder(folder: Path, trace: Trace) -> CostTable | None:
    """Return the times of a trace's engine on this machine that a folder keeps, of its smallest batches; or None."""
    from offramp.inference.choose_engine import costs_here

    tables = [table for table in costs_here(folder) if table.engine == trace.provenance.get("engine")]
    return min(tables, key=lambda table: table.batch_size, default=None)


def finite_only(trace: Trace) -> tuple[Trace, list[int]]:
    """Return a trace without the rows that have no finite answer, and the rows kept; print how many those are.

    Raises:
        InvalidInput: no row is left.
    """
    from offramp.evaluation.measure import finite_rows

    kept = finite_rows(trace)
    if len(kept) == len(trace):
        return trace, kept.tolist()
    left_out = sorted(set(range(len(trace))) - set(kept.tolist()))
    some = ", ".join(str(row + 1) for row in left_out[:5]) + (", ..." if len(left_out) > 5 else "")
    have = "has no finite answer and is" if len(left_out) == 1 else "have no finite answer and are"
    print_notes([f"{len(left_out)} of {len(trace)} rows {have} left out here (row {some})"])
    return trace.take(kept), kept.tolist()


def print_notes(notes: Sequence[str]) -> None:
    """Print what rows cannot show, to the standard error stream, which machines do not read."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def print_scores(
    as_json: bool,
    trace: Trace,
    points: Mapping[str, OperatingPoint],
    metric: str | None = None,
    cost: CostTable | None = None,
    names: Sequence[str] = (),
) -> None:
    """Print the scores of the exits and of the points on one trace, and what its rows cannot show.

    Args:
        as_json: as data for machines.
        trace: (L, N, C).
        points: by name.
        metric: of the scores; None = the default one.
        cost: for expected times.
        names: of the C classes; () = their numbers.
    """
    from offramp.evaluation.caveats import caveats
    from offramp.report.tables import scores_data, scores_text

    notes = caveats(trace, points, metric, names)
    print_notes(notes)
    if as_json:
        click.echo(json.dumps({**scores_data(trace, points, metric, cost), "notes": notes}))
    else:
        click.echo(scores_text(trace, points, metric, cost))


def warn_if_not_exported(folder: Path, engine: str, point: OperatingPoint) -> None:
    """Print a line where the graph does not run the policy of a new point."""
    from offramp.inference.load_engine import load_engine

    try:
        load_engine(folder, engine).check(point)
    except InvalidInput as error:
        click.echo(f"{engine} cannot run it yet: {error}", err=True)


def print_certificates(points: Mapping[str, OperatingPoint], confidence: float | None) -> None:
    """Print the certificates, with the points' names where there are several points."""
    from offramp.types.operating_point import confidence_text

    lines = {name: point.certificate.describe() for name, point in points.items() if point.certificate is not None}
    for name, line in lines.items():
        click.echo(f"\n{line}" if len(points) == 1 else f"\n{name}: {line}")
    if len(lines) > 1 and confidence is not None:
        click.echo(f"\nall of these at once with {confidence_text(1 - confidence)} confidence")
    bounds = {name: point.agreement for name, point in points.items() if point.agreement is not None}
    for number, (name, bound) in enumerate(bounds.items()):
        click.echo(f"{name}: {bound.describe()}" if number else f"\n{name}: {bound.describe()}")
    if bounds:
        apart = ", apart from those above" if lines else ""
        text = confidence_text(next(iter(bounds.values())).delta or 0)
        click.echo(f"all of these at once with {text} confidence{apart}; `offramp serve --ladder` watches them")
