"""Training runs stored as traces: train a model, record it, delete its weights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
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
from offramp.types.whole_file import whole_file

SETTING_FILE = "setting.json"


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Attributes:
        traces: by the name of the rows, "validation" or "test".
        config: of the model.
        seconds: wall time of training.
        cpu_seconds: processor time of training.
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
    """Train a model, record its exits on held-out rows, and delete it.

    Args:
        build: returns the model; called after the seed is set.
        tokenizer: its `model_max_length` truncates the texts.
        folder: of the model during training; a killed run resumes from its checkpoints in it.
        train: the training rows.
        held_out: the rows to record.
        objective: the loss to minimise.
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
class ExperimentSummary:
    """The settings of an experiment as data, under the names of its JSON files.

    Attributes:
        backbone: the encoder's name.
        layers: its depth; None = as it is.
        pooling: the input of an exit.
        max_length: tokens a text; None = the encoder's limit.
        recipe: arguments of the training.
        data: sources of the rows, by split.
        rows: numbers of rows, by split.
    """

    backbone: str
    layers: int | None
    pooling: str
    max_length: int | None
    recipe: dict[str, Any]
    data: dict[str, str]
    rows: dict[str, int]


@dataclass(frozen=True)
class ExperimentConfig:
    """The rows and settings that all runs of a folder share.

    Attributes:
        backbone: a hub name or a folder.
        train: the training rows.
        held_out: the rows to record: "validation", and optionally "test".
        layers: the encoder's depth; None = as it is. See `of_depth`.
        pooling: the input of an exit, see `MultiExitModel.from_backbone`.
        max_length: tokens a text; None = the encoder's limit.
        recipe: further arguments of `offramp.training.fit.default_arguments`.
        about: sources of the rows, by split.
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
        """Return the texts of the validation rows; None unless they are pairs of two classes and sacrebleu is there."""
        rows = self.held_out["validation"]
        pairs = [text for text in rows.texts if not isinstance(text, str)]
        two = len(rows.label_names) == 2 and rows.problem_type == SINGLE_LABEL
        return pairs if two and len(pairs) == len(rows) and find_spec("sacrebleu") else None

    def summary(self) -> ExperimentSummary:
        """Return the settings as data, with the number of rows in place of the rows."""
        return ExperimentSummary(
            encoder_name(self.backbone),
            self.layers,
            self.pooling,
            self.max_length,
            dict(self.recipe),
            dict(self.about),
            {"train": len(self.train), **{name: len(rows) for name, rows in self.held_out.items()}},
        )


def check_config(folder: Path, config: ExperimentConfig) -> None:
    """Write the settings into a folder, or compare them with those written there.

    Raises:
        InvalidInput: the folder holds runs with other settings.
    """
    text, file = json.dumps(asdict(config.summary()), indent=2) + "\n", folder / SETTING_FILE
    if file.exists() and (stored := json.loads(file.read_text())) != (wanted := json.loads(text)):
        differing = ", ".join(name for name in wanted if wanted[name] != stored.get(name))
        raise InvalidInput(f"{folder}: holds runs with other {differing}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as out:
        out.write(text)


def load_or_train(folder: Path, training: TrainingSpec, seed: int, config: ExperimentConfig) -> Trained:
    """Load a training run from a folder; train and store it first if it is missing.

    Args:
        folder: of all runs; the run has a folder in it.
        training: the way to train.
        seed: of weights and order.
        config: the rows and settings.
    """
    home = folder / f"{training.name}-{seed}"
    if not home.exists():
        unfinished = folder / f"{home.name}.unfinished"
        _store(_run(unfinished / "model", training, seed, config), unfinished)
        unfinished.rename(home)
    return _stored(home, config.held_out)


def load_or_train_all(
    folder: Path, trainings: Iterable[TrainingSpec], seeds: Iterable[int], config: ExperimentConfig
) -> dict[tuple[str, int], Trained]:
    """Load or train every training with every seed, by name and seed; see `load_or_train`."""
    pending = [(training, seed) for seed in seeds for training in trainings]
    for training in {training.name: training for training, _ in pending}.values():
        build_model(training, config)  # a model that cannot be built is refused before hours of training
    check_config(folder, config)
    runs = {}
    for training, seed in tqdm(pending, desc="runs", unit="run", disable=None):
        runs[training.name, seed] = load_or_train(folder, training, seed, config)
    return runs


def _run(folder: Path, training: TrainingSpec, seed: int, config: ExperimentConfig) -> Trained:
    tokenizer = load_tokenizer(config.backbone)
    if config.max_length is not None:
        tokenizer.model_max_length = config.max_length
    return train_and_record(
        lambda: build_model(training, config),
        tokenizer,
        folder,
        config.train,
        config.held_out,
        load_objective(training.objective),
        seed,
        config.recipe,
    )


def build_model(training: TrainingSpec, config: ExperimentConfig) -> MultiExitModel:
    """Build the model that a training starts from."""
    encoder = load_encoder(config.backbone)
    if config.layers is not None:
        encoder = of_depth(encoder, config.layers)
    depth: int = encoder.base_model.config.num_hidden_layers
    if training.kept < 1:
        depth = max(1, round(training.kept * depth))
        encoder = restack(encoder, range(depth))
    names = config.train.label_names
    first = config.train.labels[0]
    outputs = len(first) if isinstance(first, list) else 1
    return MultiExitModel.from_backbone(
        encoder,
        **({"id2label": dict(enumerate(names))} if names else {"num_labels": outputs}),
        problem_type=config.train.problem_type,
        pooling=config.pooling,
        exit_layers=[depth] if training.alone else None,
        **_exits(training, depth),
    )


def _exits(training: TrainingSpec, depth: int) -> dict[str, Any]:
    exits = dict(training.exits)
    if "bypass" in exits:
        exits["bypass"] = Bypass(**exits["bypass"])
    if training.tokens:
        ratios = {max(1, round(share * depth)): ratio for share, ratio in training.tokens.items()}
        exits["token_exit"] = TokenExit(keep_ratio=ratios)
    return exits


def of_depth(encoder: Any, layers: int) -> Any:
    """Return an encoder of another depth: its first layers, or each layer repeated where it has fewer."""
    depth: int = encoder.base_model.config.num_hidden_layers
    indices = range(layers) if layers <= depth else [index * depth // layers for index in range(layers)]
    return restack(encoder, indices)


def _store(trained: Trained, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, trace in trained.traces.items():
        trace.save(folder / f"{name}.safetensors")
    trained.config.save_pretrained(folder)
    spent = {"seconds": trained.seconds, "cpu_seconds": trained.cpu_seconds}
    with whole_file(folder / "spent.json") as file:
        file.write(json.dumps(spent) + "\n")


def _stored(folder: Path, names: Iterable[str]) -> Trained:
    traces = {name: Trace.load(folder / f"{name}.safetensors") for name in names}
    spent = json.loads((folder / "spent.json").read_text())
    return Trained(traces, MultiExitConfig.from_pretrained(folder), spent["seconds"], spent["cpu_seconds"])
