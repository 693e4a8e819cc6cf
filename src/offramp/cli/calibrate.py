"""`offramp calibrate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.from_audit import save_proposed
from offramp.cli.options import (
    FILE,
    FOLDER,
    POLICY_PARAMETERS,
    SCORE,
    Number,
    check_data_or_trace,
    check_metric_of,
    class_names,
    column_options,
    json_option,
    policy_options,
    read_data,
    read_trace,
    reading_options,
    scored_options,
    silence_transformers,
)
from offramp.cli.points import (
    add_ladder,
    add_points,
    print_certificates,
    print_scores,
    refuse_other_weights,
    saved_points,
    warn_if_not_exported,
)
from offramp.policies.registry import FITTED
from offramp.types.exit_names import exit_time
from offramp.types.graph_file import GRAPHS
from offramp.types.operating_point import DEFAULT

if TYPE_CHECKING:
    from offramp.data.examples import Examples
    from offramp.data.rows import Text
    from offramp.types.cost_table import CostTable

TARGETS = ("max_drop", "speedup", "agreement", "latency_ms")
BATCH_SIZE = "Time the exits in batches of so many rows, and read those that pay.  [default: 1 with --latency-ms]"
HOLD_BACK = "Lower this class's score by AMOUNT, so that it leaves later, e.g. safe:0.2."


@click.command()
@click.argument("folder", type=FOLDER)
@scored_options("validation", f"{SCORE}  [default: accuracy, or pearson]")
@click.option("--max-drop", type=Number(0, 1), help="Keep at least (1 - this) of the full model's score.")
@click.option("--speedup", type=Number(min=1), help="Mean cost of the full model over mean cost at the point.")
@click.option("--agreement", type=Number(0, 1), help="Share of rows with the full model's answer.")
@click.option(
    "--latency-ms", type=Number(0, min_open=True), help="Mean time of a row in milliseconds, on this machine."
)
@click.option("--ladder", is_flag=True, help="Several points, from full depth down to 4x; see above.")
@click.option(
    "--confidence",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Certify --max-drop, --agreement or a ladder with this probability, e.g. 0.95.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help=BATCH_SIZE)
@click.option("--name", help="Name of the saved point.  [default: default]")
@click.option("--from-audit", type=FILE, help="Save what a server proposed after drift; --name alone goes with it.")
@click.option("--hold-back", metavar="CLASS:AMOUNT", help=HOLD_BACK)
@click.option("--per-exit", is_flag=True, help="A threshold for each exit: the same score means more at a deep exit.")
@click.option("--temperature", is_flag=True, help="Fit a temperature for each exit first.")
@click.option("--label-thresholds", is_flag=True, help="For several labels: choose a threshold for each, by its F1.")
@policy_options
@column_options
@reading_options
@json_option
def calibrate(
    folder: Path,
    ladder: bool,
    confidence: float | None,
    name: str | None,
    policy: str | None,
    per_exit: bool,
    temperature: bool,
    label_thresholds: bool,
    hold_back: str | None,
    from_audit: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose the thresholds, and save the operating point with the model.

    With --confidence the target holds for rows drawn like the data, and a certificate is saved: accuracy stays at
    least (1 - MAX_DROP) of the full model's, or AGREEMENT of the answers are the full model's. With too few rows for
    that the point stays at full depth, and its certificate names how many rows are needed.

    --latency-ms and --batch-size time every exit with the engine, on the texts of --data and on this machine, and what
    reading an exit takes. Then the exits are read that save more time than chance at the target; the same rows choose
    them. A graph must be exported again to leave the others out. Times are of full batches: where the rows that stay
    make small batches, a run takes longer. The times are kept in costs.json, where the engine "auto" looks for the
    fastest.

    --ladder saves the points full, keep-99.5, keep-99, keep-98 (percent of the full model's score), 2x and 4x
    (cheaper), from slow to fast, without those that are no faster than another. With --confidence all keep-... points
    hold at once. All points but full get a second certificate: how often they answer otherwise than the full model.
    `offramp serve --ladder` watches it; these hold at once too, with the same confidence, or 0.95 without it. They take
    rows that fitted and chose nothing else. Without options for the policy, policy and exits are those of the point
    "default", so that one exported graph runs both.

    Without options for the policy and without --confidence, classes get a threshold for each exit (--per-exit), and a
    regression gets the policy consistency. The policies consistency and gain, and temperatures, are fitted on a random
    half of the rows, and the threshold is chosen on the other half. With --confidence the numbers of --per-exit are
    those that `offramp train` fitted on rows of its own (lines.json), or are fitted on a half if there are none.

    A target holds on the data, and where few rows choose, others lose more: `offramp train` chooses its default point
    with a standard error to spare. A lexical exit is read where these rows show that it saves something, or where
    --speedup or --latency-ms is out of reach without it, else not; with --confidence rows that are fitted on show it,
    and without such rows it is read.

    --label-thresholds chooses, with several labels, the probability above which each is part of an answer, in place of
    0.5: the one with the best F1 at full depth. The score is then macro-f1 (or --metric f1), the full model answers
    with the same thresholds, and a label with fewer than 20 rows keeps 0.5. With --confidence half of the rows choose
    them and the other half certifies.

    --from-audit takes the proposal that `offramp serve --ladder` wrote after drift. Where enough rows were audited
    since, it moves the thresholds of the point that drifted until they hold its certificate on these rows; else it
    takes the thresholds of the proposal. The point is saved under the name of the one that drifted.

    \b
    offramp calibrate model --data validation.csv --max-drop 0.01
    offramp calibrate model --data validation.csv --max-drop 0.02 --confidence 0.95 --name sure
    offramp calibrate model --data validation.csv --latency-ms 5 --engine onnx --name quick
    offramp calibrate model --data validation.csv --max-drop 0.01 --engine onnx-int8 --batch-size 1
    offramp calibrate model --data validation.csv --ladder
    offramp calibrate model --data validation.csv --max-drop 0.01 --per-exit
    offramp calibrate model --data validation.csv --max-drop 0.01 --policy consistency
    offramp calibrate model --data validation.csv --agreement 0.99 --hold-back safe:0.2
    offramp calibrate model --data validation.csv --max-drop 0.01 --label-thresholds
    offramp calibrate model --trace trace.safetensors --policy pcee --patience 2 --speedup 2 --name fast
    offramp calibrate model --from-audit model/proposals/20261128T093000Z-keep-99.json
    """
    if from_audit is not None:
        silence_transformers()
        save_proposed(folder, from_audit, name, as_json)
        return
    targets = _targets(ladder, confidence, name, options)
    if (temperature or per_exit) and policy in FITTED:
        raise click.UsageError(f"--policy {policy} has a scale of its own; leave out --temperature and --per-exit")
    if temperature and (per_exit or label_thresholds):
        other = "--per-exit" if per_exit else "--label-thresholds"
        raise click.UsageError(f"--temperature and {other} both change what a probability means; choose one")
    metric = _metric(label_thresholds and confidence is None, options["metric"])
    silence_transformers()
    from offramp.calibration.ladder_policy import prepare_ladder
    from offramp.calibration.prepare import prepare_policy
    from offramp.calibration.saved_lines import read_saved_lines
    from offramp.model.hub import load_config
    from offramp.types.operating_point import Target

    # 1) the times, the trace, and the policy with its numbers
    check_data_or_trace(options)
    check_metric_of(folder, options["metric"], for_thresholds=ladder or "max_drop" in targets)
    labelled = ladder or "max_drop" in targets or options["metric"] is not None or label_thresholds
    data = None if options["data"] is None else read_data(folder, options, labelled=labelled)
    timed = "latency_ms" in targets or options["batch_size"] is not None
    cost = _measure_costs(folder, data, options) if data is not None and timed else None
    trace = read_trace(folder, options, data)
    parameters = {key: options[key] for key in POLICY_PARAMETERS if options[key] is not None}
    if policy is not None:
        parameters["name"] = policy
    if hold_back is not None:
        parameters["offsets"] = _parse_offsets(folder, hold_back)
    prepared = None
    if ladder and cost is None and not (parameters or temperature or per_exit):
        default, lines = saved_points(folder).get(DEFAULT), read_saved_lines(folder)
        prepared = prepare_ladder(
            trace,
            default,
            lines,
            load_config(folder).layers,
            confidence=confidence,
            label_thresholds=label_thresholds,
        )
    prepared = prepared or prepare_policy(
        trace,
        parameters,
        temperature=temperature,
        per_exit=per_exit,
        confidence=confidence,
        label_thresholds=label_thresholds,
        saved_lines=read_saved_lines(folder) if per_exit and confidence is not None else None,
        target=None if ladder else Target(**targets),
        metric=metric,
        cost=cost,
    )
    if prepared.report:
        click.echo(prepared.report, err=True)
    # 2) the points
    if confidence is not None:
        refuse_other_weights(folder, trace)
    if ladder:
        points = prepared.ladder(metric)
        add_ladder(folder, points)
    else:
        points = {name or DEFAULT: prepared.calibrate(Target(**targets), metric, cost)}
        add_points(folder, points)
    # 3) the report
    if options["data"] is not None and options["engine"] in GRAPHS:
        warn_if_not_exported(folder, options["engine"], next(iter(points.values())))
    print_scores(as_json, prepared.rows, points, metric, cost, class_names(folder))
    if not as_json:
        print_certificates(points, confidence)


def _targets(ladder: bool, confidence: float | None, name: str | None, options: Mapping[str, Any]) -> dict[str, float]:
    """Return the one target by name, or none for a ladder.

    Raises:
        UsageError: options that do not go together.
    """
    targets = {key: options[key] for key in TARGETS if options[key] is not None}
    names = ", ".join(f"--{key.replace('_', '-')}" for key in TARGETS)
    if ladder and (targets or name is not None):
        raise click.UsageError(f"--ladder has targets and names of its own; leave out {names} and --name")
    if not ladder and len(targets) != 1:
        raise click.UsageError(f"give exactly one of {names}, or --ladder")
    certifiable = ladder or not {"speedup", "latency_ms"} & set(targets)
    if confidence is not None and not (certifiable and options["metric"] in (None, "accuracy")):
        raise click.UsageError("--confidence goes with --max-drop and --ladder of accuracy, or with --agreement")
    if confidence is not None and {0.0, 1.0} & set(targets.values()):
        raise click.UsageError("--confidence takes targets above 0 and below 1: no rows show that nothing is ever lost")
    if "latency_ms" in targets and options["data"] is None:
        raise click.UsageError("--latency-ms times the texts of --data; a trace has none")
    if options["batch_size"] is not None and options["data"] is None:
        raise click.UsageError("--batch-size times the texts of --data; a trace has none")
    return targets


def _metric(label_thresholds: bool, metric: str | None) -> str | None:
    """Return the metric of the points; with label thresholds one that they are chosen for.

    Raises:
        UsageError: another one.
    """
    from offramp.calibration.prepare import LABEL_METRICS

    if not label_thresholds:
        return metric
    if metric not in (None, *LABEL_METRICS):
        raise click.UsageError(f"--label-thresholds goes with --metric {' or '.join(LABEL_METRICS)}")
    return metric or LABEL_METRICS[0]


def _measure_costs(folder: Path, data: Examples | list[Text], options: Mapping[str, Any]) -> CostTable:
    """Time every exit on the texts of --data, print the times, and keep them with a local folder's model."""
    from offramp.bench.cost_table import measure_costs
    from offramp.types.costs_file import read_costs, save_costs

    if folder.is_dir():
        read_costs(folder)  # before anything long is done
    texts = data if isinstance(data, list) else data.texts
    threads = {name: options[name] for name in ("threads", "workers")}
    cost = measure_costs(folder, texts, options["engine"], batch_size=options["batch_size"] or 1, **threads)
    if folder.is_dir():
        save_costs(folder, [cost])
    click.echo(f"timed: {cost.describe()}", err=True)
    times = ", ".join(f"{exit_time(layer)}: {ms:.3g}" for layer, ms in zip(cost.layers, cost.ms, strict=True))
    click.echo(f"ms a sample that leaves {times}", err=True)
    if cost.exit_ms is None:
        click.echo(
            "what reading an exit takes is not known for this engine: all exits behind a layer are read", err=True
        )
    return cost


def _parse_offsets(folder: Path, text: str) -> tuple[float, ...]:
    """Return the offset of each class of a folder's model, from "safe:0.2,other:0.1"; 0 for the others."""
    from offramp.model.hub import load_config

    config = load_config(folder)
    names = [config.id2label[number] for number in range(config.num_labels)]
    offsets = dict.fromkeys(names, 0.0)
    for pair in text.split(","):
        name, colon, number = pair.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not colon or not math.isfinite(value):
            raise click.UsageError(f"--hold-back takes classes and numbers such as safe:0.2; got {pair!r}")
        if name not in offsets:
            raise click.UsageError(f"--hold-back: the model has no class {name!r}; it has: {', '.join(names)}")
        offsets[name] = value
    return tuple(offsets.values())
