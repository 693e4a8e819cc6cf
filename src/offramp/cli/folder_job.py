"""`offramp predict --input`: answer the files of a folder, here or on a Ray cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from offramp.inference.folder_job.identity import identity_of
from offramp.inference.folder_job.job import FolderJob, answer_here, run_job
from offramp.inference.folder_job.manifest import MANIFEST
from offramp.inference.predictor import Predictor


def answer_folder(
    job: FolderJob, folder: Path, predictor: Predictor, options: dict[str, Any], *, ray: str | None, as_json: bool
) -> None:
    """Answer a folder's files, and print what came of it.

    Args:
        job: the folder.
        folder: of the model, or a hub name.
        predictor: loaded from there.
        options: of the command: `batch_size`, `scores`, `threads`, `workers`.
        ray: the address of a cluster, "" = one of this command's own; None = no cluster.
        as_json: print one JSON object to standard output, else a line to standard error.
    """
    begin = time.monotonic()
    top_k = None if options["scores"] else 0
    identity = identity_of(folder, predictor, options["scores"])
    if ray is None:
        totals = run_job(job, identity, answer_here(predictor, options["batch_size"], top_k))
    else:
        from offramp.cluster.ray_folder import on_cluster

        workers, threads = options["workers"], options["threads"] or 1
        with on_cluster(ray, folder, predictor, options["batch_size"], top_k, workers, threads) as answer:
            totals = run_job(job, identity, answer)
    totals["seconds"] = round(time.monotonic() - begin, 3)
    totals["manifest"] = str(job.output / MANIFEST)
    if as_json:
        click.echo(json.dumps(totals, ensure_ascii=False))
    else:
        click.echo(_text(totals), err=True)


def _text(totals: dict[str, Any]) -> str:
    before = f", {totals['files_done_before']:,} of them before" if totals["files_done_before"] else ""
    mean = totals["mean_exit_layer"]
    depth = "" if mean is None else f"; {mean:.2f} layers a row"
    faults = f"; rows without an answer: {totals['errors']:,}" if totals["errors"] else ""
    first = f", the first is {totals['first_error']}" if totals["first_error"] else ""
    return f"rows: {totals['rows']:,}; files: {totals['files_done']:,}{before}{depth}{faults}{first}"
