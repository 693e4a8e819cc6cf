"""`offramp info`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import FOLDER, json_option, silence_transformers
from offramp.inference.onnx.metadata import weights_digest
from offramp.policies.registry import policy_text
from offramp.types.graph_file import GRAPHS

if TYPE_CHECKING:
    from offramp.types.operating_point import OperatingPoint


@click.command()
@click.argument("folder", type=FOLDER)
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Print a model's encoder, exits, exported graphs and operating points.

    \b
    offramp info model
    """
    silence_transformers()
    from offramp.model.loading import load_folder
    from offramp.report.tables import point_text

    model, _ = load_folder(folder)
    config = model.config
    facts: dict[str, Any] = {
        "backbone": config.backbone.model_type,
        "layers": config.backbone.num_hidden_layers,
        "exit_layers": model.layers,
        "head": config.head,
        "pooling": config.pooling,
        "problem_type": config.problem_type,
        "labels": [config.id2label[number] for number in range(config.num_labels)],
        "parameters": model.num_parameters(),
    }
    for name in ("own_head", "bypass", "certainty", "memory", "token_exit"):
        if value := getattr(config, name):
            facts[name] = value
    if graphs := _graphs(folder):
        facts["graphs"] = graphs
    points = {name: point.to_json() for name, point in model.operating_points.items()}
    outdated = _outdated_certificates(folder, model.operating_points)
    for name in outdated:
        points[name]["certificate"]["void"] = "the weights changed"
    if as_json:
        click.echo(json.dumps({**facts, "operating_points": points}))
        return
    for name, fact in facts.items():
        click.echo(f"{name:<14}{', '.join(map(str, fact)) if isinstance(fact, list) else fact}")
    for name, point in model.operating_points.items():
        click.echo(f"\noperating point {name!r}: {point_text(point)}")
        if name in outdated:
            click.echo("  void: the weights changed")


def _outdated_certificates(folder: Path, points: Mapping[str, OperatingPoint]) -> list[str]:
    """Return the points whose certificate is of other weights than the folder's."""
    certified = {name: point.certificate.weights for name, point in points.items() if point.certificate}
    named = {name: weights for name, weights in certified.items() if weights is not None}
    current = weights_digest(folder) if named else None
    return [name for name, weights in named.items() if weights != current]


def _graphs(folder: Path) -> list[str]:
    """Return the exported files of a folder with the policy that they run."""
    files = [folder / name for name in GRAPHS.values() if (folder / name).exists()]
    if not files or find_spec("onnxruntime") is None:
        return [path.name for path in files]
    from offramp.inference.onnx.session import OnnxSession

    return [f"{path.name} ({policy_text(OnnxSession.load(path).metadata.policy)})" for path in files]
