"""How far does `offramp predict --input DIR --ray` scale, to 1,000 workers, and what stops it?

    python benchmarks/scaling.py --model runs/speed/clinc150-0 --data ../shared/data/clinc150/train.jsonl.gz
    python benchmarks/scaling.py --from-file      # simulates again, measures nothing

Takes up what a run that was stopped has measured; with `--anew` it measures all.

Measures on this machine what a row and a block cost one core (`scaling_measure.py`): reading by format, answering at
full depth and at the default point, writing, and Ray with blocks of several sizes, with an actor that does nothing.
Then simulates jobs of up to 1,000 actors from these costs (`scaling_model.py`), beside the bound that a formula gives.
The simulation knows no network and no disk, and takes Ray's costs a block to be the same in a large cluster.

Writes `results/scaling.json` and `.md`, `docs/pictures/scaling.svg` and the tables of `docs/scaling.md`. Three minutes
to measure on two idle cores, one to simulate; needs `[ray,onnx]` and matplotlib (`[demo]`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from machine import provenance
from offramp.inference.folder_job.blocks import BLOCK_ROWS
from resumable import load_state, save_state
from scaling_measure import measure
from scaling_model import Costs, Job, Simulation, bottleneck, bound
from scaling_page import BEGIN, END, GUIDE, page, tables, with_tables
from scaling_pictures import draw_jobs

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "scaling.json"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
SIZES = (256, BLOCK_ROWS, 16_384)
"""Rows of a block: fewer, as `offramp predict --ray` has them, and more."""
ROWS, FILES = 2**25, 2**11
"""Of a job; in one file, or in so many."""
ROUNDS, SEEDS = 3, 3
SPREAD, FAILURES, RESTART_S = 0.3, 0.1, 60.0
"""Of the logarithm of blocks' times; of a node an hour; until its actors answer again. Assumed, not measured."""


def costs_of(measured: Mapping[str, Any], point: str, file: str) -> Costs:
    """Return the costs of a job, from medians of what was measured."""
    sizes = [int(rows) for rows in measured["ray"]]
    driver = [median(measured["ray"][str(rows)]["driver"]) + median(measured["write"][str(rows)]) for rows in sizes]
    actor = [median(measured["ray"][str(rows)]["actor"]) for rows in sizes]
    of_point = measured["points"][point]
    row = median(of_point["answer"]) + median(of_point["json"])
    start = measured["ray_start"] + median(of_point["load"])
    return Costs(median(measured["read"][file]), row, *line(sizes, actor), *line(sizes, driver), start)


def line(rows: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return a block's seconds and a row's, neither below 0: a line through times of blocks of several sizes.

    Relative errors count: small blocks fix the one, large ones the other.
    """
    weights = 1 / np.array(seconds)
    slope, start = np.polyfit(rows, seconds, 1, w=weights)
    if slope < 0:
        return float(np.average(seconds, weights=weights**2)), 0.0
    return (float(start), float(slope)) if start > 0 else (0.0, float(np.average(np.divide(seconds, rows))))


def job_of(workers: int, files: int, block_rows: int) -> Job:
    """Return a job of ROWS rows."""
    return Job(ROWS, min(files, ROWS // block_rows), block_rows, workers)


def simulated(job: Job, costs: Costs, seeds: int = 1) -> dict[str, Any]:
    """Return what a job does, the median of some seeds, beside its bound."""
    rates = [Simulation(job, costs, seed).run() for seed in range(seeds)]
    return {
        "workers": job.workers,
        "rate": median(rates),
        "rates": rates,
        "bound": bound(job, costs),
        "efficiency": median(rates) / (job.workers * costs.plain()),
        "bottleneck": bottleneck(job, costs),
    }


def curves(costs: Costs, packed: Costs) -> dict[str, list[dict[str, Any]]]:
    """Return rates by workers: many files with blocks of each size, and one packed file."""
    found = {
        f"{FILES:,} files, blocks of {rows:,}": [simulated(job_of(count, FILES, rows), costs) for count in WORKERS]
        for rows in SIZES
    }
    found[f"one gz, blocks of {BLOCK_ROWS:,}"] = [simulated(job_of(count, 1, BLOCK_ROWS), packed) for count in WORKERS]
    return found


def mishaps(costs: Costs) -> dict[str, list[dict[str, Any]]]:
    """Return rates by workers where blocks take unequal times, nodes fail, and both."""
    cases: dict[str, dict[str, float]] = {
        "nothing goes wrong": {},
        "blocks take unequal times": {"spread": SPREAD},
        "nodes fail": {"failures": FAILURES, "restart_s": RESTART_S},
        "both": {"spread": SPREAD, "failures": FAILURES, "restart_s": RESTART_S},
    }
    some = (16, 125, 1000)
    return {
        name: [simulated(replace(job_of(count, FILES, BLOCK_ROWS), **case), costs, SEEDS) for count in some]  # type: ignore[arg-type]
        for name, case in cases.items()
    }


def main() -> None:
    """Measure unless a file has it, simulate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help='a folder with an exported graph and a point "default"')
    parser.add_argument("--engine", default="onnx-int8", help="that runs it")
    parser.add_argument("--data", default="helpdesk", help="real texts, unlabelled or not")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--anew", action="store_true", help="measure what the results have already, too")
    parser.add_argument("--from-file", action="store_true", help="take what was measured from the results")
    options = parser.parse_args()
    state = load_state(FILE, {"measured": {}})
    if not options.from_file:
        if options.model is None:
            parser.error("--model is missing; or --from-file")
        if options.anew:
            state["measured"] = {}
        state |= {"about": provenance(), "rounds": options.rounds}
        for part in measure(options.model, options.engine, options.data, options.rounds, state["measured"]):
            save_state(FILE, state)
            print(part, flush=True)
    state["points"] = {}
    for point in state["measured"]["points"]:
        costs, packed = (costs_of(state["measured"], point, file) for file in ("csv", "csv.gz"))
        print(point, costs, flush=True)
        state["points"][point] = {
            "costs": vars(costs),
            "plain": costs.plain(),
            "curves": curves(costs, packed),
            "mishaps": mishaps(costs),
        }
    save_state(FILE, state)
    (RESULTS / "scaling.md").write_text(page(state), encoding="utf-8")
    guide = with_tables(GUIDE.read_text(encoding="utf-8"), BEGIN, END, tables(state))
    GUIDE.write_text(guide, encoding="utf-8")
    draw_jobs(state)


if __name__ == "__main__":
    main()
