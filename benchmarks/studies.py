"""The comparisons of the five papers on real encoders: `offramp study` on the cells of `study_cells.py`.

    python benchmarks/studies.py --data ../shared/data

Nothing is trained here. A system whose training has not run with all seeds is left out, and said; where the paper's
plain model has not run, the last exit of the depth-weighted training takes its place. The traces of MPNet-base on
CLINC150, SST-2 and SNLI (`mpnet_traces.py`; one seed, linear exits) serve the comparisons of policies on one model.

Pages go to `benchmarks/results/studies/CASE/STUDY.md`, with their figures beside them as JSON, and
`benchmarks/results/studies/README.md` lists them and what has run. `claims.py` says what is to be made of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lexical_models import DEEP_TASKS, MPNET
from machine import as_lines, provenance
from offramp.model.config import MultiExitConfig
from offramp.studies.markdown import data_set_of, page
from offramp.studies.papers.pabee import WEIGHTED
from offramp.studies.registry import STUDIES, load_study
from offramp.studies.run import run_study
from offramp.studies.spec import Study, TrainingSpec
from offramp.studies.training_runs import ExperimentSummary, Trained
from offramp.types.trace import Trace
from study_cells import CASES, RESULTS, SEEDS, Case, Cell, cells, load

TRACES = RESULTS.parent / "traces"
OF_TRACES = ("pabee", "pcee")
"""The studies whose policies all run on one model."""
LAST_EXIT = "The full model is the last exit of the depth-weighted training; no model was trained for it alone."
LINEAR = "Exits are linear, as the paper writes, and not poolers as in its code."


@dataclass(frozen=True)
class Runs:
    """What there is of a case.

    Attributes:
        name: of the case.
        trained: by training and seed; whole sets of seeds only.
        seeds: of the trainings.
        summary: how the models were trained.
        metrics: the score is their mean.
        data: the paper's name for the data set.
        notes: on the models.
    """

    name: str
    trained: dict[tuple[str, int], Trained]
    seeds: tuple[int, ...]
    summary: ExperimentSummary
    metrics: tuple[str, ...]
    data: str
    notes: tuple[str, ...] = ()

    def have(self, training: TrainingSpec) -> bool:
        """Whether a training has run with all seeds."""
        return (training.name, self.seeds[0]) in self.trained


def of_cells(case: Case) -> Runs | None:
    """The finished trainings of a case; None where there are none."""
    mine: dict[str, list[Cell]] = {}
    for cell in cells():
        if cell.case == case and cell.file.exists():
            mine.setdefault(cell.training.name, []).append(cell)
    whole = [cell for some in mine.values() if len(some) == len(SEEDS) for cell in some]
    if not whole:
        return None
    setting = json.loads(whole[0].file.read_text())["setting"]
    trained = {(cell.training.name, cell.seed): load(cell) for cell in whole}
    return Runs(case.name, trained, SEEDS, ExperimentSummary(**setting), case.metrics, case.task)


def of_trace(name: str) -> Runs:
    """A trace of MPNet-base without its exit before the first layer, and without the rows that fitted that exit."""
    trace, task = Trace.load(TRACES / f"{name}.safetensors"), DEEP_TASKS[name]
    assert trace.fit_rows is not None
    behind = replace(trace.select(trace.layer_numbers[1:]), macs=None, fit_rows=None)
    rows = behind.take((~trace.fit_rows).nonzero().squeeze(-1))
    data = name.removeprefix(MPNET)
    recipe = {
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": 32,
        "learning_rate": task.learning_rate,
        "bf16": True,
    }
    sources = {"train": f"{data}/train", "validation": f"{data}/{task.split}"}
    counts = {"train": task.rows, "validation": len(rows)}
    summary = ExperimentSummary("all-mpnet-base-v2", None, "mean", task.max_length, recipe, sources, counts)
    trained = {(WEIGHTED.name, 0): Trained({"validation": rows}, MultiExitConfig(), 0.0, 0.0)}
    return Runs(name, trained, (0,), summary, ("accuracy",), data, (LINEAR,))


def as_far_as_run(study: Study, runs: Runs, regression: bool) -> Study | None:
    """A study without the systems that have not run; None where fewer than two systems with policies are left."""
    systems = [system for system in study.systems_for(regression) if runs.have(system.training)]
    left = [system.name for system in study.systems_for(regression) if system not in systems]
    trainings = tuple(training for training in study.trainings if runs.have(training))
    left += [training.name for training in study.trainings if training not in trainings]
    plain, notes = study.plain, (*study.notes, *runs.notes)
    if not runs.have(plain):
        plain, notes = WEIGHTED, (*notes, LAST_EXIT)
    if left:
        notes = (*notes, f"Not run: {', '.join(left)}.")
    if not runs.have(plain) or sum(bool(system.policies_for(regression)) for system in systems) < 2:
        return None
    return replace(study, systems=tuple(systems), trainings=trainings, plain=plain, notes=notes)


def report(study: Study, runs: Runs, pairs: Sequence[tuple[str, str]] | None) -> None:
    """Write a page and its JSON."""
    result, about = run_study(study, runs.trained, runs.seeds, runs.metrics, pairs), provenance()
    target = RESULTS / runs.name / study.name
    target.parent.mkdir(parents=True, exist_ok=True)
    figures = {**result.to_json(), "setting": asdict(runs.summary), "about": about}
    target.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    text = [page(result, runs.summary, data_set_of(study, runs.data)), as_lines(about), ""]
    target.with_suffix(".md").write_text("\n".join(text))


def index() -> str:
    """List the pages, what has run, and what has not."""
    lines = [
        "# The papers' comparisons on real encoders",
        "",
        "Written by `python benchmarks/studies.py` from the cells of `python benchmarks/study_cells.py`. MiniLM has",
        "six layers of 384, MPNet-base twelve of 768; three seeds a training, but one in the cases with a trace alone.",
        "",
        "| case | pages |",
        "|---|---|",
    ]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        pages = [f"[{name}]({folder.name}/{name}.md)" for name in STUDIES if (folder / f"{name}.md").exists()]
        lines += [f"| {folder.name} | {', '.join(pages)} |"] if pages else []
    done = [cell for cell in cells() if cell.file.exists()]
    hours = sum(json.loads(cell.file.read_text())["cpu_seconds"] for cell in done) / 3600
    lines += ["", f"{len(done)} of {len(cells())} cells have run, in {hours:.1f} hours of one core.", ""]
    lines += ["| training | " + " | ".join(CASES) + " |", "|---" * (len(CASES) + 1) + "|"]
    for name in dict.fromkeys(cell.training.name for cell in cells()):
        lines.append(f"| {name} | " + " | ".join(_seeds_run(name, case) for case in CASES) + " |")
    return "\n".join([*lines, "", "Seeds that have run, of those planned; empty: not planned.", ""])


def _seeds_run(training: str, case: str) -> str:
    mine = [cell for cell in cells() if (cell.training.name, cell.case.name) == (training, case)]
    return f"{sum(cell.file.exists() for cell in mine)} of {len(mine)}" if mine else ""


def main() -> None:
    """Write all pages that can be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="for BLEU on MRPC")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="of `study_cells.py`")
    options = parser.parse_args()
    for case in CASES.values():
        runs = of_cells(case)
        pairs = case.config(options.data, options.encoders).pairs() if runs and case.task == "mrpc" else None
        for name in STUDIES if runs else ():
            assert runs is not None
            study = as_far_as_run(load_study(name), runs, case.regression)
            if study is not None:
                report(study, runs, pairs)
    for case_name in DEEP_TASKS:
        for name in OF_TRACES:
            runs = of_trace(case_name)
            study = as_far_as_run(load_study(name), runs, False)
            assert study is not None
            report(study, runs, None)
    (RESULTS / "README.md").write_text(index())


if __name__ == "__main__":
    main()
