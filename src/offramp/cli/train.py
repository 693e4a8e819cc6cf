"""`offramp demo` and `offramp train`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from offramp.cli.model_and_data import fine_tuned_with_data, finished_model, new_with_data, objective_of
from offramp.cli.options import (
    FOLDER,
    SCORE,
    Command,
    Number,
    class_names,
    column_options,
    columns_of,
    json_option,
    learning_options,
    metric_option,
    reading_of,
    reading_options,
    silence_transformers,
)
from offramp.cli.points import add_points, print_scores
from offramp.cli.processes import join_first_machine, process_count, rank
from offramp.errors import CannotReach, InvalidInput
from offramp.training.objectives.registry import OBJECTIVES

if TYPE_CHECKING:
    from offramp.data.examples import Examples
    from offramp.types.operating_point import OperatingPoint
    from offramp.types.trace import Trace

FORM_OF_EXITS = ("layers", "head", "pooling", "exit_layers", "certainty", "memory", "bypass_rank", "token_exit")
RECIPE = ("objective", "class_weights", "epochs", "batch_size", "learning_rate", "bf16", "max_length")
HEADS = ("linear", "shared_pooler", "pooler", "attention")  # offramp.model.heads has them, with torch


def exit_options(command: Command) -> Command:
    """Add the options of the exits and of their objective."""
    rank = click.option("--bypass-rank", type=click.IntRange(min=1), help="Give exits bypasses of this rank (BADGE).")
    keep = "Share of the tokens that these layers keep (MPEE)."
    lexical = "An exit before the first layer, a linear classifier on n-grams; with --freeze on a model with exits, "
    lexical += "--lexical fits this one alone.  [default: on]"
    balance = "Let rare classes count as much as frequent ones, by weights N / (classes x rows of the class)."
    for option in (
        click.option("--token-exit", metavar="2:0.7,4:0.7", help=keep),
        click.option(
            "--memory",
            type=Number(0, 1, min_open=True),
            help="Exit memory (MPEE): weight of an exit's own logits in the running mean over exits, lambda.",
        ),
        rank,
        click.option("--certainty", is_flag=True, help="Add a gate that learns each exit's certainty (BERxiT)."),
        click.option(
            "--exit-layers", metavar="2,4,6", help="Layers with an exit, the last among them.  [default: all]"
        ),
        click.option("--head", type=click.Choice(HEADS), default="linear", show_default=True),
        click.option("--lexical/--no-lexical", default=None, help=lexical),
        click.option("--freeze", is_flag=True, help="Keep a fine-tuned model as it is; only the early exits learn."),
        click.option("--class-weights", type=click.Choice(["balanced"]), help=balance),
        click.option("--objective", type=click.Choice(sorted(OBJECTIVES)), default="weighted", show_default=True),
    ):
        command = option(command)
    return command


@click.command()
@click.option("-o", "--output", type=FOLDER, default=Path("offramp-demo"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=Number(min=0, min_open=True), default=5, show_default=True)
@json_option
def demo(output: Path, seed: int, epochs: float, as_json: bool) -> None:
    """Train, calibrate and answer early on the built-in sample, in a few minutes.

    \b
    offramp demo
    """
    silence_transformers()
    from offramp.cli.demo import main_job

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        figures = main_job(output, seed, epochs)
    if as_json:
        click.echo(json.dumps(figures))


@click.command()
@learning_options
@click.option("-o", "--output", type=FOLDER, required=True, help="The model's folder.")
@click.option("--layers", type=click.IntRange(min=1), help="Keep this many of the encoder's layers.  [default: all]")
@exit_options
@click.option(
    "--max-drop",
    type=Number(0, 1),
    default=0.01,
    show_default=True,
    help="Target of the default operating point: the share of the full model's score that it may lose, with a standard "
    "error of the validation rows to spare.",
)
@metric_option(f"{SCORE} --max-drop is of this score.  [default: accuracy, or pearson]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Resume a run that was stopped, from its newest whole checkpoint.")
@column_options
@reading_options
@json_option
def train(
    train_source: str,
    validation_source: str,
    output: Path,
    max_drop: float,
    metric: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Put exits on an encoder, train them, and choose the default operating point.

    \b
    offramp train --train train.csv --validation validation.csv -o model
    offramp train --train glue/sst2 --validation glue/sst2 --backbone bert-base-uncased -o model
    offramp train --train helpdesk --validation helpdesk --label-column urgency --task regression -o model
    offramp train --train train.csv --validation dev.csv --metric f1 --class-weights balanced -o model
    offramp train --train a.csv --validation b.csv --task multi-label --label-column rude --label-column threat -o model
    offramp train --train train.csv --validation dev.csv --backbone FINE_TUNED --objective two-stage --freeze -o model
    offramp train --train train.csv --validation dev.csv --backbone WITH_EXITS --freeze --lexical -o model
    """
    if _is_finished(output, options["resume"]):
        return
    silence_transformers()
    from offramp.data.batching import Cuts
    from offramp.inference.record import record as record_trace
    from offramp.model.default_encoder import default_encoder
    from offramp.training.fit import remove_checkpoints

    # 1) training
    options["backbone"] = options["backbone"] or default_encoder()
    sources = train_source, validation_source
    finished = finished_model(options["backbone"]) if options["freeze"] and options["lexical"] else None
    if finished is None:
        data, held_out = _train_exits(*sources, output, metric, options)
    else:
        data, held_out = _fit_lexical_exit(finished, *sources, output, metric, options)
    # 2) lines for a certificate to come, and the default operating point
    if rank() == 0:
        with Cuts().counted():  # of these rows it is printed already
            _save_lines(output, data)
    group = join_first_machine()
    if rank() > 0 and group is None:
        return
    trace = record_trace(output, held_out, group=group)
    if rank() > 0:
        return
    trace = replace(trace, provenance={**trace.provenance, "data": Path(validation_source).name})
    points = _add_default_point(output, trace, max_drop, metric)
    remove_checkpoints(output)
    print_scores(as_json, trace, points, metric, names=class_names(output))


def _train_exits(
    train_source: str, validation_source: str, output: Path, metric: str | None, options: Mapping[str, Any]
) -> tuple[Examples, Examples]:
    """Train a model and save it; return the data to train on and the data to validate on."""
    from transformers import set_seed

    from offramp.evaluation.metrics import check_metric
    from offramp.model.hub import load_tokenizer
    from offramp.training.fit import fit

    objective = objective_of(options)
    set_seed(options["seed"])
    build = fine_tuned_with_data if options["freeze"] else new_with_data
    model, data, held_out = build(options["backbone"], train_source, validation_source, options)
    check_metric(metric, model.config.problem_type, model.config.num_labels, for_thresholds=True)
    tokenizer = load_tokenizer(options["backbone"])
    if options["max_length"] is not None:
        tokenizer.model_max_length = options["max_length"]
    fit(
        model,
        tokenizer,
        output,
        data,
        held_out,
        objective=objective,
        class_weights=options["class_weights"],
        resume=options["resume"],
        keep_checkpoints=True,  # a run that stops from here on is resumed as well
        num_train_epochs=options["epochs"],
        per_device_train_batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        seed=options["seed"],
        bf16=options["bf16"],
    )
    return data, held_out


def _fit_lexical_exit(
    model: Any, train_source: str, validation_source: str, output: Path, metric: str | None, options: Mapping[str, Any]
) -> tuple[Examples, Examples]:
    """Fit the exit before the first layer of a model with exits, and save the model; nothing else of it changes.

    Its operating points are kept, the default one as `WITHOUT_LEXICAL`.
    """
    from offramp.evaluation.metrics import check_metric
    from offramp.inference.record import read_for
    from offramp.model.hub import load_tokenizer, refuse_images
    from offramp.training.fit import fit_lexical_alone

    refuse_images(options["backbone"], model.config)
    if process_count() > 1:
        raise click.UsageError("--freeze --lexical fits one exit, which takes one process")
    context = click.get_current_context()
    for name in (*FORM_OF_EXITS, *RECIPE):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--freeze --lexical keeps all of a model with exits; leave out {option}")
    columns, reading = columns_of(options), reading_of(options)
    data, held_out = (
        read_for(model.config, source, columns, split, reading)
        for source, split in ((train_source, "train"), (validation_source, "validation"))
    )
    check_metric(metric, model.config.problem_type, model.config.num_labels, for_thresholds=True)
    fit_lexical_alone(model, load_tokenizer(options["backbone"]), output, data)
    return data, held_out


def _save_lines(folder: Path, data: Examples) -> None:
    """Fit lines on some rows that were trained on, and save them with the model; print why there are none."""
    from offramp.calibration.saved_lines import FIT_ROWS, fit_saved_lines, write_saved_lines
    from offramp.data.examples import subsample
    from offramp.inference.record import record as record_trace
    from offramp.model.hub import load_config, load_tokenizer
    from offramp.model.loading import load_model
    from offramp.training.held_out_logits import held_out_logits
    from offramp.types.problem_types import REGRESSION

    if data.problem_type == REGRESSION:
        return
    try:
        rows, logits = subsample(data, FIT_ROWS), None
        if load_config(folder).lexical is not None:
            rows = subsample(data, min(FIT_ROWS, max(1, len(data) // 5)))  # the others fit its twin
            logits = held_out_logits(load_model(folder), load_tokenizer(folder), data, rows)
        write_saved_lines(fit_saved_lines(record_trace(folder, rows), logits), folder)
    except InvalidInput as error:
        click.echo(f"no lines for certified thresholds at each exit: {error}", err=True)


def _add_default_point(folder: Path, trace: Trace, max_drop: float, metric: str | None) -> dict[str, OperatingPoint]:
    """Choose the default operating point on a trace, save it with the model, and return it by name.

    Where none can be chosen or saved, print why.
    """
    from offramp.calibration.cautious import to_spare_text
    from offramp.calibration.prepare import prepare_policy
    from offramp.types.operating_point import DEFAULT, Target

    points = {}
    try:
        target = Target(max_drop=max_drop)
        prepared = prepare_policy(trace, target=target, metric=metric)
        if prepared.report:
            click.echo(prepared.report, err=True)
        points[DEFAULT] = prepared.calibrate(target, metric, to_spare=True)
        click.echo(to_spare_text(max_drop, len(prepared.rows)), err=True)
        add_points(folder, points)
    except (CannotReach, InvalidInput) as error:
        click.echo(f"no default operating point, answers run at full depth: {error}", err=True)
    return points


def _is_finished(folder: Path, resume: bool) -> bool:
    """Return True, and print it, where --resume meets a finished model.

    Raises:
        InvalidInput: without --resume, a model or an unfinished run would be overwritten.
    """
    model, unfinished = (folder / "config.json").exists(), (folder / "checkpoints").exists()
    if unfinished and not resume:
        raise InvalidInput(f"{folder}: an unfinished run lies there; resume it by --resume, or choose another folder")
    if model and not resume:
        raise InvalidInput(f"{folder}: there is a model already; choose another folder")
    if resume and not unfinished:
        from offramp.training.fit import remove_checkpoints

        remove_checkpoints(folder)
        state = "training is finished" if model else "there is no unfinished run, training starts from the beginning"
        click.echo(f"{folder}: nothing to resume, {state}", err=True)
    return model and not unfinished
