"""`offramp info`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import FOLDER, json_option, silence_transformers
from offramp.policies.registry import policy_text
from offramp.types.cost_table import CostTable
from offramp.types.exit_names import layers_text
from offramp.types.graph_file import ABOUT, GRAPHS, read_metadata, stale
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import DEFAULT

if TYPE_CHECKING:
    from offramp.model.config import MultiExitConfig
    from offramp.types.operating_point import OperatingPoint

Examined = Mapping[str, "tuple[OperatingPoint, str | None]"]


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--verify", "verifying", is_flag=True, help="Compare every byte; exit code 1 where a file is stale.")
@json_option
def info(folder: Path, verifying: bool, as_json: bool) -> None:
    """Print a model's encoder, exits, exported graphs, engine and operating points.

    auto is the engine that runs the operating point "default" here, and why; costs are the times that `offramp
    calibrate --latency-ms` and `offramp bench` measured on this machine.

    --verify reads the weights, the graphs with their .data, the operating points and the card, and prints for each
    whether it is of this model. A tokenizer or a lines.json that cannot be read is printed too.

    \b
    offramp info model
    offramp info model --verify
    """
    silence_transformers()
    from offramp.cli.verify import STALE, verify
    from offramp.model.hub import load_config
    from offramp.model.points import examine_points

    config, content = load_config(folder), ModelContent(folder)
    if verifying:
        findings = verify(folder, config)
        if as_json:
            click.echo(json.dumps({"verify": [asdict(finding) for finding in findings]}))
        else:
            width = max(len(finding.file) for finding in findings)
            for finding in findings:
                click.echo(f"{finding.file:<{width}}  {finding.state:<7}  {finding.note}")
        raise SystemExit(1 if any(finding.state == STALE for finding in findings) else 0)
    points = examine_points(folder)
    facts = _facts(config, content, points)
    outdated = _outdated_certificates(content, points)
    if as_json:
        click.echo(json.dumps({**facts, "operating_points": _points_data(points, outdated)}))
    else:
        _print(facts, points, outdated, config.layers)


def _facts(config: MultiExitConfig, content: ModelContent, points: Examined) -> dict[str, Any]:
    """Return what a folder holds beside its operating points, from the heads of its files."""
    facts: dict[str, Any] = {
        "backbone": config.backbone.model_type,
        "layers": config.backbone.num_hidden_layers,
        "exit_layers": config.exit_layers,
        "head": config.head,
        "pooling": config.pooling,
        "problem_type": config.problem_type,
        "labels": [config.id2label[number] for number in range(config.num_labels)],
        "parameters": content.parameters,
    }
    for name in ("own_head", "bypass", "certainty", "memory", "token_exit"):
        if value := getattr(config, name):
            facts[name] = value
    if config.lexical is not None:
        fresh = {name: point for name, (point, reason) in points.items() if reason is None}
        read_by = [name for name, point in fresh.items() if 0 in point.layers_read(config.layers)]
        facts["lexical"] = {**config.lexical, "read_by": read_by}
    paths = [content.folder / name for name in GRAPHS.values()]
    if graphs := [_graph(path, content, config) for path in paths if path.exists()]:
        facts["graphs"] = graphs
    default = points.get(DEFAULT, (None, None))
    return {**facts, **_engines(content.folder, default[0] if default[1] is None else None)}


def _engines(folder: Path, point: OperatingPoint | None) -> dict[str, Any]:
    """Return which engine "auto" takes for a point on this machine, and the cost tables that were measured on it."""
    from offramp.inference.choose_engine import choose_engine, costs_here
    from offramp.types.costs_file import COSTS_FILE, read_costs

    here, saved = costs_here(folder), read_costs(folder)
    choices = {
        size: choose_engine(folder, point, batch_size=size) for size in sorted({1, *(t.batch_size for t in here)})
    }
    facts: dict[str, Any] = {"auto": {str(size): asdict(choice) for size, choice in choices.items()}}
    if here:
        facts["costs"] = [asdict(table) for table in here]
    if saved is None:
        facts["costs_unused"] = f"{COSTS_FILE} is of other weights"
    elif len(saved) > len(here):
        facts["costs_unused"] = f"{len(saved) - len(here)} of other machines"
    return facts


def _graph(path: Path, content: ModelContent, config: MultiExitConfig) -> str:
    """Return an exported file with the policy that it runs, its exits if they are fewer, and why it must not run."""
    about = json.loads(read_metadata(path)[ABOUT])
    exits = "" if about["layers"] == config.layers else f", exits at layers {layers_text(about['layers'])}"
    reason = stale(path, content)
    name = path.relative_to(content.folder).as_posix()
    return f"{name} ({policy_text(about['policy'])}{exits})" + (f", stale: {reason}" if reason else "")


def _outdated_certificates(content: ModelContent, points: Examined) -> list[str]:
    """Return the points whose certificate is of other weights than the folder's."""
    outdated = []
    for name, (point, reason) in points.items():
        tied = point.fingerprint is not None and point.fingerprint.content is not None
        certificate = point.certificate or point.agreement
        if certificate and (reason or (not tied and certificate.weights not in (None, content.file_digest))):
            outdated.append(name)
    return outdated


def _points_data(points: Examined, outdated: list[str]) -> dict[str, Any]:
    data = {name: point.to_json() for name, (point, _) in points.items()}
    for name, (_, reason) in points.items():
        if reason is not None:
            data[name]["stale"] = f"chosen for {reason}"
    for name in outdated:
        for kind in ("certificate", "agreement"):
            if data[name].get(kind):
                data[name][kind]["void"] = "the weights changed"
    return data


def _lexical_text(lexical: Mapping[str, Any]) -> str:
    """Return the sizes of the lexical exit, the rows that fitted it, and the points that read it."""
    grams = {1: "single tokens", 2: "1- and 2-grams of tokens"}.get(lexical["ngrams"], "1- to 3-grams of tokens")
    fitted = f"fitted on {lexical['fitted_rows']:,} different rows" if lexical["fitted_rows"] else "not fitted"
    sizes = f"{grams}, {lexical['buckets']:,} buckets, rank {lexical['rank']}"
    return f"exit at layer 0: {sizes}, {fitted}; read by {', '.join(lexical['read_by']) or 'no point'}"


def _costs_text(table: CostTable) -> str:
    """Return what a table was measured with, and its times."""
    return f"{table.describe()}: {table.ms[0]:.3g} to {table.ms[-1]:.3g} ms a sample"


def _words(name: str, fact: Any) -> list[str]:
    """Return a fact in lines."""
    if name == "lexical":
        return [_lexical_text(fact)]
    if name == "auto":
        return list(dict.fromkeys(f"{choice['engine']}: {choice['reason']}" for choice in fact.values()))
    if name == "costs":
        return [_costs_text(CostTable(**table)) for table in fact]
    return [", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)]


def _print(facts: Mapping[str, Any], points: Examined, outdated: list[str], layers: Sequence[int]) -> None:
    from offramp.report.tables import point_text

    for name, fact in facts.items():
        for number, line in enumerate(_words(name, fact)):
            click.echo(f"{'' if number else name:<14}{line}")
    for name, (point, reason) in points.items():
        click.echo(f"\noperating point {name!r}: {point_text(point, layers if reason is None else None)}")
        if reason is not None:
            click.echo(f"  stale: chosen for {reason}; `offramp calibrate` chooses it anew")
        if name in outdated:
            click.echo("  void: the weights changed")
