"""`offramp bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from offramp.cli.options import (
    FOLDER,
    SOURCE,
    column_options,
    columns_of,
    json_option,
    reading_of,
    reading_options,
    silence_transformers,
)
from offramp.inference.engine import ENGINES


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help=f"Texts, scored too if they have labels: {SOURCE}.")
@click.option("--split", default="test", show_default=True, help="Split of a named data set.")
@click.option(
    "--batch-size", "sizes", default="1,8,32", show_default=True, metavar="1,8,32", help="Batch sizes to time."
)
@click.option(
    "--engines", metavar=",".join(ENGINES), help="Engines of early exit.  [default: torch and what was exported]"
)
@click.option("--rows", type=click.IntRange(min=1), default=256, show_default=True, help="Texts at most.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Passes of each contestant over all texts.",
)
@column_options
@reading_options
@json_option
def bench(
    folder: Path,
    data: str,
    split: str,
    sizes: str,
    engines: str | None,
    rows: int,
    rounds: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Race the saved operating points against all that the same model can do without early exit, from text to answer.

    The others are the model at full depth in torch, torch.compile, ONNX Runtime, OpenVINO and CTranslate2 (where they
    are installed), the encoder cut at each layer, the lexical exit alone, and a cascade of it and the fastest
    full-depth model. Each runs with the threads and workers that are fastest for it here. The output ends with a
    conclusion.

    A six-layer MiniLM takes some six minutes on two cores with the usual options; fewer --rows, --rounds, batch sizes
    or engines take less. The machine should run nothing else meanwhile.

    \b
    offramp bench model --data test.csv
    offramp bench model --data test.csv --batch-size 1,32 --engines onnx-int8
    offramp bench model --data test.csv --rows 128 --rounds 3 --json > bench.json
    """
    try:
        batch_sizes = [int(size) for size in sizes.split(",")]
    except ValueError:
        batch_sizes = [0]
    if min(batch_sizes) < 1:
        raise click.UsageError(f"--batch-size takes numbers of rows such as 1,8,32; got {sizes!r}")
    silence_transformers()
    from offramp.bench.folder import benchmark_folder
    from offramp.bench.summary import benchmark_text, to_json
    from offramp.inference.load_engine import check_name

    names = engines.split(",") if engines else None
    for name in names or ():
        check_name(name)
    read: dict[str, Any] = {"columns": columns_of(options), "reading": reading_of(options), "split": split}
    result = benchmark_folder(folder, data, names, batch_sizes, rows=rows, rounds=rounds, **read)
    click.echo(json.dumps(to_json(result)) if as_json else benchmark_text(result))
