"""What commands share: options, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from offramp.inference.onnx.metadata import ENGINES
from offramp.policies.registry import POLICIES, summarize

if TYPE_CHECKING:
    from offramp.data.examples import Columns
    from offramp.types.trace import Trace

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
POLICY_PARAMETERS = ("measure", "patience", "divergence", "window", "ensemble")
Command = TypeVar("Command", bound=Callable[..., None])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


def column_options(command: Command) -> Command:
    """--text-column, --pair-column and --label-column."""
    for name in ("label", "pair", "text"):
        command = click.option(f"--{name}-column", help=f"The {name}'s column; guessed, and said, if not given.")(
            command
        )
    return command


def learning_options(command: Command) -> Command:
    """What is learnt from, and how: data, encoder and recipe, of commands that train."""
    above_zero = click.FloatRange(min=0, min_open=True)
    tasks = click.Choice(["classification", "multi-label", "regression"])
    encoder = "A hub name or a folder.  [default: the encoder that offramp[demo] brings]"
    length = "Tokens a text.  [default: what the encoder takes]"
    for option in (
        click.option("--bf16", is_flag=True, help="Train in bfloat16: faster where the processor has it."),
        click.option("--max-length", type=click.IntRange(min=2), help=length),
        click.option("--learning-rate", type=above_zero, default=1e-4, show_default=True),
        click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True),
        click.option("--epochs", type=above_zero, default=5, show_default=True),
        click.option("--pooling", type=click.Choice(["first", "mean"]), default="mean", show_default=True),
        click.option("--task", type=tasks, default="classification", show_default=True),
        click.option("--backbone", help=encoder),
        click.option("--validation", "validation_source", required=True, metavar="FILE", help="Chooses thresholds."),
        click.option(
            "--train",
            "train_source",
            required=True,
            metavar="FILE",
            help="csv, tsv, jsonl, parquet, or a data set's name.",
        ),
    ):
        command = option(command)
    return command


def engine_option(command: Command) -> Command:
    """--engine, of commands that record."""
    told = "What runs the model; the others run what `offramp export` wrote."
    return click.option("--engine", type=click.Choice(ENGINES), default="torch", show_default=True, help=told)(command)


def scored_options(split: str) -> Callable[[Command], Command]:
    """--data or --trace, --split and --metric, for commands that score a model."""

    def add(command: Command) -> Command:
        command = click.option("--metric", help="accuracy, f1, macro-f1, matthews, pearson or spearman.")(command)
        command = click.option("--split", default=split, show_default=True, help="Of a named data set.")(command)
        command = engine_option(command)
        command = click.option("--trace", type=FILE, help="In place of --data: what `offramp record` wrote.")(command)
        return click.option("--data", metavar="FILE", help="Labelled data that was not trained on.")(command)

    return add


def policy_options(command: Command) -> Command:
    """--policy and its parameters."""
    usual = "[default: margin, to calibrate with a threshold for each exit; for regression, consistency]"
    names = click.Choice(sorted(POLICIES))
    ensemble = "Answer with the mean of the exits that were ready or agreed, or of all so far."
    command = click.option("--ensemble", type=click.Choice(["run", "all"]), help=ensemble)(command)
    window = click.Choice(["all", "consecutive"])
    command = click.option("--window", type=window, help="For divergence: which earlier exits count.")(command)
    divergence = click.Choice(["ce", "kl", "js"])
    command = click.option("--divergence", type=divergence, help="For divergence: how far exits are apart.")(command)
    patience = "For pcee, stability and divergence."
    command = click.option("--patience", type=click.IntRange(min=1), help=patience)(command)
    command = click.option("--measure", type=names, help="For pcee: which score must hold.")(command)
    return click.option("--policy", type=names, help=usual)(command)


def silence_transformers() -> None:
    """No bars and no chatter of transformers' own; offramp's say what matters."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def columns_of(given: Mapping[str, Any]) -> Columns:
    """The columns that were named."""
    from offramp.data.examples import Columns

    return Columns(given.get("text_column"), given.get("pair_column"), given.get("label_column"))


def read_trace(folder: Path, given: Mapping[str, Any]) -> Trace:
    """The trace in a file, or one of the model on data."""
    from offramp.inference.record import record
    from offramp.types.trace import Trace

    if (given["data"] is None) == (given["trace"] is None):
        raise click.UsageError("give either --data or --trace")
    if given["trace"] is not None:
        return Trace.load(given["trace"])
    return record(folder, given["data"], given["engine"], columns=columns_of(given), split=given["split"])


def policy_text(policy: Mapping[str, Any]) -> str:
    """A policy in words: "pcee (measure entropy, patience 2)"."""
    rest = ", ".join(f"{key} {value}" for key, value in summarize(policy).items() if key != "name")
    return f"{policy['name']} ({rest})" if rest else str(policy["name"])
