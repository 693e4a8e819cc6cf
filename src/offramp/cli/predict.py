"""`offramp predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from offramp.cli.options import FILE, FOLDER, columns_of, reading_of, reading_options, silence_transformers
from offramp.cli.output import finished_only
from offramp.inference.engine import ENGINES
from offramp.types.whole_file import refuse_output

ENGINE = (
    "The engine that runs the model; auto takes an exported graph on a machine without a GPU, if it fits the point."
)


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("source", default="-", metavar="[FILE]")
@click.option("-o", "--output", type=FILE, help="File for the answers.  [default: standard output]")
@click.option(
    "--operating-point",
    help='A saved point, or "full" for all layers.  [default: the point "default", if there is one]',
)
@click.option("--engine", type=click.Choice(["auto", *ENGINES]), default="auto", show_default=True, help=ENGINE)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts in a batch.")
@click.option("--text-column", help="Column of the text.  [default: guessed and printed]")
@click.option("--pair-column", help="Column of the second text of a pair.")
@reading_options
def predict(
    folder: Path,
    source: str,
    output: Path | None,
    operating_point: str | None,
    engine: str,
    batch_size: int,
    **options: Any,
) -> None:
    """Answer texts from a file or standard input: one JSON object a line, in the order of the input.

    \b
    offramp predict model texts.txt > answers.jsonl
    echo "where is my parcel" | offramp predict model
    """
    if output is not None:
        refuse_output(output, source, folder)
    silence_transformers()
    from tqdm import tqdm

    from offramp.data.examples import read_rows
    from offramp.inference.predictor import Predictor
    from offramp.types.operating_point import DEFAULT

    point = None if operating_point == "full" else operating_point or DEFAULT
    predictor = Predictor.load(folder, engine, point)
    rows = read_rows(source, columns_of(options), split="test", labelled=False, reading=reading_of(options))
    answers = predictor.stream((row.text for row in rows), batch_size)
    with finished_only(output) as out:
        for answer in tqdm(answers, desc="predict", unit="text", disable=None if output else True):
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
