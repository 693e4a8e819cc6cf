"""`offramp record` and `offramp calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.commands.options import (
    FILE,
    FOLDER,
    POLICY_PARAMETERS,
    column_options,
    columns_of,
    engine_option,
    json_option,
    policy_options,
    quiet,
    read_trace,
    scored_options,
)
from offramp.commands.points import calibrated, certified, policy_for, save_point, tell
from offramp.registry import FITTED

if TYPE_CHECKING:
    from offramp.policies.base import Policy
    from offramp.values import Trace


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help="csv, tsv, jsonl, parquet, or a data set's name.")
@click.option("-o", "--output", type=FILE, required=True, help="Where the trace goes, e.g. trace.safetensors.")
@click.option("--split", default="validation", show_default=True, help="Of a named data set.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@engine_option
@column_options
@json_option
def record(
    folder: Path, data: str, output: Path, split: str, batch_size: int, engine: str, as_json: bool, **given: Any
) -> None:
    """Run every layer on labelled data and keep what every exit said.

    \b
    offramp record model --data validation.csv -o trace.safetensors
    """
    quiet()
    from offramp.tracing import record as record_trace

    trace = record_trace(folder, data, engine, columns=columns_of(given), split=split, batch_size=batch_size)
    trace.save(output)
    shape = {
        "exits": trace.depth,
        "rows": len(trace),
        "outputs": trace.logits.shape[-1],
        "trace": str(output),
    }
    click.echo(json.dumps(shape) if as_json else f"{output}: {len(trace)} rows x {trace.depth} exits")


@click.command()
@click.argument("folder", type=FOLDER)
@scored_options("validation")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Keep at least (1 - this) of the full model's score.")
@click.option("--speedup", type=click.FloatRange(min=1), help="Layers of the full model over mean exit layer.")
@click.option("--agreement", type=click.FloatRange(0, 1), help="Share of rows with the full model's answer.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Promise --max-drop or --agreement with this probability, e.g. 0.95.",
)
@click.option("--name", default="default", show_default=True, help="Under which the point is saved with the model.")
@click.option("--per-exit", is_flag=True, help="A threshold for each exit: a deep one's word counts for more.")
@click.option("--temperature", is_flag=True, help="Fit a temperature for each exit first.")
@policy_options
@column_options
@json_option
def calibrate(
    folder: Path,
    confidence: float | None,
    name: str,
    policy: str | None,
    per_exit: bool,
    temperature: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Choose where to leave, and save the operating point with the model.

    With --confidence the target holds for rows drawn like the data, and a certificate is saved: accuracy stays at
    least (1 - MAX_DROP) of the full model's, or AGREEMENT of the answers are its own. Where there are too few rows for
    that the point stays at full depth, and says how many are needed.

    The policies consistency and gain, temperatures, and with --confidence what --per-exit needs, are fitted on a random
    half of the rows, and the threshold is chosen on the other half.

    \b
    offramp calibrate model --data validation.csv --max-drop 0.01
    offramp calibrate model --data validation.csv --max-drop 0.02 --confidence 0.95 --name sure
    offramp calibrate model --data validation.csv --max-drop 0.01 --per-exit
    offramp calibrate model --data validation.csv --max-drop 0.01 --policy consistency
    offramp calibrate model --trace trace.safetensors --policy pcee --patience 2 --speedup 2 --name fast
    """
    quiet()
    target = {key: given[key] for key in ("max_drop", "speedup", "agreement") if given[key] is not None}
    if len(target) != 1:
        raise click.UsageError("give exactly one of --max-drop, --speedup, --agreement")
    if (temperature or per_exit) and policy in FITTED:
        raise click.UsageError(f"--policy {policy} has a scale of its own; leave out --temperature and --per-exit")
    if temperature and per_exit:
        raise click.UsageError("--temperature and --per-exit both put the exits on one scale; choose one")
    if confidence is not None and ("speedup" in target or given["metric"] not in (None, "accuracy")):
        raise click.UsageError("--confidence goes with --max-drop, which is then of accuracy, or with --agreement")
    trace = read_trace(folder, given)
    parameters = {key: given[key] for key in POLICY_PARAMETERS if given[key] is not None}
    if temperature or policy in FITTED:
        fitted, trace = _fitted(trace, policy if policy in FITTED else None)
        parameters |= fitted
    if per_exit:
        fitted, trace = _lines(trace, policy_for(trace, policy, parameters), apart=confidence is not None)
        parameters |= fitted
    if confidence is None:
        point = calibrated(trace, policy, parameters, target, given["metric"])
    else:
        point = certified(folder, trace, policy, parameters, target, confidence)
    save_point(folder, name, point)
    tell(as_json, trace, {name: point}, given["metric"])
    if point.certificate is not None and not as_json:
        click.echo(f"\n{point.certificate.words()}")


def _fitted(trace: Trace, policy: str | None) -> tuple[dict[str, Any], Trace]:
    """Parameters fitted on a random half of the rows, of a policy or else temperatures, and the other half."""
    from offramp.fitting import fit_policy, fit_temperatures
    from offramp.registry import policy_data

    ours, rest = _halves(trace, policy or "temperatures")
    fitted = fit_temperatures(ours) if policy is None else policy_data(fit_policy(policy, ours))
    return {key: value for key, value in fitted.items() if key != "name"}, rest


def _lines(trace: Trace, policy: Policy, apart: bool) -> tuple[dict[str, Any], Trace]:
    """What puts a policy's exits on one scale, and the rows that choose the threshold: the same or, apart, others."""
    from offramp.fitting import fit_lines

    ours, rest = _halves(trace, "thresholds for each exit") if apart else (trace, trace)
    return fit_lines(policy, ours), rest


def _halves(trace: Trace, what: str) -> tuple[Trace, Trace]:
    """Two random halves of the rows: to fit, and to choose the threshold."""
    from offramp.fitting import halves

    ours, rest = halves(trace)
    click.echo(f"{what} fitted on {len(ours)} rows, the threshold chosen on the other {len(rest)}", err=True)
    return ours, rest
