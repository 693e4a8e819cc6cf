"""`offramp study` of PABEE and PCEE-BERT with the default encoder, on subsets that train in minutes.

    python benchmarks/studies.py --next      # one training run that is not there yet; exit code 3 = none is left
    python benchmarks/studies.py --next --case sick-6 --seeds 1
    python benchmarks/studies.py --report    # train what is missing, and write the pages

Rows and recipe are those of `training.py`, but that values stay as they are. Runs lie under `--runs`, pages go to
`benchmarks/results/study_*.md` with their figures beside them as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from machine import as_lines, provenance
from offramp.data import Columns, read_examples
from offramp.encoder import default_encoder
from offramp.registry import load_study
from offramp.runs import Setting, all_kept, claim, drawn, kept
from offramp.studies.base import Study
from offramp.study import examine
from offramp.study_page import data_set_of, page
from offramp.values import REGRESSION
from training import LEARNING_RATE, REGRESSIONS, TASKS

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """An encoder on a data set: the studies that share its runs.

    Attributes:
        task: a name of `training.TASKS`.
        layers: of the encoder; 12 = the default one's six, each twice.
        studies: names.
        without: systems that are left out, since they would need more training.
    """

    task: str
    layers: int
    studies: tuple[str, ...]
    without: tuple[str, ...] = ()

    def load(self, name: str) -> Study:
        """A study as far as it is run here."""
        study = load_study(name)
        return replace(study, systems=tuple(each for each in study.systems if each.name not in self.without))


CASES = {
    "sst2-6": Case("sst2", 6, ("pcee", "pabee")),
    "sick-6": Case("sick", 6, ("pabee",)),
    "sst2-12": Case("sst2", 12, ("pcee",), without=("BERxiT",)),
}


def setting_of(case: Case, data: Path) -> Setting:
    """Rows and recipe."""
    task, folder = TASKS[case.task], data / case.task
    columns = Columns("sentence1", "sentence2" if task.pair else None, "label")
    kind = "regression" if task.metrics == REGRESSIONS else "classification"
    train = read_examples(str(folder / "train.jsonl.gz"), columns, split="train", task=kind)
    file, names = str(folder / f"{task.validation}.jsonl.gz"), train.label_names or None
    held_out = read_examples(file, columns, split="validation", task=kind, label_names=names)
    recipe = {
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": LEARNING_RATE,
        "bf16": True,
        "save_strategy": "no",
    }
    about = {"train": f"{case.task}/train", "validation": f"{case.task}/{task.validation}"}
    return Setting(
        default_encoder(),
        drawn(train, task.rows),
        {"validation": held_out},
        case.layers,
        max_length=task.max_length,
        recipe=recipe,
        about=about,
    )


def train_next(name: str, case: Case, setting: Setting, given: argparse.Namespace) -> bool:
    """Train the first model of a case that is not there yet; whether there was one."""
    folder, regression = given.runs / name, setting.train.problem_type == REGRESSION
    claim(folder, setting)
    trainings = {each.name: each for study in case.studies for each in case.load(study).all_trainings(regression)}
    for seed in given.seeds:
        for training in trainings.values():
            if not (folder / f"{training.name}-{seed}").exists():
                kept(folder, training, seed, setting)
                return True
    return False


def report(name: str, case: Case, setting: Setting, given: argparse.Namespace) -> None:
    """Write the pages of a case."""
    regression, metrics = setting.train.problem_type == REGRESSION, TASKS[case.task].metrics
    for study in map(case.load, case.studies):
        runs = all_kept(given.runs / name, study.all_trainings(regression), given.seeds, setting)
        found = examine(study, runs, given.seeds, metrics, setting.pairs())
        found |= {"setting": setting.told(), "about": provenance()}
        target = RESULTS / f"study_{study.name}_{name}"
        told = [page(study, found, data_set_of(study, case.task)), as_lines(found["about"]), ""]
        reading = RESULTS / f"{target.name}_reading.md"
        told += [reading.read_text()] if reading.exists() else []
        target.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
        target.with_suffix(".md").write_text("\n".join(told))


def main() -> None:
    """Train what is not there yet, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="where traces go")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--next", action="store_true", help="train one model")
    what.add_argument("--report", action="store_true", help="write the pages")
    given = parser.parse_args()
    for name in given.case or CASES:
        case = CASES[name]
        setting = setting_of(case, given.data)
        if given.report:
            report(name, case, setting, given)
        elif train_next(name, case, setting, given):
            return
    sys.exit(3 if given.next else 0)


if __name__ == "__main__":
    main()
