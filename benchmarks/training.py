"""How exits learn: training objectives on seven tasks, every exit's score.

    python benchmarks/training.py --tasks rte,mrpc --seeds 0,1,2     # train; start it again after a kill
    python benchmarks/training.py --limit 64 --runs runs/smoke       # everything once, in a minute or two
    python benchmarks/training.py --report                           # add what is trained to the results

The default encoder (6 layers, mean pooling), and the same with each layer doubled (`--depths 12`). One cell is one
training run: task x objective x depth x seed. Each leaves a JSON file and a trace under `--runs`; cells that are there
are skipped, and several processes may work on the same runs at once. All objectives have one recipe, and the last
step counts: no step, seed or objective is chosen on the rows that are reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import offramp
import training_report
from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_examples, subsample
from offramp.evaluation.metrics import layerwise
from offramp.model.backbones.restack import restack
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_encoder, load_tokenizer
from offramp.model.modeling import MultiExitModel
from offramp.studies.training_runs import train_and_record
from offramp.training.objectives.base import Objective
from offramp.training.objectives.registry import load_objective
from offramp.types.trace import Trace
from resumable import alone


@dataclass(frozen=True)
class Task:
    """What is trained on and how; the same for every objective.

    Attributes:
        rows: of the train split, drawn once for all seeds; all of them where there are no more.
        max_length: tokens a text or pair.
        metrics: the score is their mean.
    """

    rows: int
    max_length: int
    epochs: int
    batch_size: int
    metrics: tuple[str, ...] = ("accuracy",)
    pair: bool = True
    validation: str = "validation"


TASKS = {  # in the order of interest
    "sick": Task(2000, 64, 2, 16, ("pearson",)),
    "sst2": Task(5000, 64, 1, 16, pair=False, validation="validation_sentences"),
    "cola": Task(5000, 64, 2, 16, ("matthews",), pair=False),
    "clinc150": Task(4000, 64, 2, 16, pair=False),
    "stsb": Task(1500, 64, 2, 16, ("pearson",)),
    "mrpc": Task(1500, 64, 2, 16, ("accuracy", "f1")),
    "rte": Task(2240, 48, 1, 16),
}
SMALL = ("sick", "sst2")  # where more depth and single exits are tried
OBJECTIVES = (
    *("joint", "weighted", "two-stage", "alternating", "self-distillation"),
    *("ensemble-distillation", "gradient-equilibrium", "bypass"),
)
BYPASSES = {  # the paper's, and those of its ablation of rank and placement
    "bypass": offramp.Bypass(rank=16),
    "bypass-4": offramp.Bypass(rank=4),
    "bypass-64": offramp.Bypass(rank=64),
    "bypass-ffn": offramp.Bypass(rank=16, placement="ffn"),
}
DEEP_OBJECTIVES = ("weighted", "alternating", "two-stage")
LEARNING_RATE = 1e-4
REGRESSIONS = ("pearson",)


@dataclass(frozen=True)
class Cell:
    """One training run. Objective "single-k" is a model cut after layer k with one exit at its end."""

    task: str
    objective: str
    depth: int
    seed: int

    def file(self, runs: Path) -> Path:
        """Where its result is; the trace has the same name with another ending."""
        return runs / self.task / f"{self.objective}-{self.depth}-{self.seed}.json"


def cells(options: argparse.Namespace) -> list[Cell]:
    """What is asked for, in the order of interest: 6 layers, then 12, then single exits."""
    results = []
    for depth in options.depths:
        for task in options.tasks or (TASKS if depth == 6 else SMALL):
            for seed in options.seeds:
                usual = OBJECTIVES if task != SMALL[0] else (*OBJECTIVES, *list(BYPASSES)[1:])
                names = options.objectives or (usual if depth == 6 else DEEP_OBJECTIVES)
                results += [Cell(task, name, depth, seed) for name in names]
    if options.single:
        for task in options.tasks or SMALL:
            for seed in options.seeds:
                results += [Cell(task, f"single-{layer}", 6, seed) for layer in range(1, 7)]
    return results


def ingredients(cell: Cell) -> tuple[Objective, dict[str, Any], int]:
    """The objective, what else the model is built with, and how many layers are kept."""
    name, _, layer = cell.objective.partition("single-")
    if layer:
        return load_objective("last"), {"exit_layers": [int(layer)]}, int(layer)
    if name in BYPASSES:
        return load_objective("joint"), {"bypass": BYPASSES[name]}, cell.depth
    return load_objective(name), {}, cell.depth


def encoder_of(depth: int, kept: int) -> PreTrainedModel:
    """The first `kept` layers of the default encoder, stretched to `depth` layers."""
    encoder = load_encoder(default_encoder())
    held = encoder.config.num_hidden_layers
    return restack(encoder, [number * held // depth for number in range(kept)])


def examples_of(cell: Cell, data: Path, limit: int | None) -> tuple[Examples, Examples]:
    """Rows to learn from and rows to report on."""
    task = TASKS[cell.task]
    columns = Columns("sentence1", "sentence2" if task.pair else None, "label")
    kind = "regression" if task.metrics == REGRESSIONS else "classification"
    folder = data / cell.task
    train = read_examples(str(folder / "train.jsonl.gz"), columns, split="train", task=kind)
    names = train.label_names or None
    held_out = read_examples(
        str(folder / f"{task.validation}.jsonl.gz"), columns, split="validation", task=kind, label_names=names
    )
    if kind == "regression":
        middle, spread = mean(train.labels), stdev(train.labels)
        train, held_out = (scaled(examples, middle, spread) for examples in (train, held_out))
    return subsample(train, limit or task.rows), subsample(held_out, limit or len(held_out))


def scaled(examples: Examples, middle: float, spread: float) -> Examples:
    """Values as distances from the middle, so that losses of all tasks are of one size; correlations do not see it."""
    return dataclasses.replace(examples, labels=[(value - middle) / spread for value in examples.labels])


def train(cell: Cell, options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> None:
    """Train one model, score its exits, keep scores and trace, forget the weights."""
    task = TASKS[cell.task]
    tokenizer.model_max_length = task.max_length
    learn, held_out = examples_of(cell, options.data, options.limit)
    objective, shape, kept = ingredients(cell)

    def build() -> MultiExitModel:
        encoder, outputs = encoder_of(cell.depth, kept), len(learn.label_names) or 1
        return MultiExitModel.from_backbone(encoder, outputs, problem_type=learn.problem_type, pooling="mean", **shape)

    recipe = {
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": LEARNING_RATE,
        "bf16": True,
    }
    target = cell.file(options.runs)
    scratch, rows = target.with_suffix(".scratch"), {"validation": held_out}
    whole = {**recipe, "save_strategy": "no"}
    trained = train_and_record(build, tokenizer, scratch, learn, rows, objective, cell.seed, whole)
    trace = trained.traces["validation"]
    trace.save(target.with_suffix(".safetensors"))
    results = {
        **dataclasses.asdict(cell),
        "layers": trace.layer_numbers,
        "scores": scores(trace, task.metrics),
        "metrics": task.metrics,
        "rows": len(learn),
        "reported_rows": len(held_out),
        "stages": len(objective.stages),
        "steps": len(objective.stages) * task.epochs * math.ceil(len(learn) / task.batch_size),
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        "recipe": {**recipe, "exit_learning_rate": 1e-3, "max_length": task.max_length, "pooling": "mean"},
    }
    unfinished = target.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=2) + "\n")
    unfinished.replace(target)
    shown = " ".join(f"{score:.3f}" for score in results["scores"])
    print(f"{cell.task} {target.stem}: {shown}  {trained.cpu_seconds:.0f} s", flush=True)


def scores(trace: Trace, metrics: tuple[str, ...]) -> list[float]:
    """The score of every exit, mean over the metrics."""
    entry = torch.tensor([layerwise(trace, metric) for metric in metrics])  # (M, L)
    return entry.mean(dim=0).tolist()


def words(text: str) -> list[str]:
    """Names with commas between."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Numbers with commas between."""
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Train what is not there yet; or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/training"), help="where results and traces go")
    parser.add_argument("--tasks", type=words, help=f"of {','.join(TASKS)}; more depth: {','.join(SMALL)}")
    parser.add_argument("--objectives", type=words, help=f"of {','.join(OBJECTIVES)}")
    parser.add_argument("--depths", type=numbers, default=[6, 12])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--single", action="store_true", help="after all else, one model for each exit alone")
    parser.add_argument("--limit", type=int, help="rows of each split, to try the script")
    parser.add_argument("--report", action="store_true", help="add them to benchmarks/results/training.json and .md")
    options = parser.parse_args()
    options.single |= options.report
    wanted = cells(options)
    if options.report:
        training_report.write(options.runs, [dataclasses.asdict(cell) for cell in wanted])
        return
    for cell in dict.fromkeys(wanted):
        ingredients(cell)  # an unknown name ends here, not after an hour
    tokenizer = load_tokenizer(default_encoder())
    for cell in wanted:
        target = cell.file(options.runs)
        with alone(target.with_suffix(".lock")) as free:
            if free and not target.exists():
                train(cell, options, tokenizer)


if __name__ == "__main__":
    main()
