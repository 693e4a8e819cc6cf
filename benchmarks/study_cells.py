"""Training runs of the papers' comparisons, cell by cell, each kept as JSON and a trace in float16.

    python benchmarks/study_cells.py --data ../shared/data
    python benchmarks/study_cells.py --data ../shared/data --cases mpnet-rte mpnet-mrpc    # needs mpnet_folder.py

A cell is a case (an encoder on a task), a training of `offramp study`, and a seed. What a cell leaves in
`results/studies/CASE/` is all that `studies.py` and `claims.py` read; it has no text and no token ids. Cells that are
there are skipped, a killed one resumes from its checkpoint, and several processes may work at once. The order is that
of interest (`WAVES`), so that a run that is stopped has left out what matters least.

The default encoder is MiniLM (6 layers, 384 wide), MPNet-base has 12 layers of 768; both with mean pooling. RTE's 2,240
rows alone leave both at chance, so there they are fine-tuned on SNLI first (`lexical_models.py`, `speed_models.py
--encoder mpnet`; `--encoders` is where). All trainings of a case have one recipe, and the last step counts: nothing is
chosen on the rows that are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import mpnet_folder
from machine import provenance
from offramp.data.columns import Columns
from offramp.data.examples import read_examples, subsample
from offramp.errors import NotApplicable
from offramp.model.config import MultiExitConfig
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_model
from offramp.studies.papers import badge, berxit, mpee, pabee, pcee
from offramp.studies.selection import EvaluationSplit
from offramp.studies.spec import PLAIN, TrainingSpec
from offramp.studies.training_runs import ExperimentConfig, ExperimentSummary, Trained, load_or_train
from offramp.types.trace import Trace
from resumable import alone

RESULTS = Path(__file__).parent / "results" / "studies"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """An encoder on a task, and how it is trained.

    Attributes:
        encoder: "minilm" or "mpnet".
        task: a folder of the data.
        rows: of the train split, drawn once for all seeds.
        max_length: tokens a text or pair.
        metrics: the score is their mean.
        validation: the split that chooses and reports.
        after_snli: whether the encoder was fine-tuned on SNLI before.
    """

    encoder: str
    task: str
    rows: int
    max_length: int = 64
    epochs: int = 1
    batch_size: int = 16
    metrics: tuple[str, ...] = ("accuracy",)
    pair: bool = True
    validation: str = "validation"
    after_snli: bool = False

    @property
    def name(self) -> str:
        """The folder of its cells."""
        return f"{self.encoder}-{self.task}"

    @property
    def regression(self) -> bool:
        """Whether the labels are values."""
        return self.metrics == ("pearson",)

    def start(self, encoders: Path) -> Path:
        """The folder of the encoder, which is made of a model with exits if it is missing."""
        if not self.after_snli:
            return Path(default_encoder()) if self.encoder == "minilm" else mpnet_folder.FOLDER
        of_model = encoders / ("snli-0" if self.encoder == "minilm" else "mpnet-snli-0")
        folder = encoders / f"{self.encoder}-after-snli"
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=encoders))
            load_model(of_model).backbone.save_pretrained(unfinished)
            load_tokenizer(of_model).save_pretrained(unfinished)
            unfinished.rename(folder)
        return folder

    def config(self, data: Path, encoders: Path) -> ExperimentConfig:
        """The rows and settings that all its runs share."""
        columns = Columns("sentence1", "sentence2" if self.pair else None, "label")
        read = {"columns": columns, "task": "regression" if self.regression else "classification"}
        splits = {
            split: read_examples(
                str(data / self.task / f"{split}.jsonl.gz"), split="train" if split == "train" else "validation", **read
            )
            for split in ("train", self.validation)
        }
        train = subsample(splits["train"], self.rows)
        return ExperimentConfig(
            str(self.start(encoders)),
            train,
            {"validation": splits[self.validation]},
            max_length=self.max_length,
            recipe={
                "num_train_epochs": self.epochs,
                "per_device_train_batch_size": self.batch_size,
                "learning_rate": 1e-4 if self.encoder == "minilm" else 5e-5,
                "bf16": True,
            },
            about={"train": f"{self.task}/train", "validation": f"{self.task}/{self.validation}"},
        )


CASES = {
    case.name: case
    for case in (
        Case("minilm", "sst2", 6000, pair=False, validation="validation_sentences"),
        Case("minilm", "cola", 8532, metrics=("matthews",), pair=False),
        Case("minilm", "mrpc", 3076, metrics=("accuracy", "f1")),
        Case("minilm", "rte", 2240, max_length=80, after_snli=True),
        Case("minilm", "stsb", 3000, metrics=("pearson",)),
        Case("mpnet", "rte", 2240, max_length=80, after_snli=True),
        Case("mpnet", "mrpc", 1536, metrics=("accuracy", "f1")),
    )
}
SST2, MRPC, RTE, COLA, VALUES = (f"minilm-{task}" for task in ("sst2", "mrpc", "rte", "cola", "stsb"))
DEEP = ("mpnet-rte", "mpnet-mrpc")
CORE = (pabee.WEIGHTED, pabee.WHOLE)
MAIN = (
    *(badge.BYPASS, badge.JOINT, berxit.TWO_STAGE, berxit.ALTERNATING, berxit.JOINT),
    *(mpee.BOTH, mpee.LAYERS_ALONE, mpee.FAST_BERT, pabee.SIX, pabee.NINE),
)
REST = (
    *(badge.TWO_STAGE, badge.ALTERNATING, badge.EQUILIBRIUM, badge.ATTENTION, PLAIN),
    *(badge.BYPASS_FFN, pcee.GATED, berxit.LEARNED),
)
WAVES: tuple[tuple[tuple[str, ...], tuple[TrainingSpec, ...]], ...] = (
    (DEEP, (pabee.WEIGHTED,)),
    ((SST2,), CORE + MAIN),
    ((VALUES,), (berxit.TWO_STAGE, berxit.LEARNED, pabee.WEIGHTED)),
    ((MRPC, RTE), CORE),
    ((SST2,), REST),
    ((COLA,), CORE),
    ((MRPC, RTE), MAIN),
    ((COLA,), MAIN),
    ((MRPC, RTE, COLA), REST),
    (DEEP, (pabee.WHOLE, badge.BYPASS, badge.JOINT)),
)
"""In the order of interest; a training runs with all seeds before the next one begins."""


@dataclass(frozen=True)
class Cell:
    """One training run."""

    case: Case
    training: TrainingSpec
    seed: int

    @property
    def file(self) -> Path:
        """Its JSON; the trace has the same name with another ending."""
        return RESULTS / self.case.name / f"{self.training.name}-{self.seed}.json"


def cells() -> list[Cell]:
    """All cells in the order of interest."""
    return [
        Cell(CASES[name], training, seed)
        for names, trainings in WAVES
        for training in trainings
        for name in names
        for seed in SEEDS
    ]


def keep(cell: Cell, trained: Trained, summary: ExperimentSummary) -> None:
    """Write a cell's JSON and trace."""
    trace = trained.traces["validation"]
    tensors = {"labels": trace.labels, "layers": trace.layers, "tokens": trace.tokens}
    present = {name: values for name, values in tensors.items() if values is not None}
    if trace.certainty is not None:
        present["certainty"] = trace.certainty.to(torch.float16)
    words = {"problem_type": str(trace.problem_type), "about": json.dumps(dict(trace.provenance))}
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {"logits": trace.logits.to(torch.float16), **present}, cell.file.with_suffix(".safetensors"), metadata=words
    )
    config = trained.config.to_dict()
    config["backbone"].pop("_name_or_path", None)
    made = {
        "case": asdict(cell.case),
        "training": cell.training.name,
        "seed": cell.seed,
        "layers": trace.layer_numbers,
        "scores": EvaluationSplit(trace, trace.layer_numbers[-1], cell.case.metrics).exit_scores(),
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        "setting": asdict(summary),
        "about": provenance(),
        "config": config,
    }
    unfinished = cell.file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(made, indent=1) + "\n")
    unfinished.replace(cell.file)


def load(cell: Cell) -> Trained:
    """Read what a cell left."""
    made: dict[str, Any] = json.loads(cell.file.read_text())
    trace = Trace.load(cell.file.with_suffix(".safetensors"))
    config = MultiExitConfig.from_dict(made["config"])
    return Trained({"validation": trace}, config, made["seconds"], made["cpu_seconds"])


def run(cell: Cell, config: ExperimentConfig, runs: Path) -> None:
    """Train a cell and keep what it leaves."""
    try:
        trained = load_or_train(runs / cell.case.name, cell.training, cell.seed, config)
    except NotApplicable as reason:
        print(f"{cell.case.name} {cell.file.stem}: left out, {reason}", flush=True)
        return
    keep(cell, trained, config.summary())
    shown = " ".join(f"{score:.3f}" for score in json.loads(cell.file.read_text())["scores"])
    print(f"{cell.case.name} {cell.file.stem}: {shown}  {trained.cpu_seconds:.0f} s", flush=True)


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="where models are while they learn")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="models fine-tuned on SNLI")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    configs = {name: CASES[name].config(options.data, options.encoders) for name in options.cases}
    for cell in cells():
        if cell.case.name in configs:
            with alone(options.runs / cell.case.name / f"{cell.file.stem}.lock") as free:
                if free and not cell.file.exists():
                    run(cell, configs[cell.case.name], options.runs)


if __name__ == "__main__":
    main()
