"""`offramp study`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import FOLDER, column_options, columns_of, json_option, learning_options, silence_transformers
from offramp.studies.registry import STUDIES, load_study

if TYPE_CHECKING:
    from offramp.studies.training_runs import ExperimentConfig


@click.command()
@click.argument("name", type=click.Choice(sorted(STUDIES)))
@learning_options
@click.option("--test", "test_source", metavar="FILE", help="Is reported.  [default: one half of the validation rows]")
@click.option("-o", "--output", type=FOLDER, required=True, help="Gets the page, its figures and all runs.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="The encoder's first layers, or each repeated to have so many.  [default: as it is]",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="The papers have 5.")
@click.option("--metric", "metrics", multiple=True, help="As in `offramp evaluate`; several have their mean.")
@click.option("--limit", type=click.IntRange(min=2), help="Rows of each file, to try it.")
@column_options
@json_option
def study(name: str, output: Path, seeds: int, metrics: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Run a paper's comparison on data of your own, beside what the paper printed.

    Trains every model of the comparison with every seed. A finished run leaves its trace in the folder, so that a
    stopped study goes on when it is started again, and studies in one folder share their runs.

    \b
    offramp study pcee --train glue/mrpc --validation glue/mrpc --metric accuracy --metric f1 -o study
    offramp study pabee --train train.csv --validation dev.csv --test test.csv --seeds 5 -o study
    """
    silence_transformers()
    from offramp.model.flops import plain_macs
    from offramp.studies.markdown import data_set_of, page
    from offramp.studies.run import run_study
    from offramp.studies.training_runs import build_model, load_or_train_all
    from offramp.types.problem_types import REGRESSION

    chosen, setting = load_study(name), _setting(given)
    trainings = chosen.all_trainings(setting.train.problem_type == REGRESSION)
    if "macs_ratio" in chosen.shows:
        plain_macs(build_model(chosen.plain, setting).config, [1])  # refuses layers that have no price
    runs = load_or_train_all(output, trainings, range(seeds), setting)
    result, summary = run_study(chosen, runs, range(seeds), metrics or (None,), setting.pairs()), setting.summary()
    figures = {**result.to_json(), "setting": asdict(summary)}
    text = page(result, summary, data_set_of(chosen, given["train_source"]))
    (output / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    click.echo(json.dumps(figures) if as_json else text)


def _setting(given: Mapping[str, Any]) -> ExperimentConfig:
    """What all runs have in common, from the options."""
    from offramp.data.examples import read_examples
    from offramp.model.default_encoder import default_encoder
    from offramp.studies.training_runs import ExperimentConfig, subsample

    sources = {"train": given["train_source"], "validation": given["validation_source"], "test": given["test_source"]}
    sources = {split: source for split, source in sources.items() if source is not None}
    read: dict[str, Any] = {}
    for split, source in sources.items():
        names = (read["train"].label_names or None) if read else None
        rows = read_examples(source, columns_of(given), split=split, task=given["task"], label_names=names)
        read[split] = subsample(rows, given["limit"] or len(rows))
    return ExperimentConfig(
        given["backbone"] or default_encoder(),
        read.pop("train"),
        read,
        given["layers"],
        given["pooling"],
        given["max_length"],
        recipe={
            "num_train_epochs": given["epochs"],
            "per_device_train_batch_size": given["batch_size"],
            "learning_rate": given["learning_rate"],
            "bf16": given["bf16"],
        },
        about={split: "/".join(Path(source).parts[-2:]) for split, source in sources.items()},
    )
