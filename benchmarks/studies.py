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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import as_lines, provenance
from offramp.model.config import MultiExitConfig
from offramp.model.default_encoder import default_encoder, encoder_name
from offramp.studies.markdown import data_set_of, page
from offramp.studies.papers.pabee import NINE, SIX, WEIGHTED, WHOLE
from offramp.studies.papers.pcee import GATED
from offramp.studies.registry import load_study
from offramp.studies.run import run_study
from offramp.studies.spec import Study, TrainingSpec
from offramp.studies.training_runs import Trained
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
    known = [replace(each, training=as_run(each.training)) for each in study.systems]
    systems = [each for each in known if there(case, each.training, seeds, runs)]
    left = [each.name for each in known[1:] if each not in systems]
    notes = (*study.notes, LINEAR, *([f"Left out for lack of runs: {', '.join(left)}."] if left else []))
    if known[0] in systems:
        return replace(study, systems=tuple(systems), plain=as_run(study.plain), notes=notes)
    first = replace(known[0], training=DEPTH_WEIGHTED)
    return replace(study, systems=(first, *systems), plain=DEPTH_WEIGHTED, notes=(*notes, LAST_EXIT))


def there(case: Case, training: TrainingSpec, seeds: Sequence[int], runs: Path) -> bool:
    """Whether a training has been run with all seeds."""
    return all(case.cell(training, seed).file(runs).exists() for seed in seeds)


def trained(case: Case, training: TrainingSpec, seed: int, runs: Path) -> Trained:
    """What `training.py` left of a run."""
    trace = Trace.load(case.cell(training, seed).file(runs).with_suffix(".safetensors"))
    return Trained({"validation": trace}, MultiExitConfig(), 0.0, 0.0)


def setting(case: Case, cell: Cell, runs: Path) -> dict[str, Any]:
    """How a run was trained, as `offramp.studies.training_runs.ExperimentConfig.told` says it."""
    told = json.loads(cell.file(runs).read_text())
    recipe = told["recipe"]
    return {
        "backbone": encoder_name(default_encoder()),
        "layers": case.depth,
        "pooling": recipe.pop("pooling"),
        "max_length": recipe.pop("max_length"),
        "recipe": recipe,
        "data": {"train": f"{case.task}/train", "validation": f"{case.task}/{TASKS[case.task].validation}"},
        "rows": {"train": told["rows"], "validation": told["reported_rows"]},
    }


def report(name: str, case: Case, study_name: str, given: argparse.Namespace) -> None:
    """Write a page, with the seeds that are there."""
    seeds = [seed for seed in SEEDS if case.cell(DEPTH_WEIGHTED, seed).file(given.runs).exists()]
    study = load(case, study_name, seeds, given.runs)
    trainings = study.all_trainings(TASKS[case.task].metrics == REGRESSIONS)
    runs = {(each.name, seed): trained(case, each, seed, given.runs) for each in trainings for seed in seeds}
    cell = case.cell(DEPTH_WEIGHTED, seeds[0])
    pairs = examples_of(cell, given.data, None)[1].texts if case.pairs else None
    found = run_study(study, runs, seeds, TASKS[case.task].metrics, pairs)
    found |= {"setting": setting(case, cell, given.runs), "about": provenance()}
    target = RESULTS / f"study_{study.name}_{name}"
    text = [page(study, found, data_set_of(study, case.task)), as_lines(found["about"]), ""]
    target.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    target.with_suffix(".md").write_text("\n".join(text))


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/training"), help="where `training.py` left its runs")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    for name in given.cases:
        for study in CASES[name].studies:
            report(name, CASES[name], study, given)


if __name__ == "__main__":
    main()
