"""The comparisons of PABEE and PCEE-BERT with the default encoder: `offramp study` on the runs of `training.py`.

    python benchmarks/training.py --tasks sst2,mrpc,cola,clinc150,sick --objectives weighted --depths 6
    python benchmarks/training.py --tasks sst2 --objectives weighted --depths 12 --seeds 0
    python benchmarks/training.py --tasks sst2 --objectives weighted-gate --depths 6
    python benchmarks/training.py --tasks sst2,sick --objectives single-3,single-4,single-6 --depths 6
    python benchmarks/studies.py

Nothing is trained here: what `offramp study` would train is taken from the runs that `training.py` left, a study's
training by the objective that does the same (`TRAININGS`; exits are linear, as the papers write). What has no runs is
left out, and said. Pages go to `benchmarks/results/study_*.md`, with their figures beside them as JSON; what is to be
made of them is in `studies_reading.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from machine import as_lines, provenance
from offramp.model.config import MultiExitConfig
from offramp.model.default_encoder import default_encoder, encoder_name
from offramp.studies.markdown import data_set_of, page
from offramp.studies.papers.pabee import NINE, SIX, WEIGHTED, WHOLE
from offramp.studies.papers.pcee import GATED
from offramp.studies.registry import load_study
from offramp.studies.run import run_study
from offramp.studies.spec import Study, TrainingSpec
from offramp.studies.training_runs import ExperimentSummary, Trained
from offramp.types.trace import Trace
from training import REGRESSIONS, TASKS, Cell, examples_of

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
TRAININGS = {
    WEIGHTED.name: "weighted",
    GATED.name: "weighted-gate",
    WHOLE.name: "single-6",
    NINE.name: "single-4",
    SIX.name: "single-3",
}
"""A study's training -> the objective of `training.py`."""
LAST_EXIT = "The full model is the last exit of the weighted training; no model was trained for it alone."
LINEAR = "Exits are linear, as the paper writes, and not poolers as in its code."


@dataclass(frozen=True)
class Case:
    """An encoder on a data set.

    Attributes:
        task: a name of `training.TASKS`.
        depth: layers; 12 = the default encoder's six, each twice.
        studies: names.
        pairs: whether confidence is held against BLEU.
    """

    task: str
    depth: int
    studies: tuple[str, ...]
    pairs: bool = False

    def cell(self, training: TrainingSpec, seed: int) -> Cell:
        """The run of `training.py`."""
        return Cell(self.task, training.name, self.depth, seed)


CASES = {
    "sst2": Case("sst2", 6, ("pcee", "pabee")),
    "mrpc": Case("mrpc", 6, ("pcee",), pairs=True),
    "cola": Case("cola", 6, ("pcee",)),
    "clinc150": Case("clinc150", 6, ("pcee",)),
    "sick": Case("sick", 6, ("pabee",)),
    "sst2-12": Case("sst2", 12, ("pcee",)),
}


def as_run(training: TrainingSpec) -> TrainingSpec:
    """What a study's training is in `training.py`."""
    return replace(training, name=TRAININGS[training.name], exits={})


DEPTH_WEIGHTED = as_run(WEIGHTED)


def load(case: Case, name: str, seeds: Sequence[int], runs: Path) -> Study:
    """A study as far as there are runs for it."""
    study = load_study(name)
    known = [replace(system, training=as_run(system.training)) for system in study.systems]
    systems = [system for system in known if has_runs(case, system.training, seeds, runs)]
    left = [system.name for system in known[1:] if system not in systems]
    notes = (*study.notes, LINEAR, *([f"Left out for lack of runs: {', '.join(left)}."] if left else []))
    if known[0] in systems:
        return replace(study, systems=tuple(systems), plain=as_run(study.plain), notes=notes)
    first = replace(known[0], training=DEPTH_WEIGHTED)
    return replace(study, systems=(first, *systems), plain=DEPTH_WEIGHTED, notes=(*notes, LAST_EXIT))


def has_runs(case: Case, training: TrainingSpec, seeds: Sequence[int], runs: Path) -> bool:
    """Whether a training has been run with all seeds."""
    return all(case.cell(training, seed).file(runs).exists() for seed in seeds)


def trained(case: Case, training: TrainingSpec, seed: int, runs: Path) -> Trained:
    """What `training.py` left of a run."""
    trace = Trace.load(case.cell(training, seed).file(runs).with_suffix(".safetensors"))
    return Trained({"validation": trace}, MultiExitConfig(), 0.0, 0.0)


def summary_of(case: Case, cell: Cell, runs: Path) -> ExperimentSummary:
    """The settings of a run of `training.py`."""
    run = json.loads(cell.file(runs).read_text())
    recipe = run["recipe"]
    return ExperimentSummary(
        encoder_name(default_encoder()),
        case.depth,
        recipe.pop("pooling"),
        recipe.pop("max_length"),
        recipe,
        {"train": f"{case.task}/train", "validation": f"{case.task}/{TASKS[case.task].validation}"},
        {"train": run["rows"], "validation": run["reported_rows"]},
    )


def report(name: str, case: Case, study_name: str, options: argparse.Namespace) -> None:
    """Write a page, with the seeds that are there."""
    seeds = [seed for seed in SEEDS if case.cell(DEPTH_WEIGHTED, seed).file(options.runs).exists()]
    study = load(case, study_name, seeds, options.runs)
    trainings = study.all_trainings(TASKS[case.task].metrics == REGRESSIONS)
    runs = {(t.name, seed): trained(case, t, seed, options.runs) for t in trainings for seed in seeds}
    cell = case.cell(DEPTH_WEIGHTED, seeds[0])
    pairs = examples_of(cell, options.data, None)[1].texts if case.pairs else None
    result = run_study(study, runs, seeds, TASKS[case.task].metrics, pairs)
    summary, about = summary_of(case, cell, options.runs), provenance()
    figures = {**result.to_json(), "setting": asdict(summary), "about": about}
    target = RESULTS / f"study_{study.name}_{name}"
    text = [page(result, summary, data_set_of(study, case.task)), as_lines(about), ""]
    target.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    target.with_suffix(".md").write_text("\n".join(text))


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/training"), help="where `training.py` left its runs")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    for name in options.cases:
        for study in CASES[name].studies:
            report(name, CASES[name], study, options)


if __name__ == "__main__":
    main()
