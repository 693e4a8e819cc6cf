"""`offramp study`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import (
    FOLDER,
    METRICS,
    SOURCE,
    column_options,
    columns_of,
    json_option,
    learning_options,
    reading_of,
    reading_options,
    silence_transformers,
)
from offramp.studies.registry import STUDIES, load_study
from offramp.types.whole_file import whole_file

if TYPE_CHECKING:
    from offramp.studies.training_runs import ExperimentConfig


@click.command()
@click.argument("name", type=click.Choice(sorted(STUDIES)))
@learning_options
@click.option(
    "--test",
    "test_source",
    metavar="FILE",
    help=f"Data of the reported scores: {SOURCE}.  [default: half of the validation rows]",
)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder for the results and all runs.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="Cut the encoder to its first layers, or repeat its layers, to have so many.  [default: unchanged]",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of seeds; the papers have 5."
)
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(METRICS),
    multiple=True,
    help="As in `offramp evaluate`; of several, the mean is the score.",
)
@click.option("--limit", type=click.IntRange(min=2), help="Rows to read of each file, for a trial run.")
@column_options
@reading_options
@json_option
def study(name: str, output: Path, seeds: int, metrics: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run a paper's comparison on your own data, and print the results beside the published ones.

    Every model of the comparison is trained with every seed. A finished run leaves its trace in the folder, so a
    stopped study continues when it is started again, and studies in one folder share their runs.

    \b
    offramp study pcee --train glue/mrpc --validation glue/mrpc --metric accuracy --metric f1 -o study
    offramp study pabee --train train.csv --validation dev.csv --test test.csv --seeds 5 -o study
    """
    silence_transformers()
    from offramp.evaluation.metrics import check_metric
    from offramp.model.flops import plain_macs
    from offramp.studies.markdown import data_set_of, page
    from offramp.studies.run import run_study
    from offramp.studies.training_runs import build_model, load_or_train_all
    from offramp.types.problem_types import REGRESSION

    paper, config = load_study(name), _config(options)
    for metric in metrics:
        check_metric(metric, config.train.problem_type, len(config.train.label_names) or 1, for_thresholds=True)
    trainings = paper.all_trainings(config.train.problem_type == REGRESSION)
    if "macs_ratio" in paper.shows:
        plain_macs(build_model(paper.plain, config).config, [1])  # refuses layers whose cost is unknown
    runs = load_or_train_all(output, trainings, range(seeds), config)
    result, summary = run_study(paper, runs, range(seeds), metrics or (None,), config.pairs()), config.summary()
    figures = {**result.to_json(), "setting": asdict(summary)}
    text = page(result, summary, data_set_of(paper, options["train_source"]))
    for suffix, content in (("json", json.dumps(figures, indent=2)), ("md", text)):
        with whole_file(output / f"{name}.{suffix}") as file:
            file.write(content + "\n")
    click.echo(json.dumps(figures) if as_json else text)


def _config(options: Mapping[str, Any]) -> ExperimentConfig:
    """Read the data and return the configuration that all runs share."""
    from offramp.data.examples import read_examples, subsample
    from offramp.model.default_encoder import default_encoder
    from offramp.studies.training_runs import ExperimentConfig

    sources = {
        "train": options["train_source"],
        "validation": options["validation_source"],
        "test": options["test_source"],
    }
    sources = {split: source for split, source in sources.items() if source is not None}
    splits: dict[str, Any] = {}
    for split, source in sources.items():
        names = (splits["train"].label_names or None) if splits else None
        read = {"task": options["task"], "label_names": names, "reading": reading_of(options)}
        rows = read_examples(source, columns_of(options), split=split, **read)
        splits[split] = subsample(rows, options["limit"] or len(rows))
    return ExperimentConfig(
        options["backbone"] or default_encoder(),
        splits.pop("train"),
        splits,
        options["layers"],
        options["pooling"],
        options["max_length"],
        recipe={
            "num_train_epochs": options["epochs"],
            "per_device_train_batch_size": options["batch_size"],
            "learning_rate": options["learning_rate"],
            "bf16": options["bf16"],
        },
        about={split: "/".join(Path(source).parts[-2:]) for split, source in sources.items()},
    )
