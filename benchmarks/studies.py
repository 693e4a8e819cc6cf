"""The comparisons of PABEE and PCEE-BERT with the default encoder: `offramp study` on the runs of `training.py`.

    python benchmarks/training.py --tasks sst2,mrpc,cola,clinc150,sick --objectives weighted --depths 6
    python benchmarks/training.py --tasks sick --objectives weighted --depths 6 --single
    python benchmarks/studies.py

Nothing is trained here: what `offramp study` would train is taken from the runs that `training.py` left, a study's
training by the objective that does the same (`TRAININGS`; exits are linear, as the papers write). A case takes the
seeds whose runs are there. Pages go to `benchmarks/results/study_*.md`, with their figures beside them as JSON. Two
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import as_lines, provenance
from offramp.config import MultiExitConfig
from offramp.encoder import default_encoder, encoder_name
from offramp.registry import load_study
from offramp.runs import Trained
from offramp.studies.base import Study, System, Training
from offramp.studies.pabee import NINE, SIX, WEIGHTED, WHOLE
from offramp.study import examine
from offramp.study_page import data_set_of, page
from offramp.values import Trace
from training import TASKS, Cell, examples_of

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
TRAININGS = {WEIGHTED.name: "weighted", WHOLE.name: "single-6", NINE.name: "single-4", SIX.name: "single-3"}
"""A study's training -> the objective of `training.py`."""
LAST_EXIT = "The full model is the last exit of the weighted training; no model was trained for it alone"
LINEAR = "Exits are linear, as the paper writes, and not poolers, as in its code. Left out for lack of runs: "


@dataclass(frozen=True)
class Case:
    """An encoder on a data set.

    Attributes:
        task: a name of `training.TASKS`.
        depth: layers; 12 = the default encoder's six, each twice.
        studies: names.
        alone: whether there are models with one exit, whole and cut; else those systems are left out.
        pairs: whether confidence is held against BLEU.
    """

    task: str
    depth: int
    studies: tuple[str, ...]
    alone: bool = False
    pairs: bool = False

    def load(self, name: str) -> Study:
        """A study as far as there are runs for it, its trainings called like the runs."""
        study = load_study(name)
        systems = [each for each in study.systems if self.has(each)]
        left = [each.name for each in study.systems if each not in systems]
        plain, notes = study.plain, (LINEAR + (", ".join(left) or "nothing"),)
        if not self.alone:
            systems[0], plain, notes = replace(systems[0], training=WEIGHTED), WEIGHTED, (LAST_EXIT, *notes)
        called = tuple(replace(each, training=as_run(each.training)) for each in systems)
        return replace(
            study, systems=called, plain=as_run(plain), notes=(*study.notes, *(f"{note}." for note in notes))
        )

    def has(self, system: System) -> bool:
        """Whether there are runs for a system; the full model comes first, and can be had from the last exit."""
        name = system.training.name
        return name in TRAININGS and (self.alone or name not in (NINE.name, SIX.name))


def as_run(training: Training) -> Training:
    """What a study's training is in `training.py`."""
    return replace(training, name=TRAININGS[training.name], exits={})


CASES = {
    "sst2": Case("sst2", 6, ("pcee", "pabee")),
    "mrpc": Case("mrpc", 6, ("pcee",), pairs=True),
    "cola": Case("cola", 6, ("pcee",)),
    "clinc150": Case("clinc150", 6, ("pcee",)),
    "sick": Case("sick", 6, ("pabee",), alone=True),
    "sst2-12": Case("sst2", 12, ("pcee",)),
}


def cells(case: Case, study: Study, seed: int) -> dict[str, Cell]:
    """The runs of `training.py` that a study needs, by the name of its training."""
    needed = study.all_trainings(TASKS[case.task].metrics == ("pearson",))
    return {each.name: Cell(case.task, each.name, case.depth, seed) for each in needed}


def setting(case: Case, cell: Cell, runs: Path) -> dict[str, Any]:
    """How a run was trained, as `offramp.runs.Setting.told` says it."""
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


def report(name: str, case: Case, study: Study, given: argparse.Namespace) -> None:
    """Write a page, with the seeds that are there."""
    wanted = {seed: cells(case, study, seed) for seed in SEEDS}
    seeds = [seed for seed, each in wanted.items() if all(cell.file(given.runs).exists() for cell in each.values())]
    if not seeds:
        print(f"{study.name} on {name}: no seed has all the runs {', '.join(wanted[SEEDS[0]])}")
        return
    runs = {
        (training, seed): Trained(
            {"validation": Trace.load(cell.file(given.runs).with_suffix(".safetensors"))}, MultiExitConfig(), 0.0, 0.0
        )
        for seed in seeds
        for training, cell in wanted[seed].items()
    }
    cell = wanted[seeds[0]][TRAININGS[WEIGHTED.name]]
    pairs = examples_of(cell, given.data, None)[1].texts if case.pairs else None
    found = examine(study, runs, seeds, TASKS[case.task].metrics, pairs)
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
            report(name, CASES[name], CASES[name].load(study), given)


if __name__ == "__main__":
    main()
