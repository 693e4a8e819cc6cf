"""Training: the Hugging Face Trainer with an objective over all exits."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from offramp.batches import collate, encode, token_limit
from offramp.data import Examples
from offramp.errors import InvalidInput
from offramp.model import MultiExitModel
from offramp.objectives.base import Objective, exit_losses
from offramp.objectives.joint import Weighted
from offramp.values import ExitOutput


class ExitTrainer(Trainer):
    """A `transformers.Trainer` whose loss is an objective over all exits; everything else is the Trainer's.

    It reports the loss of every exit beside the objective's: `loss_exit_3` in training logs, `eval_loss_exit_3` in
    evaluation. Give `compute_metrics` for scores; its predictions are the last exit's logits.

    Args:
        model: whose exits learn.
        objective: default `Weighted()`, PABEE's and PCEE-BERT's.
        exit_learning_rate: of the exits, which start from nothing while the backbone is pre-trained (the code of
            PCEE-BERT does so as well); None = the backbone's.
        kwargs: the Trainer's own arguments.

    Raises:
        InvalidInput: label smoothing, which belongs to a loss that this Trainer does not use.
    """

    loss_is_scaled_for_ga = False  # a batch mean: the Trainer divides it by the accumulation steps

    def __init__(
        self,
        model: MultiExitModel,
        *args: Any,
        objective: Objective | None = None,
        exit_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)
        self.exit_learning_rate = exit_learning_rate
        if self.args.label_smoothing_factor:
            raise InvalidInput("label_smoothing_factor is not supported by ExitTrainer: each exit has its own loss")
        self.objective = objective or Weighted()
        (self.stage,) = self.objective.stages
        self._exit_losses: list[Tensor] = []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name, model) in self.stage.learns)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The objective's loss; see `transformers.Trainer.compute_loss`."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        problem_type = self.model.config.problem_type
        exits = ExitOutput(outputs.exit_logits, problem_type=problem_type)
        loss = self.objective.loss(self.stage, self.state.global_step, exits, labels)
        self._exit_losses.append(exit_losses(ExitOutput(exits.logits.detach(), problem_type=problem_type), labels))
        return (loss, {"loss": loss, **outputs}) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser, with the exits' learning rate; see `transformers.Trainer.create_optimizer`."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.exit_learning_rate is not None:
            exits = {id(parameter) for parameter in self.model.heads.parameters()}
            for group in list(optimizer.param_groups):
                chosen = [parameter for parameter in group["params"] if id(parameter) in exits]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in exits]
                optimizer.add_param_group({**group, "params": chosen, "lr": self.exit_learning_rate})
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of every exit since the last log; see `transformers.Trainer.log`."""
        prefix = next((name[: -len("loss")] for name in logs if name in ("loss", "eval_loss")), None)
        if prefix is not None and self._exit_losses:
            means = torch.stack(self._exit_losses).mean(dim=0).tolist()
            named = zip(self.model.layers, means, strict=True)
            logs.update({f"{prefix}loss_exit_{layer}": round(mean, 4) for layer, mean in named})
            self._exit_losses.clear()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `transformers.Trainer.evaluate`; what training has gathered since its last log is set aside meanwhile."""
        gathered, self._exit_losses = self._exit_losses, []
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self._exit_losses = gathered
        return metrics


def part_of(name: str, model: MultiExitModel) -> str:
    """Which of the objective's parts a parameter belongs to; a pooler that exits share goes with the last one.

    Args:
        name: as in `model.named_parameters()`.
        model: the model.
    """
    if not name.startswith("heads."):
        return "backbone"
    _, kind, number, *_ = name.split(".")
    alike = {"classifiers": model.heads.classifiers, "poolers": model.heads.poolers}[kind]
    return "final_exit" if int(number) == len(alike) - 1 else "early_exits"


def token_rows(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
    """Examples as the rows that a Trainer takes: tokens and `labels`."""
    tokens = encode(tokenizer, examples.texts, max_length)
    return [{**row, "labels": label} for row, label in zip(tokens, examples.labels, strict=True)]


def default_arguments(folder: str | os.PathLike[str], **changes: Any) -> TrainingArguments:
    """Training arguments that suit small labelled data; any of transformers' own can be changed.

    Args:
        folder: where checkpoints go.
        changes: e.g. `num_train_epochs=3`, `seed=1`, `bf16=True`.
    """
    usual: dict[str, Any] = {
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
    return TrainingArguments(os.fspath(folder), **{**usual, **changes})


class Progress(TrainerCallback):
    """One bar on standard error for the whole training; quiet where that is not a terminal."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=None)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        shown: dict[str, Any] = {name: logs[name] for name in ("loss", "eval_loss") if name in logs}
        if self.bar is not None and shown:
            self.bar.set_postfix({**shown, "epoch": f"{state.epoch:.1f}"})

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
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
    resume: bool = False,
    **changes: Any,
) -> list[dict[str, float]]:
    """Train a model on labelled texts and save it with its tokenizer.

    Args:
        model: what learns; left in eval mode.
        tokenizer: its `model_max_length` cuts the texts.
        folder: gets weights, configuration, tokenizer and card; `folder/checkpoints` is there until training is done.
        train: what to learn from.
        validation: for the losses that are logged after each epoch; nothing is chosen by it.
        objective: default `Weighted()`.
        resume: go on from the last checkpoint in `folder`, if there is one.
        changes: to `default_arguments`.

    Returns:
        The Trainer's log: losses of every exit by epoch.
    """
    checkpoints = Path(folder) / "checkpoints"
    limit = token_limit(tokenizer, model.config.backbone)
    if validation is None:
        changes = {"eval_strategy": "no", **changes}
    trainer = ExitTrainer(
        model,
        default_arguments(checkpoints, **changes),
        objective=objective,
        exit_learning_rate=1e-3,
        train_dataset=token_rows(train, tokenizer, limit),
        eval_dataset=token_rows(validation, tokenizer, limit) if validation else None,
        data_collator=partial(collate, pad_token_id=model.config.pad_token_id),
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(checkpoints) if resume and checkpoints.exists() else None
    trainer.train(resume_from_checkpoint=last)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    log: list[dict[str, float]] = trainer.state.log_history
    return log
