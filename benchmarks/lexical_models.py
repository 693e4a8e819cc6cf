"""Models, traces and baselines of `lexical.py` and `lexical_rows.py`.

A folder `TASK-SEED` of the runs holds a model without a lexical exit. `traces/TASK-SEED-encoder.safetensors` is its
trace of the rows that choose and report, and `-lexical`, `-tfidf`, `-static` are logits of classifiers that read no
layer, of the same rows. Remove `traces/*-lexical.safetensors` and `*-held.safetensors` to fit the lexical exits anew;
the encoders stay as they are. Run alone, it makes all that is missing:

    python benchmarks/lexical_models.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import set_seed

import mpnet_folder
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_examples
from offramp.inference.record import record
from offramp.model.default_encoder import default_encoder
from offramp.model.flops import macs
from offramp.model.hub import load_config, load_tokenizer
from offramp.model.lexical.config import LexicalExit
from offramp.model.lexical.fitted_rows import have_fitted
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import fit
from offramp.training.lexical import fit_lexical
from offramp.types.trace import Trace

SEEDS, HELD = (0, 1, 2), 1000


@dataclass(frozen=True)
class Task:
    """How a task is trained, and the split whose rows choose and report; no row of it was trained on."""

    rows: int
    epochs: int
    max_length: int
    split: str
    pair: bool = False
    encoder: Path | None = None
    """None = the default encoder."""
    learning_rate: float = 1e-4


TASKS = {
    "clinc150": Task(14939, 3, 48, "validation"),
    "sst2": Task(12000, 1, 64, "validation_sentences"),
    "banking77": Task(8975, 4, 64, "validation"),
    "trec": Task(4889, 3, 48, "test"),
    "ag_news": Task(8989, 1, 96, "test"),
    "snli": Task(8857, 2, 64, "test", pair=True),
    "imdb": Task(4000, 1, 128, "test"),
}
MPNET = "mpnet-"
DEEP_TASKS = {
    MPNET + "clinc150": Task(14939, 2, 48, "validation", encoder=mpnet_folder.FOLDER, learning_rate=5e-5),
    MPNET + "sst2": Task(20000, 1, 64, "validation_sentences", encoder=mpnet_folder.FOLDER, learning_rate=5e-5),
    MPNET + "snli": Task(8857, 1, 64, "test", pair=True, encoder=mpnet_folder.FOLDER, learning_rate=5e-5),
}
"""Twelve real layers, for `speed.py --encoder mpnet`."""


@dataclass(frozen=True)
class Cell:
    """One task and seed."""

    task: str
    seed: int
    data: Path
    runs: Path

    @property
    def setting(self) -> Task:
        """Return how the task is trained."""
        return (TASKS | DEEP_TASKS)[self.task]

    @property
    def data_set(self) -> str:
        """Return the name of the task's data."""
        return self.task.removeprefix(MPNET)

    @property
    def folder(self) -> Path:
        """Return the model's folder."""
        return self.runs / f"{self.task}-{self.seed}"

    def file(self, name: str) -> Path:
        """Return the file of a trace or of logits."""
        return self.runs / "traces" / f"{self.task}-{self.seed}-{name}.safetensors"

    def is_trained(self) -> bool:
        """Return whether the folder holds a whole model."""
        return (self.folder / "config.json").exists() and not (self.folder / "checkpoints").exists()

    def examples(self, split: str) -> Examples:
        """Return a split; of the train split the rows that this seed trains on, in its order."""
        columns = Columns("sentence1", "sentence2" if self.setting.pair else None, "label")
        every = read_examples(
            str(self.data / self.data_set / f"{split}.jsonl.gz"), columns, split=split, task="classification"
        )
        if split != "train":
            return every
        order = list(range(len(every)))
        random.Random(self.seed).shuffle(order)
        return take(every, order[: self.setting.rows])


def take(examples: Examples, rows: list[int]) -> Examples:
    """Return some of the rows."""
    return replace(examples, texts=[examples.texts[row] for row in rows], labels=[examples.labels[row] for row in rows])


def train(cell: Cell) -> None:
    """Train the encoder with an exit after every layer; takes up what a killed run left."""
    if cell.is_trained():
        return
    rows, setting = cell.examples("train"), cell.setting
    set_seed(cell.seed)
    encoder = setting.encoder or default_encoder()
    tokenizer = load_tokenizer(encoder)
    tokenizer.model_max_length = setting.max_length
    names = dict(enumerate(rows.label_names))
    model = MultiExitModel.from_backbone(encoder, id2label=names, pooling="mean")
    rate = setting.learning_rate
    recipe = {"num_train_epochs": setting.epochs, "per_device_train_batch_size": 32, "learning_rate": rate}
    saves = {"save_strategy": "steps", "save_steps": 100}
    fit(model, tokenizer, cell.folder, rows, None, resume=True, seed=cell.seed, bf16=True, **recipe, **saves)


def encoder_trace(cell: Cell) -> Trace:
    """Return the trace of the rows that choose and report, without a lexical exit, in float32."""
    file = cell.file("encoder")
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        record(str(cell.folder), cell.examples(cell.setting.split)).save(file)
    return Trace.load(file)


def trace_of(cell: Cell, layers: Sequence[int]) -> Trace:
    """Return the trace of the exits at these layers, 0 = the lexical one, with the MACs of a model that reads no other.

    Rows whose tokens are those of a row that fitted the lexical exit are left out.
    """
    trace = encoder_trace(cell)
    assert trace.tokens is not None
    config = load_config(cell.folder)
    config.set_lexical(LexicalExit())
    logits = torch.cat((logits_of(cell, "lexical").unsqueeze(0), trace.logits))
    whole = replace(trace, logits=logits, layers=torch.tensor(config.layers), macs=None)  # they follow
    costs = macs(config, trace.tokens, list(layers)).float()
    return replace(whole.select(list(layers)), macs=costs).take(new_rows(cell))


def held_trace(cell: Cell) -> Trace:
    """Return the trace of HELD rows that the encoder was trained on, of the last exit and of a lexical exit before it.

    That exit is fitted on the other rows of training.
    """
    file = cell.file("held")
    if not file.exists():
        every = cell.examples("train")
        held, others = take(every, list(range(HELD))), take(every, list(range(HELD, len(every))))
        last = record(str(cell.folder), held).logits[-1]
        logits = torch.stack((lexical(cell, others, held)["logits"], last))
        Trace(logits, torch.tensor(held.labels), layers=torch.tensor([0, 6])).save(file)
    return Trace.load(file)


def new_rows(cell: Cell) -> Tensor:
    """Return the numbers of the rows whose tokens are not those of a row that was trained on."""
    logits_of(cell, "lexical")
    return (~load_file(cell.file("lexical"))["fitted"]).nonzero().squeeze(-1)


# --- classifiers that read no layer ----------------------------------------------------------------------------------


def logits_of(cell: Cell, name: str) -> Tensor:
    """Return a classifier's logits (N, C) of the rows that choose and report; `name` is one of CLASSIFIERS."""
    file = cell.file(name)
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        save_file(CLASSIFIERS[name](cell, cell.examples("train"), cell.examples(cell.setting.split)), file)
    return load_file(file)["logits"]


@torch.inference_mode()
def lexical(cell: Cell, learn: Examples, rows: Examples) -> dict[str, Tensor]:
    """The lexical exit, fitted onto the finished model; `fitted` are the rows whose tokens it was fitted on, (N,)."""
    model = MultiExitModel.from_backbone(str(cell.folder), pooling="mean", lexical=LexicalExit()).eval()
    tokenizer = load_tokenizer(cell.folder)
    fit_lexical(model, tokenizer, learn)
    assert model.lexical_exit is not None
    tokens = encode(tokenizer, rows.texts, token_limit(tokenizer, model.config.backbone))
    logits = torch.empty(len(tokens), model.config.num_labels)
    for numbers in length_sorted(tokens, 256):
        logits[numbers] = model.lexical(collate([tokens[number] for number in numbers], tokenizer.pad_token_id)).logits
    fitted = have_fitted(model.lexical_exit.fitted_rows, [row["input_ids"] for row in tokens])
    return {"logits": logits, "fitted": fitted}


def tfidf(cell: Cell, learn: Examples, rows: Examples) -> dict[str, Tensor]:
    """TF-IDF of 1- and 2-grams of words and logistic regression; of a pair, each side has its own columns."""
    tables = []
    for side in range(2 if cell.setting.pair else 1):
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"(?u)\b\w+\b|[^\w\s]"
        )
        tables.append([vectorizer.fit_transform(sides(learn, side)), vectorizer.transform(sides(rows, side))])
    known, new = (hstack([pair[part] for pair in tables]).tocsr() for part in range(2))
    return regression(known, new, learn, len(learn.label_names), 10.0)


def static(cell: Cell, learn: Examples, rows: Examples) -> dict[str, Tensor]:
    """Mean of the encoder's input embeddings and logistic regression; of a pair, both sides, difference and product."""
    table = MultiExitModel.from_pretrained(str(cell.folder)).get_input_embeddings().weight.detach().double().numpy()
    tokenizer = load_tokenizer(cell.folder)

    def means(examples: Examples) -> np.ndarray:
        both = []
        for side in range(2 if cell.setting.pair else 1):
            tokens = tokenizer(sides(examples, side), add_special_tokens=False, truncation=True)["input_ids"]
            both.append(np.stack([table[ids].mean(axis=0) if ids else table[0] * 0 for ids in tokens]))
        return np.hstack([*both, abs(both[0] - both[1]), both[0] * both[1]]) if len(both) == 2 else both[0]

    known, new = means(learn), means(rows)
    centre, spread = known.mean(axis=0), known.std(axis=0) + 1e-9
    return regression((known - centre) / spread, (new - centre) / spread, learn, len(learn.label_names), 0.01)


def sides(examples: Examples, side: int) -> list[str]:
    """Return the first or second text of every row."""
    return [text[side] if isinstance(text, tuple) else text for text in examples.texts]


def regression(known: object, new: object, learn: Examples, classes: int, strength: float) -> dict[str, Tensor]:
    """Return log-probabilities (N, C) of a logistic regression; a class without a training row has -20."""
    model = LogisticRegression(C=strength, max_iter=300).fit(known, learn.labels)
    logits = torch.full((new.shape[0], classes), -20.0)  # type: ignore[attr-defined]
    logits[:, torch.tensor(model.classes_)] = torch.tensor(model.predict_log_proba(new)).float().clamp(min=-20)
    return {"logits": logits}


CLASSIFIERS: dict[str, Callable[[Cell, Examples, Examples], dict[str, Tensor]]] = {
    "tfidf": tfidf,
    "static": static,
    "lexical": lexical,
}


def main() -> None:
    """Make what is missing, cell by cell, seed 0 of every task first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    for cell in cells(options):
        if not options.no_training:
            train(cell)
        if cell.is_trained():
            encoder_trace(cell)
            for name in CLASSIFIERS:
                logits_of(cell, name)
            print(cell.task, cell.seed, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the scripts of this benchmark share."""
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/lexical"))
    parser.add_argument("--no-training", action="store_true", help="take up the models that are there, train none")


def cells(options: argparse.Namespace) -> list[Cell]:
    """Return all cells, seed 0 of every task first."""
    return [Cell(task, seed, options.data, options.runs) for seed in SEEDS for task in TASKS]


if __name__ == "__main__":
    main()
