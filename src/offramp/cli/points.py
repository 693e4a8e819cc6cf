"""Operating points on the command line: chosen, saved, told."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import weights_digest

if TYPE_CHECKING:
    from offramp.policies.base import Policy
    from offramp.types.cost_table import CostTable
    from offramp.types.operating_point import OperatingPoint
    from offramp.types.trace import Trace


def calibrated(
    trace: Trace,
    policy: Policy,
    target: Mapping[str, float],
    metric: str | None = None,
    cost: CostTable | None = None,
) -> OperatingPoint:
    """The point that meets a target on a trace."""
    from offramp.calibration.calibrate import calibrate
    from offramp.types.operating_point import Target

    return calibrate(trace, policy, Target(**target), metric, cost)


def certified(
    folder: Path,
    trace: Trace,
    policy: Policy,
    target: Mapping[str, float],
    confidence: float,
) -> OperatingPoint:
    """The point that meets a target with a confidence, of a trace of the weights in the folder."""
    from offramp.calibration.certify import certify

    _refuse_other_weights(folder, trace)
    risk, level = ("drop", target["max_drop"]) if "max_drop" in target else ("agreement", 1 - target["agreement"])
    return certify(trace, policy, risk, round(level, 12), round(1 - confidence, 12))


def laddered(
    folder: Path,
    trace: Trace,
    policy: Policy,
    metric: str | None,
    confidence: float | None,
) -> dict[str, OperatingPoint]:
    """The rungs of a ladder; with a confidence, of a trace of the weights in the folder."""
    from offramp.calibration.ladder import ladder

    if confidence is None:
        return ladder(trace, policy, metric)
    _refuse_other_weights(folder, trace)
    return ladder(trace, policy, delta=round(1 - confidence, 12))


def _refuse_other_weights(folder: Path, trace: Trace) -> None:
    if trace.provenance.get("weights") != weights_digest(folder):
        raise InvalidInput(
            f"the trace was not recorded with the weights in {folder}, so it can promise nothing of them"
        )


def saved_points(folder: Path) -> dict[str, OperatingPoint]:
    """The operating points of a folder, by name."""
    from offramp.types.operating_point import POINTS_FILE, read_points

    path = folder / POINTS_FILE
    return read_points(path) if path.exists() else {}


def add_points(folder: Path, points: Mapping[str, OperatingPoint], instead_of: Collection[str] = ()) -> None:
    """Add points to those of a folder, if its model has so many exits; those of the names `instead_of` go."""
    from offramp.model.card import save_points

    exits = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("exit_layers")
    if exits is None:
        raise InvalidInput(f"{folder}: a model without exits; `offramp train` puts exits on it")
    for point in points.values():
        if len(point.thresholds) != len(exits) - 1:
            raise InvalidInput(f"{folder} has {len(exits)} exits, but the trace has {len(point.thresholds) + 1}")
    others = {name: point for name, point in saved_points(folder).items() if name not in instead_of}
    save_points({**others, **points}, folder)


def add_ladder(folder: Path, points: Mapping[str, OperatingPoint]) -> None:
    """Save a ladder with a folder's points, in place of the one before."""
    from offramp.calibration.ladder import LADDER_NAMES

    add_points(folder, points, LADDER_NAMES)


def print_scores(
    as_json: bool,
    trace: Trace,
    points: Mapping[str, OperatingPoint],
    metric: str | None = None,
    cost: CostTable | None = None,
) -> None:
    """Scores of the exits and of the points, on one trace; expected times, where there is a cost table."""
    from offramp.report.tables import scores_data, scores_text

    made = scores_data if as_json else scores_text
    told = made(trace, points, metric, cost)
    click.echo(json.dumps(told) if as_json else told)
