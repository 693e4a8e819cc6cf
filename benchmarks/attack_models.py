"""The models that are attacked: the default encoder with six exits, on AG News and SNLI.

    python benchmarks/attack_models.py --task snli     # train one; start it again after a kill

The last step counts: nothing is chosen on rows that are attacked or reported on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import set_seed

from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_examples, subsample
from offramp.evaluation.metrics import layerwise
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import fit, token_rows
from offramp.types.trace import Trace


@dataclass(frozen=True)
class Task:
    """A data set, how a model learns it, and which rows are attacked.

    Attributes:
        folder: of the data set, with a train and a validation split.
        attacked: the file of TextFooler's rows.
        columns: of both; of a pair the second text is attacked, as in TextFooler.
        names: the classes in the order of the label numbers.
        rows: of the train split, drawn once; all of them where there are no more.
        max_length: tokens a text or pair.
    """

    folder: str
    attacked: str
    columns: Columns
    names: tuple[str, ...]
    rows: int
    max_length: int
    epochs: int
    batch_size: int


TASKS = {
    "ag": Task(
        *("ag_news", "textfooler_1k/ag.jsonl.gz", Columns("sentence1", None, "label_text")),
        *(("World", "Sports", "Business", "Sci/Tech"), 2000, 96, 1, 16),
    ),
    "snli": Task(
        *("snli", "textfooler_1k/snli.jsonl.gz", Columns("sentence1", "sentence2", "label_text")),
        *(("entailment", "neutral", "contradiction"), 9000, 64, 2, 16),
    ),
}
LEARNING_RATE = 1e-4


def examples(task: Task, file: Path) -> Examples:
    """The rows of a file of this task."""
    return read_examples(str(file), task.columns, split="train", label_names=task.names)


def train(task: Task, data: Path, folder: Path, seed: int) -> None:
    """Train a model with the `weighted` objective, or go on where a run was stopped."""
    if (folder / "model.safetensors").exists():
        return
    tokenizer = load_tokenizer(default_encoder())
    tokenizer.model_max_length = task.max_length
    set_seed(seed)
    names = dict(enumerate(task.names))
    model = MultiExitModel.from_backbone(default_encoder(), id2label=names, pooling="mean")
    recipe = {
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": LEARNING_RATE,
        "bf16": True,
        "seed": seed,
    }
    schedule = {"save_strategy": "steps", "save_steps": 25, "save_total_limit": 1}
    rows = subsample(examples(task, data / task.folder / "train.jsonl.gz"), task.rows)
    fit(model, tokenizer, folder, rows, resume=True, **recipe, **schedule)


def deployed(folder: Path) -> TorchEngine:
    """The model as it is attacked: in bfloat16."""
    return TorchEngine(load_model(folder).to(torch.bfloat16))


def validation_trace(task: Task, data: Path, folder: Path) -> Trace:
    """What every exit of the deployed model says of the validation rows; thresholds are chosen here."""
    kept = folder / "validation.safetensors"
    if not kept.exists():
        rows = examples(task, data / task.folder / "validation.jsonl.gz")
        record(deployed(folder), token_rows(rows, load_tokenizer(folder), task.max_length)).save(kept)
    return Trace.load(kept)


def main() -> None:
    """Train one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/attack"))
    options = parser.parse_args()
    folder = options.runs / f"{options.task}-{options.seed}"
    train(TASKS[options.task], options.data, folder, options.seed)
    print([round(score, 3) for score in layerwise(validation_trace(TASKS[options.task], options.data, folder))])


if __name__ == "__main__":
    main()
