"""`offramp record`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from offramp.cli.options import (
    FILE,
    FOLDER,
    SOURCE,
    column_options,
    columns_of,
    engine_option,
    json_option,
    reading_of,
    reading_options,
    silence_transformers,
    thread_options,
)
from offramp.cli.processes import rank, recording_group
from offramp.types.whole_file import refuse_output


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help=f"Data, with labels or without: {SOURCE}.")
@click.option("-o", "--output", type=FILE, required=True, help="File for the trace, e.g. trace.safetensors.")
@click.option("--split", default="validation", show_default=True, help="Split of a named data set.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@engine_option
@thread_options
@column_options
@reading_options
@json_option
def record(
    folder: Path, data: str, output: Path, split: str, batch_size: int, engine: str, as_json: bool, **options: Any
) -> None:
    """Run every layer on data and save the logits of every exit, with the labels if every row has one.

    Logits do not depend on the batch, in float32 but for rounding and in int8 to the last bit. Operating points should
    come from a trace of the engine that will run them. Processes of torchrun share the rows.

    \b
    offramp record model --data validation.csv -o trace.safetensors
    torchrun --nproc_per_node 4 -m offramp record model --data validation.csv -o trace.safetensors
    """
    refuse_output(output, data, folder)
    silence_transformers()
    from offramp.inference.record import record as record_trace

    with recording_group() as group:
        trace = record_trace(
            folder,
            data,
            engine,
            columns=columns_of(options),
            split=split,
            reading=reading_of(options),
            batch_size=batch_size,
            threads=options["threads"],
            workers=options["workers"],
            group=group,
        )
    if rank() > 0:
        return
    trace.save(output)
    without = "" if trace.labels is not None else ", without labels"
    shape = {
        "exits": trace.depth,
        "rows": len(trace),
        "outputs": trace.logits.shape[-1],
        "labels": trace.labels is not None,
        "trace": str(output),
    }
    click.echo(json.dumps(shape) if as_json else f"{output}: {len(trace)} rows x {trace.depth} exits{without}")
