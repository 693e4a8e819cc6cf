"""`offramp report`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from offramp.commands.options import FILE, FOLDER, column_options, columns_of, engine_option, json_option, quiet
from offramp.commands.output import finished_only
from offramp.commands.points import saved_points


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help="Labelled data that was not trained on.")
@click.option("-o", "--output", type=FILE, required=True, help="Where the page goes, e.g. report.html.")
@click.option("--operating-point", help='The saved point that it is about.  [default: "default", or else the first]')
@click.option("--metric", help="accuracy, f1, macro-f1, matthews, pearson or spearman.")
@click.option("--split", default="test", show_default=True, help="Of a named data set.")
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
    engine: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Write one page that says whether early exit pays: curves, exits, texts, slices, certificates.

    The page is a single HTML file. It loads nothing, so it can be sent, printed and read on a phone.

    \b
    offramp report model --data test.csv -o report.html
    """
    quiet()
    from offramp.loading import load_config
    from offramp.page.content import Texts, page
    from offramp.page.environment import environment
    from offramp.page.render import render
    from offramp.tracing import read_for, record

    points = saved_points(folder)
    examples = read_for(load_config(folder), data, columns_of(given), split)
    trace = record(folder, examples, engine)
    where = Path(data).name if Path(data).exists() else f"{data} ({split})"
    trace = replace(trace, about={**trace.about, "data": where})
    command = shlex.join(["offramp", *sys.argv[1:]])
    said = page(
        f"Early exit of {folder.name}, measured on {where}",
        trace,
        Texts(examples.texts, examples.label_names),
        points,
        name=operating_point,
        metric=metric,
        environment=environment(folder, data, trace, command),
    )
    html = render(said)
    with finished_only(output) as out:
        out.write(html)
    told = {"page": str(output), "decision": asdict(said.decision)}
    click.echo(json.dumps(told) if as_json else f"{said.decision.headline}\n{output}")
