"""`offramp calibrate --from-audit`: what a server proposed after drift becomes an operating point."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from offramp.cli.points import add_points, saved_points
from offramp.errors import CannotReach, InvalidInput, NotApplicable
from offramp.inference.onnx.metadata import weights_digest
from offramp.types.operating_point import OperatingPoint, threshold_words
from offramp.types.proposal import Proposal, trace_path

if TYPE_CHECKING:
    from offramp.types.trace import Trace

DELTA = 0.05
"""Of a certificate that has none of its own."""


def save_proposed(folder: Path, file: Path, name: str | None, as_json: bool) -> None:
    """Save the point that a proposal leads to, and print what was done and why.

    Raises:
        UsageError: other options.
        InvalidInput: the file is no proposal, or one of other weights, or the point has changed since.
    """
    from offramp.model.hub import load_config

    _refuse_others(click.get_current_context())
    proposal = Proposal.load(file)
    if proposal.weights != weights_digest(folder):
        raise InvalidInput(f"{file}: weights: the proposal is of other weights than those in {folder}")
    points = saved_points(folder)
    drifted = points.get(proposal.operating_point)
    if drifted is None:
        raise InvalidInput(f"{file}: operating_point: {folder} has no point {proposal.operating_point!r}")
    layers = load_config(folder).layers
    if _by_layer(drifted, layers) != proposal.old:
        raise InvalidInput(
            f"{file}: thresholds: old: the point {proposal.operating_point!r} in {folder} has others; it was changed"
            " since the alarm"
        )
    if proposal.new == proposal.old:
        raise InvalidInput(f"{file}: thresholds: new: they are the old ones")
    try:
        point, reason = _certified(folder, trace_path(file), proposal, drifted)
    except (CannotReach, NotApplicable) as error:
        reason = f"the proposal's new thresholds: {error}"
        try:
            point = _proposed(layers, proposal, points, drifted)
        except InvalidInput as wrong:
            raise InvalidInput(f"{file}: thresholds: new: {wrong}") from None
    add_points(folder, {name or proposal.operating_point: point})
    _print(as_json, name or proposal.operating_point, point, reason)


def _certified(folder: Path, path: Path, proposal: Proposal, drifted: OperatingPoint) -> tuple[OperatingPoint, str]:
    """Return a point that is certified on the rows audited since the alarm, and what was done.

    Raises:
        CannotReach: there are none, or too few.
        NotApplicable: the point reads what a trace of a server does not have.
    """
    if not path.exists():
        raise CannotReach(f"there is no {path.name} of rows audited since the alarm")
    from offramp.calibration.from_audit import stricter_point

    trace, certificate = _with_costs(folder, path), proposal.certificate
    for name, value in (("weights", proposal.weights), ("engine", proposal.engine)):
        if trace.provenance.get(name) != value:
            raise InvalidInput(f"{path}: {name}: they are not those of the proposal")
    try:
        point = stricter_point(trace, drifted, certificate.level, certificate.delta or DELTA)
    except NotApplicable:
        raise
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    return point, f"certified on {len(trace)} rows that were audited after the alarm"


def _with_costs(folder: Path, path: Path) -> Trace:
    """Return a trace with the multiply-accumulates of its rows, as `offramp record` makes it."""
    from offramp.inference.record import row_macs
    from offramp.model.hub import load_config
    from offramp.types.trace import Trace

    trace, config = Trace.load(path), load_config(folder)
    if trace.logits.shape[-1] != config.num_labels:
        raise InvalidInput(f"{path}: logits of {trace.logits.shape[-1]} outputs; the model has {config.num_labels}")
    return replace(trace, macs=row_macs(config, trace.layer_numbers, trace.tokens))


def _proposed(
    layers: Sequence[int], proposal: Proposal, points: Mapping[str, OperatingPoint], drifted: OperatingPoint
) -> OperatingPoint:
    """Return the point in force since the alarm; where the folder has another one by now, its thresholds alone.

    Raises:
        InvalidInput: the thresholds are not of exits that the model has.
    """
    current = points.get(proposal.in_force)
    if current is not None and _by_layer(current, layers) == proposal.new:
        return current
    thresholds, exit_layers = tuple(proposal.new.values()), (*proposal.new, layers[-1])
    point = OperatingPoint(
        drifted.policy, thresholds, label_thresholds=drifted.label_thresholds, exit_layers=exit_layers
    )
    point.layers_read(layers)
    return point


def _by_layer(point: OperatingPoint, layers: Sequence[int]) -> dict[int, float]:
    """Return a point's thresholds by layer number; `layers` of the model's exits."""
    return dict(zip(point.layers_read(layers)[:-1], point.thresholds, strict=True))


def _print(as_json: bool, name: str, point: OperatingPoint, reason: str) -> None:
    if as_json:
        click.echo(json.dumps({"name": name, "done": reason, "point": point.to_json()}))
        return
    click.echo(f"{name}: {reason}")
    click.echo(f"thresholds: {' '.join(threshold_words(point.thresholds))}")
    if point.agreement is not None:
        click.echo(point.agreement.describe())


def _refuse_others(context: click.Context) -> None:
    """Refuse options beside --from-audit, --name and --json.

    Raises:
        UsageError: there are some.
    """
    allowed = {"folder", "from_audit", "name", "as_json"}
    sources = {name: context.get_parameter_source(name) for name in context.params}
    others = [name for name, source in sources.items() if source is ParameterSource.COMMANDLINE and name not in allowed]
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise click.UsageError(f"--from-audit takes its thresholds from the file; leave out {names}")
