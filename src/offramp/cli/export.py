"""`offramp export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from offramp.cli.options import (
    FOLDER,
    POLICY_PARAMETERS,
    column_options,
    columns_of,
    json_option,
    policy_options,
    policy_text,
    silence_transformers,
)
from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import GRAPHS, weights_digest


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--int8", is_flag=True, help="Write model.int8.onnx: the encoder's weights in 8 bits.")
@click.option("--data", metavar="FILE", help="Labelled data to check the file on.  [default: the sample's texts]")
@click.option("--split", default="validation", show_default=True, help="Of a named data set.")
@policy_options
@column_options
@json_option
def export(
    folder: Path, int8: bool, data: str | None, split: str, policy: str | None, as_json: bool, **given: Any
) -> None:
    """Write the model as one ONNX graph that leaves early, checked against torch; its weights lie beside it (.data).

    The policy is that of the operating point "default" unless another is asked for. The file also holds the policies of
    the other operating points and the usual one; a graph that is there already takes one that it holds in seconds.
    Thresholds are an input of the graph.

    \b
    offramp export model
    offramp export model --int8 --data validation.csv
    offramp export model --policy entropy
    """
    _refuse_without_onnx()
    parameters = {key: given[key] for key in POLICY_PARAMETERS if given[key] is not None}
    if parameters and policy is None:
        raise click.UsageError("a policy's parameters need --policy")
    asked = {"name": policy, **parameters} if policy else None
    path = folder / GRAPHS["onnx-int8" if int8 else "onnx"]
    if asked and data is None and path.exists():
        from offramp.inference.onnx.assemble import switch_policy

        if runs := switch_policy(path, weights_digest(folder), asked):
            told = {"path": str(path), "policy": runs}
            click.echo(json.dumps(told) if as_json else f"{path} runs {policy_text(runs)} now")
            return
    silence_transformers()
    from offramp.inference.export import export as write

    checked = write(folder, asked, int8=int8, dataset=data, columns=columns_of(given), split=split)
    if as_json:
        click.echo(json.dumps({**asdict(checked), "path": str(checked.path)}))
        return
    click.echo(f"{checked.path}: {checked.bytes / 1e6:.1f} MB in {checked.seconds:.0f} s")
    click.echo(f"runs {policy_text(checked.policy)}; holds {', '.join(policy_text(each) for each in checked.policies)}")
    same = "" if checked.agreement is None else f"{checked.agreement:.2%} of the answers the same, "
    click.echo(f"{checked.rows} rows at full depth against torch: {same}logits at most {checked.difference:.2g} off")
    if checked.score is not None:
        click.echo(f"{checked.metric} {checked.score:.4f}, torch {checked.torch_score:.4f}")


def _refuse_without_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise InvalidInput(f"export needs {', '.join(missing)}: pip install 'offramp[onnx]'")
