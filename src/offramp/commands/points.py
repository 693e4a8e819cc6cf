"""Operating points on the command line: chosen, saved, told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.engine.about import weights_digest
from offramp.errors import InvalidInput
from offramp.registry import load_policy, usual_policy

if TYPE_CHECKING:
    from offramp.policies.base import Policy
    from offramp.values import OperatingPoint, Trace


def policy_for(trace: Trace, name: str | None, parameters: Mapping[str, Any]) -> Policy:
    """The policy asked for, or the usual one for the trace's kind of problem."""
    return load_policy(name or usual_policy(str(trace.problem_type)), **parameters)


def calibrated(
    trace: Trace,
    policy: str | None,
    parameters: Mapping[str, Any],
    target: Mapping[str, float],
    metric: str | None,
) -> OperatingPoint:
    """The point that meets a target on a trace."""
    from offramp.thresholds import calibrate
    from offramp.values import Target

    return calibrate(trace, policy_for(trace, policy, parameters), Target(**target), metric)


def certified(
    folder: Path,
    trace: Trace,
    policy: str | None,
    parameters: Mapping[str, Any],
    target: Mapping[str, float],
    confidence: float,
) -> OperatingPoint:
    """The point that meets a target with a confidence, of a trace of the weights in the folder."""
    from offramp.risk import certify

    if trace.about.get("weights") != weights_digest(folder):
        raise InvalidInput(
            f"the trace was not recorded with the weights in {folder}, so it can promise nothing of them"
        )
    rule = policy_for(trace, policy, parameters)
    risk, level = ("drop", target["max_drop"]) if "max_drop" in target else ("agreement", 1 - target["agreement"])
    return certify(trace, rule, risk, round(level, 12), round(1 - confidence, 12))


def saved_points(folder: Path) -> dict[str, OperatingPoint]:
    """The operating points of a folder, by name."""
    from offramp.values import POINTS_FILE, read_points

    path = folder / POINTS_FILE
    return read_points(path) if path.exists() else {}


def save_point(folder: Path, name: str, point: OperatingPoint) -> None:
    """Add a point to those of a folder, if its model has so many exits."""
    from offramp.card import save_points

    exits = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("exit_layers")
    if exits is None:
        raise InvalidInput(f"{folder}: a model without exits; `offramp train` puts exits on it")
    if len(point.thresholds) != len(exits) - 1:
        raise InvalidInput(f"{folder} has {len(exits)} exits, but the trace has {len(point.thresholds) + 1}")
    save_points({**saved_points(folder), name: point}, folder)


def tell(as_json: bool, trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None) -> None:
    """Scores of the exits and of the points, on one trace."""
    from offramp.report import scores_data, scores_text

    click.echo(json.dumps(scores_data(trace, points, metric)) if as_json else scores_text(trace, points, metric))
