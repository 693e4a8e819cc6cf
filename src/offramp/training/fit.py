"""Training of a model with exits on texts: sane defaults around `ExitTrainer`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments

from offramp.data.batching import Cuts, check_vocabulary, collate, encode, token_limit
from offramp.data.examples import Examples, subsample
from offramp.model.activation_ranges import RANGE_ROWS, measure_ranges
from offramp.model.adapters import without_wrappers
from offramp.model.card import save_points
from offramp.model.exits import renew_lexical
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.model.wrappers import unwrap
from offramp.training.lexical import fit_lexical
from offramp.training.objectives.base import Objective
from offramp.training.trainer import ExitTrainer
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import DEFAULT, Certificate, OperatingPoint
from offramp.types.problem_types import REGRESSION
from offramp.types.whole_file import alone_in, give_name, unfinished_folder

logger = logging.getLogger(__name__)

WITHOUT_LEXICAL = "without-lexical"
"""The name that a model's default operating point gets where an exit before the first layer is added."""


def token_rows(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
    """Return examples as the rows that a Trainer takes: tokens and `labels`."""
    tokens = encode(tokenizer, examples.texts, max_length)
    return [{**row, "labels": label} for row, label in zip(tokens, examples.labels, strict=True)]


def default_arguments(folder: str | os.PathLike[str], **changes: Any) -> TrainingArguments:
    """Return training arguments that suit small labelled data; any of transformers' own can be changed.

    Args:
        folder: where checkpoints go.
        changes: e.g. `num_train_epochs=3`, `seed=1`, `bf16=True`.
    """
    defaults: dict[str, Any] = {
        "num_train_epochs": 5,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-4,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,  # `Progress` stands in for the Trainer's bars
        "use_cpu": not torch.accelerator.is_available(),
    }
    return TrainingArguments(os.fspath(folder), **{**defaults, **changes})


class Progress(TrainerCallback):
    """Progress on standard error: a line for each log and, on a terminal, one bar for the whole training."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=None)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the bar to the current step."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Print the losses of all exits, where a log has them."""
        for prefix in ("", "eval_") if state.is_world_process_zero else ():
            exits = [value for name, value in logs.items() if name.startswith(f"{prefix}loss_exit_")]
            if exits:
                losses = " ".join(f"{loss:.3f}" for loss in exits)
                kind = "validation" if prefix else "training"
                tqdm.write(f"epoch {state.epoch:.1f}: {kind} loss of the exits {losses}", file=sys.stderr)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def fit(
    model: MultiExitModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    train: Examples,
    validation: Examples | None = None,
    *,
    objective: Objective | None = None,
    class_weights: str | Sequence[float] | None = None,
    resume: bool = False,
    keep_checkpoints: bool = False,
    **changes: Any,
) -> list[dict[str, float]]:
    """Train a model on labelled texts and save it with its tokenizer. Exits of a regression start at the labels' mean.

    An exit before the first layer is fitted afterwards, in the process that writes; a fitted one is fitted anew.

    Under torchrun all processes train, and the first one writes.

    Args:
        model: the model to train; left in eval mode. Adapters of PEFT are merged into what is saved.
        tokenizer: its `model_max_length` cuts the texts.
        folder: for weights, configuration, tokenizer and card; `folder/checkpoints` exists until all is written.
        train: the training rows.
        validation: for the losses logged after each epoch; nothing is chosen by it.
        objective: default `Weighted()`; each of its stages runs for all epochs.
        class_weights: see `ExitTrainer`.
        resume: continue from the newest whole checkpoint in `folder`, if there is one; else checkpoints are removed.
        keep_checkpoints: leave them to the caller, who adds to the folder and then calls `remove_checkpoints`.
        changes: to `default_arguments`.

    Returns:
        The Trainer's log: the losses of every exit by epoch.

    Raises:
        InvalidInput: class weights that do not fit, with `resume` a checkpoint of another run, or another process is
            training into the folder.
    """
    check_vocabulary(tokenizer, model.config.backbone)
    if train.problem_type == REGRESSION:
        labels = torch.tensor(train.labels, dtype=torch.float32)
        model.heads.start_at(labels.view(len(labels), -1).mean(dim=0))
    limit = token_limit(tokenizer, model.config.backbone)
    changes = {"eval_strategy": "no", **changes} if validation is None else changes
    trainer = ExitTrainer(
        model,
        default_arguments(checkpoints_of(folder), **changes),
        objective=objective,
        exit_learning_rate=1e-3,
        class_weights=class_weights,
        train_dataset=token_rows(train, tokenizer, limit),
        eval_dataset=token_rows(validation, tokenizer, limit) if validation else None,
        data_collator=partial(collate, pad_token_id=model.config.pad_token_id),
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    with alone_in(folder) if trainer.is_world_process_zero() else nullcontext():
        trainer.train(resume_from_checkpoint=_start(trainer, resume))
    trainer.accelerator.wait_for_everyone()  # the last checkpoint has files of all processes
    model.eval()
    if trainer.is_world_process_zero():
        exits = unwrap(model)
        if exits.lexical_exit is not None:
            _log_refit(exits)
            with Cuts().counted():  # `token_rows` has logged it
                fit_lexical(exits, tokenizer, train)
        _save(model, tokenizer, Path(folder), train)
        if not keep_checkpoints:
            remove_checkpoints(folder)
    log: list[dict[str, float]] = trainer.state.log_history
    return log


def fit_lexical_alone(
    model: MultiExitModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str], train: Examples
) -> None:
    """Give a finished model an exit before the first layer, fit it, and save the model; nothing else changes.

    The operating points that do not read that exit are kept; the default one becomes `WITHOUT_LEXICAL`, if there is
    none of that name.

    Args:
        model: with exits; changed in place. An exit before the first layer that it has already is fitted anew.
        tokenizer: the model's.
        folder: for the model; `folder/checkpoints` exists until the caller calls `remove_checkpoints`.
        train: the rows to fit on.

    Raises:
        InvalidInput: the encoder reads no tokens, or another process is writing into the folder.
    """
    _log_refit(model)
    renew_lexical(model, LexicalExit())
    checkpoints_of(folder).mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        fit_lexical(model, tokenizer, train)
        points = model.operating_points
        if DEFAULT in points and 0 not in points[DEFAULT].layers_read(model.layers):
            if WITHOUT_LEXICAL not in points:
                points[WITHOUT_LEXICAL] = points[DEFAULT]
                logger.info("the operating point %r is kept as %r", DEFAULT, WITHOUT_LEXICAL)
            del points[DEFAULT]
        _save(model, tokenizer, Path(folder), train)
        _name_weights(Path(folder), model.operating_points)


def _name_weights(folder: Path, points: Mapping[str, OperatingPoint]) -> None:
    """Let the certificates of kept points name the weights of the new file: those that they are of are the same."""
    digest = ModelContent(folder).file_digest

    def named(certificate: Certificate | None) -> Certificate | None:
        return certificate and replace(certificate, weights=certificate.weights and digest)

    renamed = {
        name: replace(point, certificate=named(point.certificate), agreement=named(point.agreement))
        for name, point in points.items()
    }
    if renamed != points:
        save_points(renamed, folder)


def _log_refit(model: MultiExitModel) -> None:
    """Log where an exit before the first layer is fitted that was fitted before."""
    if model.lexical_exit is not None and len(model.lexical_exit.fitted_rows):
        logger.info("the exit before the first layer is fitted anew")


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, train: Examples) -> None:
    """Save a model with its tokenizer and the ranges of its activations, the configuration last: then it is a model."""
    bare = without_wrappers(model)
    texts = subsample(train, RANGE_ROWS).texts
    with Cuts().counted():  # `token_rows` has logged it
        rows = encode(tokenizer, texts, token_limit(tokenizer, bare.config.backbone))
    ranges = measure_ranges(bare, rows, "training rows")
    with unfinished_folder(folder / "model") as unfinished:
        tokenizer.save_pretrained(unfinished)
        bare.save_pretrained(unfinished)
        ranges.save(unfinished)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == "config.json"):
            give_name(file, folder / file.name)


def _start(trainer: ExitTrainer, resume: bool) -> str | None:
    """Return the checkpoint that the first process resumes; where there is none, clear the folder for a new run."""
    folder = Path(trainer.args.output_dir)
    left = folder.is_dir() and any(folder.iterdir())
    newest = trainer.newest_checkpoint() if resume and left and trainer.is_world_process_zero() else None
    checkpoint = broadcast_object_list([newest])[0]  # on another machine the folder may be another
    if checkpoint is not None:
        return str(checkpoint)
    if left and trainer.is_world_process_zero():
        logger.info("training starts from the beginning")
        shutil.rmtree(folder)
        folder.mkdir()
    return None


def checkpoints_of(folder: str | os.PathLike[str]) -> Path:
    """Return where a run keeps its checkpoints; a run is unfinished as long as they exist."""
    return Path(folder) / "checkpoints"


def remove_checkpoints(folder: str | os.PathLike[str]) -> None:
    """Mark a run as finished: remove its checkpoints, all at once, and what an earlier call left of them."""
    finished = Path(folder) / "checkpoints.finished"
    shutil.rmtree(finished, ignore_errors=True)
    if checkpoints_of(folder).exists():
        checkpoints_of(folder).rename(finished)  # the folder goes at once, its files one by one
    shutil.rmtree(finished, ignore_errors=True)
