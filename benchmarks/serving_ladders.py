"""Certified ladders for `offramp serve --ladder`, for the prepared folders of `speed_models.py`: what do they promise?

    python benchmarks/serving_ladders.py --data ../shared/data

A folder `TASK-0` of `runs/ladders` is a copy of that of `runs/speed` with a certified ladder that the graph which is
there runs: its policy at its exits. The half of the held-out rows that chooses certifies, from its recorded trace in
int8; the other half reports. The lines of the thresholds are fitted on rows of training, as `offramp train` does it.
For MPNet-base that takes an hour; so there a half of the rows that choose fits them, and the other half certifies, on
agreement alone.

The half that chooses chose the exits of the graph too (`speed_models.py`). So each certificate is made at delta / (sets
of exits that could have been chosen), and holds at delta for the set that was.

Writes `benchmarks/results/serving_ladders.json` and `.md`. Five minutes on one core for four tasks, most of it to fit
the exit of CLINC150 before the first layer anew; seconds where the folders are there. Takes up what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lexical_models import Cell
from machine import as_lines, provenance
from offramp.calibration.agreement import agreement_bounds
from offramp.calibration.calibrate import point_for
from offramp.calibration.outputs import policy_outputs
from offramp.calibration.prepare import PreparedPolicy, prepare_policy
from offramp.calibration.saved_lines import FIT_ROWS, fit_saved_lines, read_saved_lines, write_saved_lines
from offramp.data.examples import subsample
from offramp.evaluation.measure import measure_point
from offramp.inference.load_engine import load_engine
from offramp.inference.record import record
from offramp.model.card import save_points
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_model
from offramp.model.points import load_points
from offramp.training.held_out_logits import held_out_logits
from offramp.types.ladder_names import DROPS, LADDER_NAMES, SPEEDUPS
from offramp.types.operating_point import DEFAULT, Certificate, OperatingPoint, Target
from speed_models import INT8, Prepared

RESULTS = Path(__file__).parent / "results"
TASKS = ("clinc150", "sst2", "mpnet-clinc150", "mpnet-sst2")
DELTA = 0.05


def finish(prepared: Prepared, folder: Path) -> None:
    """Make what is missing of a task's folder with a ladder."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(prepared.folder, partial, ignore=shutil.ignore_patterns("openvino", "checkpoints*"))
        partial.rename(folder)
    if read_saved_lines(folder) is None and not prepared.is_deep:
        save_lines(prepared, folder)
    if any(name in LADDER_NAMES for name in load_points(folder)):
        return
    default = load_points(folder)[DEFAULT]
    points = {DEFAULT: default, **ladder(prepared, folder, default)}
    engine = load_engine(folder, INT8, default)
    for point in points.values():
        engine.check(point)
    save_points(points, folder)


def save_lines(prepared: Prepared, folder: Path) -> None:
    """Fit the lines on rows of training, in int8, that of the lexical exit on a twin's logits, as `offramp train`."""
    every = prepared.cell.examples("train")
    rows = subsample(every, FIT_ROWS)
    twin = held_out_logits(load_model(folder), load_tokenizer(folder), every, rows)
    write_saved_lines(fit_saved_lines(record(folder, rows, INT8), twin), folder)


def ladder(prepared: Prepared, folder: Path, default: OperatingPoint) -> dict[str, OperatingPoint]:
    """Return the ladder that the choosing half certifies, at the exits of the default point."""
    layers = load_model(folder).layers
    sets = 2 ** (len(layers) - 1) - 1  # of exits, with the last one and another
    rows = prepared.trace(INT8).take(prepared.choosing()).select(default.layers_read(layers))
    lines = read_saved_lines(folder)
    ready = prepare_policy(rows, "margin", per_exit=True, confidence=1 - DELTA / sets, saved_lines=lines)
    print(ready.report, flush=True)
    points = by_agreement(ready, DELTA / sets) if prepared.is_deep else ready.ladder()
    return {name: of_family(point, sets) for name, point in points.items()}


def by_agreement(ready: PreparedPolicy, delta: float) -> dict[str, OperatingPoint]:
    """Return a ladder whose points are certified on agreement alone: few rows certify no quality that is worth it."""
    outputs = policy_outputs(ready.rows, ready.policy)
    outputs = replace(outputs, agreement=agreement_bounds(outputs, delta).certificate)
    targets = {name: Target(max_drop=drop) for name, drop in DROPS.items()}
    targets |= {name: Target(speedup=speedup) for name, speedup in SPEEDUPS.items()}
    points = {name: point_for(outputs, target, None) for name, target in targets.items()}
    rungs = {"full": replace(outputs.point(math.inf, {}), agreement=None)}
    for name in sorted(points, key=lambda name: speedup_of(points[name])):
        if speedup_of(points[name]) > speedup_of(rungs[next(reversed(rungs))]) and points[name].agreement is not None:
            rungs[name] = points[name]
    return rungs


def speedup_of(point: OperatingPoint) -> float:
    """Return how many times cheaper a point is than full depth."""
    assert point.measured is not None
    return point.measured.speedup


def of_family(point: OperatingPoint, sets: int) -> OperatingPoint:
    """Return a point whose certificates say how often they fail whichever of the sets of exits was chosen."""

    def certificate(of_one: Certificate | None) -> Certificate | None:
        return None if of_one is None else replace(of_one, delta=round(sets * of_one.delta, 12))

    return replace(point, certificate=certificate(point.certificate), agreement=certificate(point.agreement))


def figures(prepared: Prepared, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a line of the table for each rung, with what the reporting half shows."""
    points = load_points(folder)
    trace = prepared.trace(INT8)
    for name in (name for name in LADDER_NAMES if name in points):
        point = points[name]
        rows = trace.take(prepared.reporting())
        measured = measure_point(rows.select(point.layers_read(rows.layer_numbers)), point)
        yield {
            "task": folder.name,
            "point": name,
            "kept": None if point.certificate is None else 1 - point.certificate.bound,
            "agreement_level": None if point.agreement is None else point.agreement.bound,
            "speedup": measured.speedup,
            "mean_exit": measured.mean_exit,
            "depth": measured.depth,
            "accuracy": measured.score,
            "full_accuracy": measured.full_score,
            "agreement": measured.agreement,
            "chosen_on": 0 if point.measured is None else point.measured.rows,
            "rows": measured.rows,
        }


def table(lines: list[dict[str, Any]]) -> str:
    """Return the lines as Markdown, from slow to fast."""
    head = ["task", "point", "certified: of the full model's right answers kept", "answers that differ, at most"]
    head += ["of full cost", "mean exit", "accuracy (full depth)", "answers that differ", "rows that choose, report"]
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in sorted(lines, key=lambda line: (TASKS.index(line["task"].removesuffix("-0")), line["speedup"])):
        kept, level = line["kept"], line["agreement_level"]
        cells = [line["task"], line["point"], *("" if share is None else f"{share:.1%}" for share in (kept, level))]
        cells += [f"{1 / line['speedup']:.1%}", f"{line['mean_exit']:.2f} of {line['depth']}"]
        cells += [f"{line['accuracy']:.4f} ({line['full_accuracy']:.4f})", f"{1 - line['agreement']:.2%}"]
        cells += [f"{line['chosen_on']}, {line['rows']}"]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--speed", type=Path, default=Path("runs/speed"), help="the folders of speed_models.py")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladders"), help="where the folders with ladders go")
    parser.add_argument("--only", choices=TASKS, help="one task")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    options.runs.mkdir(parents=True, exist_ok=True)
    for task in [options.only] if options.only else TASKS:
        prepared = Prepared(Cell(task, 0, options.data, options.encoders), options.speed)
        folder = options.runs / prepared.folder.name
        finish(prepared, folder)
        lines += figures(prepared, folder)
    print(table(lines))
    if not options.only:
        about = provenance()
        (RESULTS / "serving_ladders.json").write_text(json.dumps({"about": about, "rungs": lines}, indent=1) + "\n")
        (RESULTS / "serving_ladders.md").write_text(f"# Certified ladders\n\n{as_lines(about)}\n\n{table(lines)}\n")


if __name__ == "__main__":
    main()
