"""`offramp calibrate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.calibration.prepare import prepare_policy
from offramp.cli.options import (
    FOLDER,
    POLICY_PARAMETERS,
    column_options,
    columns_of,
    json_option,
    policy_options,
    read_trace,
    scored_options,
    silence_transformers,
)
from offramp.cli.points import add_ladder, add_points, calibrated, certified, laddered, print_scores
from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import GRAPHS
from offramp.policies.registry import FITTED
from offramp.types.operating_point import DEFAULT

if TYPE_CHECKING:
    from offramp.types.cost_table import CostTable
    from offramp.types.operating_point import OperatingPoint

TARGETS = ("max_drop", "speedup", "agreement", "latency_ms")


@click.command()
@click.argument("folder", type=FOLDER)
@scored_options("validation")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Keep at least (1 - this) of the full model's score.")
@click.option("--speedup", type=click.FloatRange(min=1), help="Layers of the full model over mean exit layer.")
@click.option("--agreement", type=click.FloatRange(0, 1), help="Share of rows with the full model's answer.")
@click.option("--latency-ms", type=click.FloatRange(0, min_open=True), help="Mean time of a row, on this machine.")
@click.option("--ladder", is_flag=True, help="Several points, from full depth down to 4x; see below.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Promise --max-drop, --agreement or a ladder with this probability, e.g. 0.95.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="For --latency-ms: rows at once.  [default: 1]")
@click.option("--name", help="Under which the point is saved with the model.  [default: default]")
@click.option("--hold-back", metavar="safe:0.2", help="Classes that leave later, by so much of the score.")
@click.option("--per-exit", is_flag=True, help="A threshold for each exit: a deep one's word counts for more.")
@click.option("--temperature", is_flag=True, help="Fit a temperature for each exit first.")
@policy_options
@column_options
@json_option
def calibrate(
    folder: Path,
    ladder: bool,
    confidence: float | None,
    name: str | None,
    policy: str | None,
    per_exit: bool,
    temperature: bool,
    hold_back: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Choose where to leave, and save the operating point with the model.

    With --confidence the target holds for rows drawn like the data, and a certificate is saved: accuracy stays at
    least (1 - MAX_DROP) of the full model's, or AGREEMENT of the answers are its own. Where there are too few rows for
    that the point stays at full depth, and says how many are needed.

    --latency-ms times every exit with the engine, on the texts of --data and on this machine. In batches a run takes
    longer than that says, because who stays makes small ones.

    --ladder saves the points full, keep-99.5, keep-99, keep-98 (percent of the full model's score), 2x and 4x (fewer
    layers), from slow to fast, without those that are no faster than another. With --confidence the keep-... hold all
    at once.

    Where nothing is said of the policy and no confidence asked for, classes get a threshold for each exit (--per-exit),
    and a regression gets the policy consistency. The policies consistency and gain, temperatures, and with --confidence
    what --per-exit needs, are fitted on a random half of the rows, and the threshold is chosen on the other half.

    \b
    offramp calibrate model --data validation.csv --max-drop 0.01
    offramp calibrate model --data validation.csv --max-drop 0.02 --confidence 0.95 --name sure
    offramp calibrate model --data validation.csv --latency-ms 5 --engine onnx --name quick
    offramp calibrate model --data validation.csv --ladder
    offramp calibrate model --data validation.csv --max-drop 0.01 --per-exit
    offramp calibrate model --data validation.csv --max-drop 0.01 --policy consistency
    offramp calibrate model --data validation.csv --agreement 0.99 --hold-back safe:0.2
    offramp calibrate model --trace trace.safetensors --policy pcee --patience 2 --speedup 2 --name fast
    """
    target = _target(ladder, confidence, name, given)
    if (temperature or per_exit) and policy in FITTED:
        raise click.UsageError(f"--policy {policy} has a scale of its own; leave out --temperature and --per-exit")
    if temperature and per_exit:
        raise click.UsageError("--temperature and --per-exit both put the exits on one scale; choose one")
    silence_transformers()
    from offramp.policies.fitting import fit_default_policy

    trace = read_trace(folder, given)
    parameters = {key: given[key] for key in POLICY_PARAMETERS if given[key] is not None}
    if hold_back is not None:
        parameters["offsets"] = _offsets_of(folder, hold_back)
    if not (policy or parameters or temperature or per_exit or confidence):
        rule, trace = fit_default_policy(trace)
    else:
        rule, trace = prepare_policy(trace, policy, parameters, temperature, per_exit, apart=confidence is not None)
    cost = _timed(folder, given) if "latency_ms" in target else None
    if ladder:
        points = laddered(folder, trace, rule, given["metric"], confidence)
    elif confidence is None:
        points = {name or DEFAULT: calibrated(trace, rule, target, given["metric"], cost)}
    else:
        points = {name or DEFAULT: certified(folder, trace, rule, target, confidence)}
    (add_ladder if ladder else add_points)(folder, points)
    if given["data"] is not None and given["engine"] in GRAPHS:
        _tell_other_policy(folder, given["engine"], next(iter(points.values())))
    print_scores(as_json, trace, points, given["metric"], cost)
    if not as_json:
        _tell_promises(points, confidence)


def _target(ladder: bool, confidence: float | None, name: str | None, given: Mapping[str, Any]) -> dict[str, float]:
    """What is asked for: one target, or none for a ladder.

    Raises:
        UsageError: options that do not go together.
    """
    target = {key: given[key] for key in TARGETS if given[key] is not None}
    asked = ", ".join(f"--{key.replace('_', '-')}" for key in TARGETS)
    if ladder and (target or name is not None):
        raise click.UsageError(f"--ladder has targets and names of its own; leave out {asked} and --name")
    if not ladder and len(target) != 1:
        raise click.UsageError(f"give exactly one of {asked}, or --ladder")
    promised = ladder or not {"speedup", "latency_ms"} & set(target)
    if confidence is not None and not (promised and given["metric"] in (None, "accuracy")):
        raise click.UsageError(
            "--confidence goes with --max-drop and --ladder, which are then of accuracy, or with --agreement"
        )
    if "latency_ms" in target and given["data"] is None:
        raise click.UsageError("--latency-ms times the texts of --data; a trace has none")
    if "latency_ms" not in target and given["batch_size"] is not None:
        raise click.UsageError("--batch-size goes with --latency-ms alone")
    return target


def _timed(folder: Path, given: Mapping[str, Any]) -> CostTable:
    """What each exit takes on the texts of --data."""
    from offramp.bench.cost_table import measure_costs
    from offramp.data.examples import read_rows

    rows = read_rows(given["data"], columns_of(given), split=given["split"], labelled=False)
    cost = measure_costs(folder, [row.text for row in rows], given["engine"], batch_size=given["batch_size"] or 1)
    click.echo(f"timed: {cost.describe()}", err=True)
    each = ", ".join(f"{layer}: {ms:.2f}" for layer, ms in zip(cost.layers, cost.ms, strict=True))
    click.echo(f"ms a sample that leaves behind layer {each}", err=True)
    return cost


def _tell_other_policy(folder: Path, engine: str, point: OperatingPoint) -> None:
    """Print a line where the graph does not run the policy of a new point."""
    from offramp.inference.load_engine import load_engine

    try:
        load_engine(folder, engine).check(point)
    except InvalidInput as error:
        click.echo(f"{engine} cannot run it yet: {error}", err=True)


def _tell_promises(points: Mapping[str, OperatingPoint], confidence: float | None) -> None:
    """The certificates in words, with names where there are several."""
    promised = {name: point.certificate.describe() for name, point in points.items() if point.certificate is not None}
    for name, words in promised.items():
        click.echo(f"\n{words}" if len(points) == 1 else f"\n{name}: {words}")
    if len(promised) > 1:
        click.echo(f"\nall of these at once with {confidence:.4g} confidence")


def _offsets_of(folder: Path, told: str) -> tuple[float, ...]:
    """What each class of the model in a folder is held back by, from "safe:0.2,other:0.1"."""
    from offramp.model.hub import load_config

    config = load_config(folder)
    names = [config.id2label[number] for number in range(config.num_labels)]
    numbers = dict.fromkeys(names, 0.0)
    for pair in told.split(","):
        name, colon, number = pair.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not colon or not math.isfinite(value):
            raise click.UsageError(f"--hold-back takes classes and numbers such as safe:0.2; got {pair!r}")
        if name not in numbers:
            raise click.UsageError(f"--hold-back: the model has no class {name!r}; it has: {', '.join(names)}")
        numbers[name] = value
    return tuple(numbers.values())
