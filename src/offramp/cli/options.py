"""Options that several commands share, and their evaluation."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from offramp.data.records import FORMATS
from offramp.errors import InvalidInput
from offramp.inference.engine import ENGINES
from offramp.policies.registry import POLICIES
from offramp.types.exit_names import layers_text

if TYPE_CHECKING:
    from offramp.data.columns import Columns
    from offramp.data.examples import Examples
    from offramp.data.records import Reading
    from offramp.data.rows import Text
    from offramp.model.config import MultiExitConfig
    from offramp.types.trace import Trace

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
METRICS = ("accuracy", "f1", "macro-f1", "matthews", "pearson", "spearman")  # offramp.evaluation.metrics: with torch
POLICY_PARAMETERS = ("measure", "patience", "divergence", "window", "ensemble")
SOURCE = "a csv, tsv, jsonl, json or parquet file, or a data set's name"
UNTRAINED = "Labelled data that the model was not trained on"
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
Command = TypeVar("Command", bound=Callable[..., None])


class Number(click.FloatRange):
    """A number between bounds; neither nan, which is in any range, nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number of a word."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


def column_options(command: Command) -> Command:
    """Add --text-column, --pair-column, --label-column and --label-names."""
    guessed = "[default: guessed and printed]"
    label = f"Column of the label; several times for columns of 0 and 1, one a label.  {guessed}"
    names = "Names of the classes 0, 1, ... in the data: a,b,c, or a file with a JSON list, a JSON mapping from what "
    names += "the data has to names, or a name a line.  [default: the data's own]"
    command = click.option("--label-names", metavar="A,B,C", help=names)(command)
    command = click.option("--label-column", "label_columns", multiple=True, help=label)(command)
    command = click.option("--pair-column", help=f"Column of the second text of a pair.  {guessed}")(command)
    return click.option("--text-column", help=f"Column of the text.  {guessed}")(command)


def reading_options(command: Command) -> Command:
    """Add --format, --delimiter and --encoding."""
    kind = "Kind of the data.  [default: by the file's name, else guessed and printed]"
    cells = 'What separates the cells of csv and tsv, e.g. ";" or tab.  [default: "," for csv, tab for tsv]'
    command = click.option("--encoding", help="Encoding of the data, e.g. latin-1 or utf-16.  [default: utf-8]")(
        command
    )
    command = click.option("--delimiter", help=cells)(command)
    return click.option("--format", type=click.Choice(FORMATS), help=kind)(command)


def learning_options(command: Command) -> Command:
    """Add data, encoder and recipe, for commands that train."""
    above_zero = Number(min=0, min_open=True)
    tasks = click.Choice(["classification", "multi-label", "regression"])
    encoder = (
        "A hub name or a folder: an encoder, a classifier, a model with exits, a PEFT adapter.  "
        "[default: the encoder that offramp[demo] installs]"
    )
    length = "Tokens of a text at most.  [default: the encoder's limit]"
    batch = "Rows of a step; under torchrun rows of each process."
    for option in (
        click.option("--bf16", is_flag=True, help="Train in bfloat16; faster on processors that support it."),
        click.option("--max-length", type=click.IntRange(min=2), help=length),
        click.option("--learning-rate", type=above_zero, default=1e-4, show_default=True),
        click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help=batch),
        click.option("--epochs", type=above_zero, default=5, show_default=True),
        click.option("--pooling", type=click.Choice(["first", "mean"]), default="mean", show_default=True),
        click.option("--task", type=tasks, default="classification", show_default=True),
        click.option("--backbone", help=encoder),
        click.option(
            "--validation",
            "validation_source",
            required=True,
            metavar="FILE",
            help=f"Data on which thresholds are chosen: {SOURCE}.",
        ),
        click.option(
            "--train",
            "train_source",
            required=True,
            metavar="FILE",
            help=f"Data to train on: {SOURCE}.",
        ),
    ):
        command = option(command)
    return command


def engine_option(command: Command) -> Command:
    """Add --engine, for commands that record."""
    text = "The engine that runs the model; all but torch run a graph that `offramp export` wrote."
    return click.option("--engine", type=click.Choice(ENGINES), default="torch", show_default=True, help=text)(command)


def thread_options(command: Command) -> Command:
    """Add --threads and --workers, for commands that run an engine."""
    threads = "Threads that compute a batch.  [default: 1 for a graph; for torch OMP_NUM_THREADS, or all cores]"
    workers = "Batches that are computed at the same time.  [default: for a graph as many as the cores; for torch 1]"
    command = click.option("--workers", type=click.IntRange(min=1), help=workers)(command)
    return click.option("--threads", type=click.IntRange(min=1), help=threads)(command)


def metric_option(text: str) -> Callable[[Command], Command]:
    """Return a decorator that adds --metric."""
    return click.option("--metric", type=click.Choice(METRICS), help=text)


SCORE = (
    "The score; f1 is that of the second of two classes, or of all labels together; with several labels accuracy "
    "counts the rows whose labels are all right."
)


def scored_options(split: str, score: str) -> Callable[[Command], Command]:
    """Return a decorator that adds data, an engine, --split and --metric, for commands that score a model."""

    def add(command: Command) -> Command:
        command = metric_option(score)(command)
        command = click.option("--split", default=split, show_default=True, help="Split of a named data set.")(command)
        command = engine_option(thread_options(command))
        command = click.option("--trace", type=FILE, help="Instead of --data: a file of `offramp record`.")(command)
        return click.option("--data", metavar="FILE", help=f"{UNTRAINED}: {SOURCE}.")(command)

    return add


def policy_options(command: Command) -> Command:
    """Add --policy and its parameters."""
    default = (
        "The exit rule, by name.  "
        "[default: margin, which calibrate gives a threshold for each exit; for regression, consistency]"
    )
    names = click.Choice(sorted(POLICIES))
    ensemble = "Answer with the mean of several exits: of those that were ready or agreed, or of all so far."
    command = click.option("--ensemble", type=click.Choice(["run", "all"]), help=ensemble)(command)
    window = click.Choice(["all", "consecutive"])
    command = click.option("--window", type=window, help="For divergence: which earlier exits count.")(command)
    divergence = click.Choice(["ce", "kl", "js"])
    command = click.option("--divergence", type=divergence, help="For divergence: the distance between exits.")(command)
    patience = "For pcee, stability and divergence: exits that must be ready or agree."
    command = click.option("--patience", type=click.IntRange(min=1), help=patience)(command)
    command = click.option("--measure", type=names, help="For pcee: the policy whose score is compared.")(command)
    return click.option("--policy", type=names, help=default)(command)


def silence_transformers() -> None:
    """Turn off the progress bars and warnings of transformers, the hub client's retries, and in logs datasets' bars.

    The variables are read when these packages are imported, which an exported graph does not need.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "transformers" not in sys.modules:
        return
    from transformers.utils import logging as transformers_logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def columns_of(options: Mapping[str, Any]) -> Columns:
    """Return the columns that --text-column, --pair-column and --label-column name, with --label-names."""
    from offramp.data.columns import Columns
    from offramp.data.label_names import read_label_names

    label = tuple(options.get("label_columns", ()))
    names = None if options.get("label_names") is None else read_label_names(options["label_names"])
    text, pair = options.get("text_column"), options.get("pair_column")
    return Columns(text, pair, label if len(label) > 1 else next(iter(label), None), names)


def reading_of(options: Mapping[str, Any]) -> Reading:
    """Return how --format, --delimiter and --encoding say to read the data."""
    from offramp.data.records import Reading

    return Reading(options["format"], options["delimiter"], options["encoding"])


def read_data(folder: Path, options: Mapping[str, Any], *, labelled: bool) -> Examples | list[Text]:
    """Read --data for a folder's model; unless labelled, only the texts of data in which a row has no label."""
    from offramp.inference.record import read_data_for, read_for
    from offramp.model.hub import load_config

    read = read_for if labelled else read_data_for
    return read(load_config(folder), options["data"], columns_of(options), options["split"], reading_of(options))


def check_metric_of(folder: Path, metric: str | None, *, for_thresholds: bool = False) -> None:
    """Refuse a metric that has no meaning for a folder's model, before anything long is done.

    Raises:
        NotApplicable: it has none, or cannot choose thresholds.
    """
    if metric is not None:
        from offramp.evaluation.metrics import check_metric
        from offramp.model.hub import load_config

        config = load_config(folder)
        check_metric(metric, config.problem_type, config.num_labels, for_thresholds=for_thresholds)


def class_names(folder: Path) -> list[str]:
    """Return the names of the outputs of a folder's model."""
    from offramp.model.hub import load_config

    config = load_config(folder)
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def read_trace(folder: Path, options: Mapping[str, Any], data: Examples | list[Text] | None = None) -> Trace:
    """Load the trace of --trace, or record the model on --data; refuse a --metric that does not go with the model.

    Args:
        folder: the model's.
        options: of the command.
        data: what --data holds, where it was read already; None reads it with its labels.

    Raises:
        UsageError: both options or neither.
        NotApplicable: a metric without a meaning for this model.
        InvalidInput: a trace of another number of outputs, kind of problem or other exits than the model's.
    """
    from offramp.inference.record import data_name, record
    from offramp.model.hub import load_config
    from offramp.types.trace import Trace

    check_data_or_trace(options)
    check_metric_of(folder, options["metric"])
    if options["trace"] is not None:
        trace = Trace.load(options["trace"])
        _refuse_other_model(trace, options["trace"], load_config(folder))
        return trace
    data = read_data(folder, options, labelled=True) if data is None else data
    threads = {name: options[name] for name in ("threads", "workers")}
    trace = record(folder, data, options["engine"], **threads)
    return replace(trace, provenance={**trace.provenance, "data": data_name(options["data"], options["split"])})


def _refuse_other_model(trace: Trace, path: Path, config: MultiExitConfig) -> None:
    outputs, layers = trace.logits.shape[-1], trace.layer_numbers
    exits: list[int] = config.layers
    if outputs != config.num_labels:
        raise InvalidInput(f"{path} has {outputs} outputs, the model {config.num_labels}")
    if trace.problem_type != config.problem_type:
        raise InvalidInput(f"{path} is of a {trace.problem_type}, the model of a {config.problem_type}")
    if not set(layers) <= set(exits) or layers[-1] != exits[-1]:  # a graph may have fewer than the model
        at = (layers_text(numbers) for numbers in (layers, exits))
        raise InvalidInput("{} has exits at layers {}, the model at layers {}".format(path, *at))


def check_data_or_trace(options: Mapping[str, Any]) -> None:
    """Raise UsageError unless either --data or --trace is there."""
    if (options["data"] is None) == (options["trace"] is None):
        raise click.UsageError("give either --data or --trace")
