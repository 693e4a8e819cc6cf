"""`offramp report`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import (
    FILE,
    FOLDER,
    SCORE,
    SOURCE,
    UNTRAINED,
    check_metric_of,
    column_options,
    columns_of,
    engine_option,
    json_option,
    metric_option,
    reading_of,
    reading_options,
    silence_transformers,
)
from offramp.cli.points import finite_only, metric_of, readable_points, saved_points
from offramp.types.operating_point import DEFAULT
from offramp.types.whole_file import refuse_output, whole_file

if TYPE_CHECKING:
    from offramp.data.rows import Text
    from offramp.types.cost_table import CostTable

TIMED_TEXTS, ROUNDS = 8, 3  # and passes over them for each exit


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help=f"{UNTRAINED}: {SOURCE}.")
@click.option("-o", "--output", type=FILE, required=True, help="File for the page, e.g. report.html.")
@click.option("--operating-point", help='The saved point to show.  [default: "default", or else the first]')
@metric_option(f"{SCORE}  [default: that of the point shown, else accuracy or pearson]")
@click.option("--split", default="test", show_default=True, help="Split of a named data set.")
@click.option("--no-timing", is_flag=True, help="Leave out milliseconds; otherwise every exit is timed on a few texts.")
@engine_option
@column_options
@reading_options
@json_option
def report(
    folder: Path,
    data: str,
    output: Path,
    operating_point: str | None,
    metric: str | None,
    split: str,
    no_timing: bool,
    engine: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a page on whether early exit pays: curves, exits, example texts, slices and certificates.

    The page is a single HTML file. It loads nothing, so it can be sent, printed and read on a phone. Milliseconds are
    measured on this machine, which should run nothing else meanwhile.

    \b
    offramp report model --data test.csv -o report.html
    """
    refuse_output(output, data, folder)
    silence_transformers()
    from offramp.inference.record import data_name, read_for, record
    from offramp.model.hub import load_config
    from offramp.report.html.content import Texts, page
    from offramp.report.html.provenance import environment
    from offramp.report.html.render import render

    points = saved_points(folder)
    check_metric_of(folder, metric)
    metric = metric or metric_of(points.get(operating_point or DEFAULT))
    examples = read_for(load_config(folder), data, columns_of(options), split, reading_of(options))
    trace, kept = finite_only(record(folder, examples, engine))
    points = readable_points(trace, points)
    texts = [examples.texts[row] for row in kept]
    source = data_name(data, split)
    trace = replace(trace, provenance={**trace.provenance, "data": source})
    cost = None if no_timing else _measure_costs(folder, texts, engine)
    content = page(
        f"Early exit of {folder.name}, measured on {source}",
        trace,
        Texts(texts, examples.label_names),
        points,
        name=operating_point,
        metric=metric,
        cost=cost,
        environment=environment(folder, data, trace, shlex.join(["offramp", *sys.argv[1:]])),
    )
    html = render(content)
    with whole_file(output) as out:
        out.write(html)
    summary = {"page": str(output), "decision": asdict(content.decision)}
    click.echo(json.dumps(summary) if as_json else f"{content.decision.headline}\n{output}")


def _measure_costs(folder: Path, texts: Sequence[Text], engine: str) -> CostTable:
    """Time every exit on a few texts; takes seconds."""
    from offramp.bench.cost_table import measure_costs

    return measure_costs(folder, evenly_by_length(texts, TIMED_TEXTS), engine, rounds=ROUNDS)


def evenly_by_length(texts: Sequence[Text], limit: int) -> list[Text]:
    """Return at most `limit` texts, at even distances from the shortest to the longest."""
    order = sorted(texts, key=lambda text: len(text) if isinstance(text, str) else sum(map(len, text)))
    count = min(limit, len(order))
    return [order[(2 * index + 1) * len(order) // (2 * count)] for index in range(count)]
