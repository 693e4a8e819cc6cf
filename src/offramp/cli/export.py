"""`offramp export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import (
    FOLDER,
    POLICY_PARAMETERS,
    SOURCE,
    column_options,
    columns_of,
    json_option,
    policy_options,
    reading_of,
    reading_options,
    silence_transformers,
)
from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import weights_digest
from offramp.policies.registry import policy_text
from offramp.types.exit_names import layers_text
from offramp.types.graph_file import GRAPHS, stale
from offramp.types.model_content import ModelContent

if TYPE_CHECKING:
    from offramp.inference.export import ExportReport

ONNX = ("onnx", "onnxruntime", "onnxscript")
DATA = f"Labelled data of the model's own kind, to compare the file with torch on: {SOURCE}."


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--int8", is_flag=True, help="Write model.int8.onnx, whose encoder multiplies 8-bit integers.")
@click.option("--openvino", is_flag=True, help="Write openvino/model.xml, for OpenVINO; its --int8 needs --data.")
@click.option("--data", metavar="FILE", help=DATA)
@click.option("--split", default="validation", show_default=True, help="Split of a named data set.")
@policy_options
@column_options
@reading_options
@json_option
def export(
    folder: Path,
    int8: bool,
    openvino: bool,
    data: str | None,
    split: str,
    policy: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the model as one ONNX graph with early exits, and check it against torch.

    The graph holds the exits that the folder's operating points read, or all of the model's where there are no points.
    It runs the policy of the operating point "default", else of a ladder, or that of --policy. The file also holds the
    policies of the other operating points and the default policy; an existing graph changes to a policy that it holds
    in seconds.
    Thresholds are an input of the graph. Its weights are written to a second file beside it (.data).

    In int8 answers are equal to the last bit in any batch, order and padding. The scales of activations are constants,
    from ranges that `offramp train` leaves beside the weights, else from the texts of --data. With --data the file's
    answers and score are compared with those of torch.

    With --openvino the graph is in OpenVINO's format and holds one policy. It runs in bf16 where the processor has it,
    with --int8 in int8; exits and decisions are in float32. Answers may then depend on the batch: the report says for
    how many rows they do.

    \b
    offramp export model
    offramp export model --int8 --data validation.csv
    offramp export model --policy entropy
    offramp export model --openvino --int8 --data validation.csv
    """
    _refuse_without(ONNX, "onnx")
    parameters = {key: options[key] for key in POLICY_PARAMETERS if options[key] is not None}
    if parameters and policy is None:
        raise click.UsageError("a policy's parameters need --policy")
    wanted = {"name": policy, **parameters} if policy else None
    read: dict[str, Any] = {"columns": columns_of(options), "reading": reading_of(options), "split": split}
    if openvino:
        _to_openvino(folder, wanted, as_json, int8=int8, dataset=data, **read)
        return
    path = folder / GRAPHS["onnx-int8" if int8 else "onnx"]
    if wanted and data is None and path.exists() and stale(path, ModelContent(folder)) is None:
        from offramp.inference.onnx.assemble import switch_policy

        if runs := switch_policy(path, weights_digest(folder), wanted):
            switched = {"path": str(path), "policy": runs}
            click.echo(json.dumps(switched) if as_json else f"{path} runs {policy_text(runs)} now")
            return
    silence_transformers()
    from offramp.inference.export import export as write

    report = write(folder, wanted, int8=int8, dataset=data, **read)
    if as_json:
        _print_json(report)
        return
    held = f"; holds {', '.join(map(policy_text, report.policies))}"
    _print(report, held)


def _to_openvino(folder: Path, policy: dict[str, Any] | None, as_json: bool, **options: Any) -> None:
    """Write the graph for OpenVINO, and print the report."""
    _refuse_without(("openvino", "nncf") if options["int8"] else ("openvino",), "openvino")
    silence_transformers()
    from offramp.inference.export_openvino import BATCH, export_openvino

    report = export_openvino(folder, policy, **options)
    if as_json:
        _print_json(report)
        return
    _print(report, "")
    change = report.between_batches
    same = "" if change.labels is None else f"{change.labels:.2%} of the answers and "
    click.echo(
        f"{report.engine}: alone and in batches of {BATCH} {same}{change.exit_layers:.2%} of the exit layers the same, "
        f"logits at most {change.difference:.2g} apart ({change.rows} rows)"
    )


def _print_json(report: ExportReport) -> None:
    click.echo(json.dumps({**asdict(report), "path": str(report.path)}))


def _print(report: ExportReport, policies: str) -> None:
    click.echo(f"{report.path}: {report.bytes / 1e6:.1f} MB in {report.seconds:.0f} s")
    click.echo(f"runs {policy_text(report.policy)}{policies}")
    held = f"holds the exits at layers {layers_text(report.layers)}"
    unread = "" if not report.left_out else f", not those at {layers_text(report.left_out)}, which no point reads"
    click.echo(held + unread)
    if report.activations is not None:
        click.echo(f"scales of activations from {report.activations['rows']} rows ({report.activations['data']})")
    same = "" if report.agreement is None else f"{report.agreement:.2%} of the answers the same, "
    if report.difference is not None:
        click.echo(f"{report.rows} rows at full depth against torch: {same}logits at most {report.difference:.2g} off")
    else:
        click.echo("answers alone and in batches are equal; --data FILE compares them with those of torch")
    if report.score is not None:
        click.echo(f"{report.metric} {report.score:.4f}, torch {report.torch_score:.4f}")


def _refuse_without(packages: Sequence[str], extra: str) -> None:
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InvalidInput(f"export needs {', '.join(missing)}: pip install 'offramp[{extra}]'")
