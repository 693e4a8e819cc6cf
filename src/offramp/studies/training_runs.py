"""Training runs that are kept as what came of them: train a model, record it, forget its weights."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, set_seed

from offramp.data.batching import token_limit
from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.inference.record import record
from offramp.model.backbones.restack import restack
from offramp.model.bypass import Bypass
from offramp.model.config import MultiExitConfig
from offramp.model.default_encoder import encoder_name
from offramp.model.hub import load_encoder, load_tokenizer
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.studies.spec import TrainingSpec
from offramp.training.fit import fit, token_rows
from offramp.training.objectives.base import Objective
from offramp.training.objectives.registry import load_objective
from offramp.types.problem_types import SINGLE_LABEL
from offramp.types.trace import Trace

SETTING_FILE = "setting.json"


@dataclass(frozen=True)
class Trained:
    """What is left of a training run.

    Attributes:
        traces: by the name of the rows.
        config: of the model.
        seconds: of training, on the clock.
        cpu_seconds: of training, of the processor.
    """

    traces: Mapping[str, Trace]
    config: MultiExitConfig
    seconds: float
    cpu_seconds: float


def train_and_record(
    build: Callable[[], MultiExitModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    train: Examples,
    held_out: Mapping[str, Examples],
    objective: Objective,
    seed: int,
    recipe: Mapping[str, Any],
) -> Trained:
    """Train a model, record what its exits say of held-out rows, and delete it.

    Args:
        build: makes the model, after the seed is set.
        tokenizer: its `model_max_length` cuts the texts.
        folder: of the model while it is there; checkpoints that a killed run left in it are gone on with.
        train: what to learn from.
        held_out: what to record.
        objective: what to minimise.
        seed: of weights and order.
        recipe: further arguments of `offramp.training.fit.default_arguments`.
    """
    set_seed(seed)
    model = build()
    started, started_cpu = time.perf_counter(), time.process_time()
    fit(model, tokenizer, folder, train, objective=objective, resume=True, seed=seed, **recipe)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    shutil.rmtree(folder)
    limit = token_limit(tokenizer, model.config.backbone)
    traces = {name: record(model, token_rows(rows, tokenizer, limit)) for name, rows in held_out.items()}
    return Trained(traces, model.config, seconds, cpu_seconds)


@dataclass(frozen=True)
class ExperimentConfig:
    """What all runs of a folder have in common.

    Attributes:
        backbone: a hub name or a folder.
        train: what to learn from.
        held_out: what to record: "validation", and perhaps "test".
        layers: the encoder's depth; None = as it is. See `of_depth`.
        pooling: what an exit reads, see `MultiExitModel.from_backbone`.
        max_length: tokens a text; None = what the encoder takes.
        recipe: further arguments of `offramp.training.fit.default_arguments`.
        about: where the rows are from, in words.
    """

    backbone: str
    train: Examples
    held_out: Mapping[str, Examples]
    layers: int | None = None
    pooling: str = "mean"
    max_length: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def pairs(self) -> list[tuple[str, str]] | None:
        """The texts of the validation rows, where they are pairs with two classes and sacrebleu can compare them."""
        rows = self.held_out["validation"]
        pairs = [text for text in rows.texts if not isinstance(text, str)]
        two = len(rows.label_names) == 2 and rows.problem_type == SINGLE_LABEL
        return pairs if two and len(pairs) == len(rows) and find_spec("sacrebleu") else None

    def told(self) -> dict[str, Any]:
        """The setting as data, rows by their number."""
        return {
            "backbone": encoder_name(self.backbone),
            "layers": self.layers,
            "pooling": self.pooling,
            "max_length": self.max_length,
            "recipe": dict(self.recipe),
            "data": dict(self.about),
            "rows": {"train": len(self.train), **{name: len(rows) for name, rows in self.held_out.items()}},
        }


def check_config(folder: Path, setting: ExperimentConfig) -> None:
    """Note in a folder what its runs have in common.

    Raises:
        InvalidInput: it holds runs of another setting.
    """
    told, file = json.dumps(setting.told(), indent=2) + "\n", folder / SETTING_FILE
    if file.exists() and (before := json.loads(file.read_text())) != (now := json.loads(told)):
        other = ", ".join(name for name in now if now[name] != before.get(name))
        raise InvalidInput(f"{folder}: holds runs with other {other}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(told)


def load_or_train(folder: Path, training: TrainingSpec, seed: int, setting: ExperimentConfig) -> Trained:
    """A training run from a folder, run and stored there first if it is not there yet.

    Args:
        folder: of all runs of a setting; the run has a folder in it.
        training: how to train.
        seed: of weights and order.
        setting: everything else.
    """
    home = folder / f"{training.name}-{seed}"
    if not home.exists():
        unfinished = folder / f"{home.name}.unfinished"
        _store(_run(unfinished / "model", training, seed, setting), unfinished)
        unfinished.rename(home)
    return _stored(home, setting.held_out)


def load_or_train_all(
    folder: Path, trainings: Iterable[TrainingSpec], seeds: Iterable[int], setting: ExperimentConfig
) -> dict[tuple[str, int], Trained]:
    """Every training with every seed, by name and seed; see `kept`."""
    wanted = [(training, seed) for seed in seeds for training in trainings]
    for training in {training.name: training for training, _ in wanted}.values():
        build_model(training, setting)  # what cannot be built is refused before hours of training
    check_config(folder, setting)
    found = {}
    for training, seed in tqdm(wanted, desc="runs", unit="run", disable=None):
        found[training.name, seed] = load_or_train(folder, training, seed, setting)
    return found


def _run(folder: Path, training: TrainingSpec, seed: int, setting: ExperimentConfig) -> Trained:
    tokenizer = load_tokenizer(setting.backbone)
    if setting.max_length is not None:
        tokenizer.model_max_length = setting.max_length
    return train_and_record(
        lambda: build_model(training, setting),
        tokenizer,
        folder,
        setting.train,
        setting.held_out,
        load_objective(training.objective),
        seed,
        setting.recipe,
    )


def build_model(training: TrainingSpec, setting: ExperimentConfig) -> MultiExitModel:
    """The model that a training starts from."""
    encoder = load_encoder(setting.backbone)
    if setting.layers is not None:
        encoder = of_depth(encoder, setting.layers)
    depth: int = encoder.base_model.config.num_hidden_layers
    if training.kept < 1:
        depth = max(1, round(training.kept * depth))
        encoder = restack(encoder, range(depth))
    names = setting.train.label_names
    first = setting.train.labels[0]
    outputs = len(first) if isinstance(first, list) else 1
    return MultiExitModel.from_backbone(
        encoder,
        **({"id2label": dict(enumerate(names))} if names else {"num_labels": outputs}),
        problem_type=setting.train.problem_type,
        pooling=setting.pooling,
        exit_layers=[depth] if training.alone else None,
        **_exits(training, depth),
    )


def _exits(training: TrainingSpec, depth: int) -> dict[str, Any]:
    exits = dict(training.exits)
    if "bypass" in exits:
        exits["bypass"] = Bypass(**exits["bypass"])
    if training.tokens:
        places = {max(1, round(share * depth)): stay for share, stay in training.tokens.items()}
        exits["token_exit"] = TokenExit(keep_ratio=places)
    return exits


def of_depth(encoder: Any, layers: int) -> Any:
    """An encoder of so many layers: the first of those there are, or where there are fewer, each of them repeated."""
    held: int = encoder.base_model.config.num_hidden_layers
    chosen = range(layers) if layers <= held else [number * held // layers for number in range(layers)]
    return restack(encoder, chosen)


def subsample(examples: Examples, count: int) -> Examples:
    """So many rows at random, the same ones each time; all of them, as they are, where there are no more."""
    if count >= len(examples):
        return examples
    rows = random.Random(0).sample(range(len(examples)), count)
    labels: Any = [examples.labels[row] for row in rows]
    return dataclasses.replace(examples, texts=[examples.texts[row] for row in rows], labels=labels)


def _store(trained: Trained, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, trace in trained.traces.items():
        trace.save(folder / f"{name}.safetensors")
    trained.config.save_pretrained(folder)
    spent = {"seconds": trained.seconds, "cpu_seconds": trained.cpu_seconds}
    (folder / "spent.json").write_text(json.dumps(spent) + "\n")


def _stored(folder: Path, names: Iterable[str]) -> Trained:
    traces = {name: Trace.load(folder / f"{name}.safetensors") for name in names}
    spent = json.loads((folder / "spent.json").read_text())
    return Trained(traces, MultiExitConfig.from_pretrained(folder), spent["seconds"], spent["cpu_seconds"])
