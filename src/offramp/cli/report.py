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
    column_options,
    columns_of,
    engine_option,
    json_option,
    silence_transformers,
)
from offramp.cli.output import finished_only
from offramp.cli.points import saved_points

if TYPE_CHECKING:
    from offramp.data.examples import Text

TIMED, ROUNDS = 8, 3  # texts, and how often each goes to every exit: seconds, not minutes


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help="Labelled data that was not trained on.")
@click.option("-o", "--output", type=FILE, required=True, help="Where the page goes, e.g. report.html.")
@click.option("--operating-point", help='The saved point that it is about.  [default: "default", or else the first]')
@click.option("--metric", help="accuracy, f1, macro-f1, matthews, pearson or spearman.")
@click.option("--split", default="test", show_default=True, help="Of a named data set.")
@click.option("--no-timing", is_flag=True, help="Tell no milliseconds; else each exit is timed on a few texts.")
@engine_option
@column_options
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
    **given: Any,
) -> None:
    """Write one page that says whether early exit pays: curves, exits, texts, slices, certificates.

    The page is a single HTML file. It loads nothing, so it can be sent, printed and read on a phone. Milliseconds are
    of this machine, which should do nothing else meanwhile.

    \b
    offramp report model --data test.csv -o report.html
    """
    silence_transformers()
    from offramp.bench.cost_table import measure_costs
    from offramp.inference.record import read_for, record
    from offramp.model.hub import load_config
    from offramp.report.html.content import Texts, page
    from offramp.report.html.provenance import environment
    from offramp.report.html.render import render

    points = saved_points(folder)
    examples = read_for(load_config(folder), data, columns_of(given), split)
    trace = record(folder, examples, engine)
    where = Path(data).name if Path(data).exists() else f"{data} ({split})"
    trace = replace(trace, provenance={**trace.provenance, "data": where})
    cost = None if no_timing else measure_costs(folder, spread(examples.texts, TIMED), engine, rounds=ROUNDS)
    command = shlex.join(["offramp", *sys.argv[1:]])
    said = page(
        f"Early exit of {folder.name}, measured on {where}",
        trace,
        Texts(examples.texts, examples.label_names),
        points,
        name=operating_point,
        metric=metric,
        cost=cost,
        environment=environment(folder, data, trace, command),
    )
    html = render(said)
    with finished_only(output) as out:
        out.write(html)
    told = {"page": str(output), "decision": asdict(said.decision)}
    click.echo(json.dumps(told) if as_json else f"{said.decision.headline}\n{output}")


def spread(texts: Sequence[Text], most: int) -> list[Text]:
    """So many texts at most, at even distances from the shortest to the longest."""
    order = sorted(texts, key=lambda text: len(text) if isinstance(text, str) else sum(map(len, text)))
    count = min(most, len(order))
    return [order[(2 * place + 1) * len(order) // (2 * count)] for place in range(count)]
