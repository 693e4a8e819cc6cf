"""`offramp predict`."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from offramp.cli.options import (
    FOLDER,
    columns_of,
    json_option,
    reading_of,
    reading_options,
    silence_transformers,
    thread_options,
)
from offramp.cli.output import finished_only
from offramp.errors import DataError
from offramp.inference.engine import ENGINES
from offramp.types.whole_file import refuse_output

Item = TypeVar("Item")

if TYPE_CHECKING:
    from offramp.data.rows import Row, Text
    from offramp.inference.answers import Answer
    from offramp.inference.pipeline import Fault
    from offramp.inference.predictor import Predictor

ENGINE = (
    "The engine that runs the model; auto takes the one that the point was certified with, else the fastest that was "
    "measured here, else an exported graph, else torch; `offramp info` says which."
)


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("source", default="-", metavar="[FILE]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File for all answers together; with --input a folder.  [default: standard output]",
)
@click.option(
    "--input",
    "input_folder",
    type=FOLDER,
    metavar="DIR",
    help="Answer all csv, tsv, jsonl and parquet files of a folder, packed by gzip or not; --output is a folder too.",
)
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Answer --input on a Ray cluster, such as auto or HOST:6379; without an address one is started here.",
)
@click.option(
    "--operating-point",
    help='A saved point, or "full" for all layers.  [default: the point "default", if there is one]',
)
@click.option("--engine", type=click.Choice(["auto", *ENGINES]), default="auto", show_default=True, help=ENGINE)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Texts in a batch.  [default: as many as costs measured on this machine say are worth it, else 32]",
)
@thread_options
@click.option(
    "--allow-other-engine", is_flag=True, help="Run a point with a certificate on an engine that it does not hold for."
)
@click.option("--scores", is_flag=True, help="Add every label's probability, the largest first.")
@click.option("--strict", is_flag=True, help="Stop at the first row that has no answer, with exit code 1.")
@click.option("--text-column", help="Column of the text.  [default: guessed and printed]")
@click.option("--pair-column", help="Column of the second text of a pair.")
@reading_options
@json_option
def predict(
    folder: Path,
    source: str,
    output: Path | None,
    input_folder: Path | None,
    address: str | None,
    operating_point: str | None,
    engine: str,
    batch_size: int | None,
    threads: int | None,
    workers: int | None,
    allow_other_engine: bool,
    scores: bool,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer texts from a file, standard input or a folder: one JSON object a line, in the order of the input.

    "exit_layer" is the layer after which a row left; 0 is the lexical exit, before the first layer.

    A row that has no answer (a blank text, a line that cannot be read) gets {"error": ..., "line": ...} in its place;
    how many there are is printed at the end, to standard error. The exit code is 1 where the source breaks off. Texts
    that come through a pipe are answered as soon as it pauses.

    A row's answer does not depend on the rows beside it, in float32 and in int8 (--engine onnx-int8).

    --input answers every file of a folder: NAME.csv.gz into NAME.jsonl in the folder --output. A command that was
    stopped goes on where it was when it is called again; what is done is in .manifest.json there. Files whose content
    has changed are answered anew. --json prints the totals.

    \b
    offramp predict model texts.txt > answers.jsonl
    echo "where is my parcel" | offramp predict model
    tail -f messages.log | offramp predict model
    offramp predict model --input messages --output answers
    offramp predict model --input messages --output answers --ray
    """
    if input_folder is not None:
        _check_usage(output)
    elif address is not None:
        raise click.UsageError("--ray goes with --input, a folder")
    elif output is not None:
        refuse_output(output, source, folder)
    silence_transformers()
    from offramp.data.examples import read_rows
    from offramp.inference.choose_engine import BATCH_ROWS
    from offramp.inference.predictor import Predictor
    from offramp.types.operating_point import DEFAULT

    point = None if operating_point == "full" else operating_point or DEFAULT
    here = workers if address is None else 1
    predictor = Predictor.load(folder, engine, point, threads, here, batch_size or BATCH_ROWS, allow_other_engine)
    columns, reading = columns_of(options), reading_of(options)
    if input_folder is not None:
        from offramp.cli.folder_job import answer_folder
        from offramp.inference.folder_job.job import FolderJob

        assert output is not None
        job = FolderJob(input_folder, output, columns, reading, strict)
        settings = {"batch_size": batch_size, "scores": scores, "threads": threads, "workers": workers}
        answer_folder(job, folder, predictor, settings, ray=address, as_json=as_json)
        return
    rows = read_rows(source, columns, split="test", labelled=False, reading=reading, lenient=True)
    answered = _answered(predictor, _with_stdin(rows), source, batch_size, scores)
    with finished_only(output) as out, closing(answered):
        faults = _write(answered, out, strict, progress=output is not None)
    if faults.broken:
        raise DataError(str(faults))
    if faults.count:
        click.echo(faults, err=True)


def _check_usage(output: Path | None) -> None:
    """Refuse what does not go with --input.

    Raises:
        UsageError: a source beside the folder, or no folder for the answers.
    """
    if click.get_current_context().get_parameter_source("source") is not ParameterSource.DEFAULT:
        raise click.UsageError("--input names what is answered; leave out FILE")
    if output is None:
        raise click.UsageError("--input needs --output, a folder for the answers")


def _answered(
    predictor: Predictor, rows: Iterable[Row], source: str, batch_size: int | None, scores: bool
) -> Generator[list[tuple[Row, Answer]], None, None]:
    """Yield the rows with their answers, in order; a row that could not be read has its error."""
    from offramp.inference.pipeline import WINDOW, Fault
    from offramp.inference.stream import LiveSource, Source, SteadySource

    read: deque[Row] = deque()

    def items() -> Iterator[Text | Fault]:
        for row in rows:
            read.append(row)
            yield row.text if row.error is None else Fault(row.error)

    if _may_pause(source):
        texts: Source[Text | Fault] = LiveSource(items(), WINDOW)
    else:
        texts = SteadySource(items())
    for answers in predictor.answer_source(texts, batch_size, top_k=None if scores else 0):
        yield [(read.popleft(), answer) for answer in answers]


@dataclass
class _Faults:
    """Counts the rows without an answer.

    Attributes:
        rows: all rows.
        count: of rows without an answer.
        first: the first of them, and its error.
        broken: where the source broke off, for the message; "" where it did not.
    """

    rows: int = 0
    count: int = 0
    first: str = ""
    broken: str = ""

    def add(self, row: Row, error: str | None) -> None:
        """Count a row; an error is None where it has an answer."""
        self.rows += 1
        if error is not None:
            self.count += 1
            self.first = self.first or f"{row.location}: {error}"
        if row.broken:
            self.broken = f"; the source breaks off at {row.location}"

    def __str__(self) -> str:
        have = "row has" if self.rows == 1 else "rows have"
        return f"{self.count:,} of {self.rows:,} {have} no answer; the first is {self.first}{self.broken}"


def _write(answered: Iterable[list[tuple[Row, Answer]]], out: IO[str], strict: bool, progress: bool) -> _Faults:
    """Write all answers as they come, and return the count of the rows that have none.

    Raises:
        DataError: strict, at the first row without an answer.
    """
    faults = _Faults()
    for window in _with_bar(answered) if progress else answered:
        for row, answer in window:
            faults.add(row, answer.get("error"))
            if "error" in answer:
                if strict:
                    raise DataError(faults.first)
                answer["line"] = row.line
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()
    return faults


def _with_bar(windows: Iterable[list[Item]]) -> Iterator[list[Item]]:
    """Yield windows of rows, with a bar that counts the rows behind them."""
    from tqdm import tqdm

    with tqdm(desc="predict", unit="text", disable=None) as bar:
        for window in windows:
            yield window
            bar.update(len(window))


def _may_pause(source: str) -> bool:
    """Return True for a pipe or a terminal, where the next line may be long in coming."""
    try:
        mode = os.stat(0 if source == "-" else source).st_mode
    except OSError:
        return False  # a data set's name
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _with_stdin(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows in the thread that reads them, which holds standard input meanwhile.

    Else the interpreter closes it at its end, and dies waiting for that thread.
    """
    with nullcontext(sys.stdin):
        yield from rows
