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
from offramp.errors import InvalidInput, NotApplicable
from offramp.types.operating_point import DEFAULT, OperatingPoint
from offramp.types.whole_file import refuse_output, whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offramp.data.rows import Text
    from offramp.inference.engine import Engine
    from offramp.model.token_similarity import TokenSimilarity
    from offramp.types.cost_table import CostTable
    from offramp.types.point_times import PointTimes
    from offramp.types.trace import Trace

TIMED_TEXTS, ROUNDS = 8, 3  # and passes over them for each exit
COMPARED_TEXTS, COMPARED_TOKENS, LEAST_COMPARED = 32, 2048, 4  # of token similarity: at most, and texts at least


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
    from offramp.inference.record import data_name, read_for, record, resolve_engine
    from offramp.model.hub import load_config
    from offramp.report.html.content import Texts, page, shown_name
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
    runner, tokenizer, _ = resolve_engine(folder, engine, True)
    point = points.get(shown_name(points, operating_point) or "")
    cost, times = (None, None) if no_timing else _time(runner, tokenizer, evenly_by_length(texts, TIMED_TEXTS), point)
    content = page(
        f"Early exit of {folder.name}, measured on {source}",
        trace,
        Texts(texts, examples.label_names),
        points,
        name=operating_point,
        metric=metric,
        cost=cost,
        times=times,
        similarity=_similarity(runner, tokenizer, evenly_by_length(texts, _compared(trace))),
        environment=environment(folder, data, trace, shlex.join(["offramp", *sys.argv[1:]])),
    )
    html = render(content)
    with whole_file(output) as out:
        out.write(html)
    summary = {"page": str(output), "decision": asdict(content.decision)}
    click.echo(json.dumps(summary) if as_json else f"{content.decision.headline}\n{output}")


def _time(
    runner: Engine, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[Text], point: OperatingPoint | None
) -> tuple[CostTable, PointTimes | None]:
    """Time every exit on a few texts, and the point, where the engine can run it; takes seconds."""
    from offramp.bench.cost_table import measure_costs
    from offramp.bench.point_time import time_point
    from offramp.data.batching import encode, token_limit
    from offramp.inference.predictor import Predictor

    assert tokenizer is not None
    rows = encode(tokenizer, texts, token_limit(tokenizer, runner.config.backbone))
    cost = measure_costs(runner, rows, rounds=ROUNDS, workers=1)
    try:
        runner.check(point)
    except (InvalidInput, NotApplicable):
        return cost, None
    if point is None:
        return cost, None
    return cost, time_point(Predictor(runner, tokenizer, point), texts, cost, rounds=ROUNDS)


def _similarity(
    runner: Engine, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[Text]
) -> TokenSimilarity | str:
    """Compare the tokens of a few texts layer by layer, or return why that is not possible; takes a second or two."""
    from offramp.inference.torch_engine import TorchEngine
    from offramp.model.token_similarity import token_similarity

    if not isinstance(runner, TorchEngine):
        return "the states between layers are not among the outputs of a graph; `--engine torch` has them"
    assert tokenizer is not None
    try:
        return token_similarity(runner.model, tokenizer, texts)
    except NotApplicable as error:
        return str(error)


def _compared(trace: Trace) -> int:
    """Return how many texts of a trace are compared token by token: fewer where they are long."""
    mean = 1.0 if trace.tokens is None else trace.tokens.double().mean().item()
    return max(LEAST_COMPARED, min(COMPARED_TEXTS, int(COMPARED_TOKENS / mean)))


def evenly_by_length(texts: Sequence[Text], limit: int) -> list[Text]:
    """Return at most `limit` texts, at even distances from the shortest to the longest."""
    order = sorted(texts, key=lambda text: len(text) if isinstance(text, str) else sum(map(len, text)))
    count = min(limit, len(order))
    return [order[(2 * index + 1) * len(order) // (2 * count)] for index in range(count)]
