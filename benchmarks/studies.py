"""The comparisons of PABEE and PCEE-BERT on the default encoder: `offramp study`, on subsets that train in minutes.

    python benchmarks/studies.py --train sst2-6        # one training run, the first that is not there yet
    python benchmarks/studies.py --report              # the pages of what is there
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from offramp.data import Columns, read_examples
from offramp.encoder import default_encoder
from offramp.registry import STUDIES, load
from offramp.runs import Setting, drawn, claim, kept
from training import LEARNING_RATE, REGRESSIONS, TASKS

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    task: str
    layers: int
    studies: tuple[str, ...]


CASES = {
    "sst2-6": Case("sst2", 6, ("pcee", "pabee")),
    "sick-6": Case("sick", 6, ("pabee",)),
    "sst2-12": Case("sst2", 12, ("pcee",)),
}


def setting(case: Case, data: Path) -> Setting:
    """The rows and the recipe of `training.py`, values as they are."""
    task, folder = TASKS[case.task], data / case.task
    columns = Columns("sentence1", "sentence2" if task.pair else None, "label")
    kind = "regression" if task.metrics == REGRESSIONS else "classification"
    train = drawn(read_examples(str(folder / "train.jsonl.gz"), columns, split="train", task=kind), task.rows)
    names = train.label_names or None
    held_out = read_examples(
        str(folder / f"{task.validation}.jsonl.gz"), columns, split="validation", task=kind, label_names=names
    )
    recipe = {
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": LEARNING_RATE,
        "bf16": True,
        "save_strategy": "no",
    }
    about = {"train": f"{case.task}/train", "validation": f"{case.task}/{task.validation}"}
    return Setting(
        default_encoder(), train, {"validation": held_out}, case.layers, max_length=task.max_length, recipe=recipe, about=about
    )


def train_next(name: str, data: Path, runs: Path, seeds) -> bool:
    """Train one model of a case that is not there yet; whether there was one."""
    case = CASES[name]
    given = setting(case, data)
    claim(runs / name, given)
    regression = given.train.problem_type == "regression"
    trainings = {each.name: each for study in case.studies for each in load(STUDIES, study).all_trainings(regression)}
    for seed in seeds:
        for training in trainings.values():
            if not (runs / name / f"{training.name}-{seed}").exists():
                kept(runs / name, training, seed, given)
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--train", choices=CASES)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=SEEDS)
    given = parser.parse_args()
    sys.exit(0 if train_next(given.train, given.data, given.runs, given.seeds) else 3)


if __name__ == "__main__":
    main()
