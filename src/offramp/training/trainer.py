"""Training: the Hugging Face Trainer with an objective over all exits."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, enable_full_determinism, set_seed

from offramp.errors import InvalidInput, one_line
from offramp.model.card import add_to_card
from offramp.model.modeling import MultiExitModel
from offramp.model.wrappers import unwrap
from offramp.training.arguments import check_arguments, check_model
from offramp.training.checkpoints import RunFiles, load_other_random_state, run_facts
from offramp.training.class_weights import batch_weight, resolve_class_weights, weights_text
from offramp.training.exit_losses import LossSum, by_exit, default_score, of_problem, own_rows
from offramp.training.freezing import freeze_batch_norm, frozen
from offramp.training.learning_rates import separate_exits
from offramp.training.objectives.base import Objective
from offramp.training.objectives.joint import Weighted
from offramp.training.sampler import share_order
from offramp.types.outputs import ExitOutput

logger = logging.getLogger(__name__)


class ExitTrainer(Trainer):
    """A `transformers.Trainer` whose loss is an objective over all exits.

    It reports the loss of every exit beside the objective's: `loss_exit_3` in training logs, `eval_loss_exit_3` in
    evaluation. For scores pass `compute_metrics`; its predictions are the last exit's logits.

    An exit before the first layer is not trained here: `offramp.training.lexical.fit_lexical` fits it afterwards.

    An objective of several stages is trained stage by stage, each with the whole schedule and an optimiser of its own;
    checkpoints lie in a folder for each stage. `resume_from_checkpoint=True` takes the newest whole checkpoint.

    Args:
        model: the model to train; None with `model_init`.
        objective: default `Weighted()`, PABEE's and PCEE-BERT's.
        exit_learning_rate: of all that is not the backbone: exits start from random weights, the backbone is
            pre-trained (the code of PCEE-BERT does so as well); None = the backbone's.
        class_weights: weights of the classes in the loss L_i of every exit: a number for each class, "balanced" (see
            `offramp.training.class_weights`), or None. Distances between exits and the gate's loss have none.
        kwargs: the Trainer's own arguments. `compute_loss_func(outputs, labels, num_items_in_batch)` replaces L_i. It
            is called for each exit, with the exit's logits as `outputs.logits`.

    Raises:
        InvalidInput: arguments that have no meaning here (see `offramp.training.arguments`), an objective that does not
            go with the model's exit memory, or class weights that do not fit the classes.

    Example:
        >>> from offramp.training.fit import default_arguments
        >>> arguments = default_arguments("run", max_steps=1, eval_strategy="no", save_strategy="no")
        >>> copy, labelled = offramp.MultiExitModel.from_backbone(model), [{**rows[0], "labels": 1}] * 4
        >>> trainer = offramp.ExitTrainer(copy, arguments, train_dataset=labelled)
        >>> trainer.train()
        {'loss': ..., 'loss_exit_1': ..., 'loss_exit_4': ...}
        ...
        TrainOutput(global_step=1, ...)
    """

    model_init: Callable[..., MultiExitModel] | None
    optimizer: torch.optim.Optimizer | None
    loss_is_scaled_for_ga = False  # a batch mean: the Trainer divides it by the accumulation steps

    def __init__(
        self,
        model: MultiExitModel | None = None,
        *args: Any,
        objective: Objective | None = None,
        exit_learning_rate: float | None = None,
        class_weights: str | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.exit_objective = objective or Weighted()  # hyperparameter_search keeps its score in `self.objective`
        self._new_objective = self.exit_objective if model else copy.deepcopy(self.exit_objective)
        self.stage = self.exit_objective.stages[0]
        self.exit_learning_rate = exit_learning_rate
        self._requested_weights = class_weights
        self.class_weights: Tensor | None = None
        self._exit_losses = LossSum()
        # All is refused before the Trainer makes its folder; `call_model_init` prepares the models of `model_init`.
        arguments = inspect.signature(Trainer).bind(model, *args, **kwargs).arguments
        check_arguments(arguments, self.exit_objective, exit_learning_rate, class_weights)
        self._training_rows = arguments.get("train_dataset")
        if model is not None:
            self._prepare(model)
        super().__init__(model, *args, **kwargs)

    def _prepare(self, model: MultiExitModel) -> None:
        """Check a model against the objective, weigh its classes, and let it run all exits."""
        check_model(model, self.exit_objective)
        if self._requested_weights is not None:
            self.class_weights = resolve_class_weights(self._requested_weights, self._training_rows, model.config)
        model.set_operating_point(None)  # losses are those of all exits

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; processes expect a gradient of every parameter that a stage trains."""
        if self.args.ddp_find_unused_parameters is None:  # an objective's modules work outside the forward pass
            self.args.ddp_find_unused_parameters = False
        super().create_accelerator_and_postprocess()

    def call_model_init(self, trial: Any = None) -> Any:
        """Return a new model of `model_init`, checked as a model that is passed in."""
        model = super().call_model_init(trial)
        self._prepare(model)
        return model

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        return share_order(super()._get_train_sampler(train_dataset), self.args.world_size)

    def _renew_model(self, trial: Any) -> None:
        """Start from a new model, and from an objective whose own modules have learned nothing yet."""
        (enable_full_determinism if self.args.full_determinism else set_seed)(self.args.seed)
        self.model = self.model_wrapped = self.call_model_init(trial)
        self._move_model_to_device(self.model, self.args.device)
        self.optimizer = self.lr_scheduler = None
        self.exit_objective = copy.deepcopy(self._new_objective)

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> Any:
        """Train stage by stage, as `transformers.Trainer.train` does; freeze what a stage does not train.

        The model's operating points are deleted: they were chosen for other weights.

        Raises:
            InvalidInput: there is no checkpoint to resume from, or it is of another run.
        """
        model_init = self.model_init
        if model_init is not None:
            self._renew_model(trial)
        first, checkpoint = self._resume_point(resume_from_checkpoint, trial)
        self.model.operating_points.clear()
        if self.class_weights is not None and self.is_world_process_zero():
            logger.info("class weights: %s", weights_text(self.class_weights, self.model.config.id2label))
        self.exit_objective.build(len(self.model.config.exit_layers), self.model.config.num_labels)
        self._attach_objective_modules(self.exit_objective.modules())
        self.model_init = None  # all stages train one model
        try:
            return self._train_stages(first, checkpoint, trial=trial, **kwargs)
        finally:
            self.model_init = model_init
            self._attach_objective_modules(())

    def _train_stages(self, first: int, checkpoint: str | None, **kwargs: Any) -> Any:
        """Train the stages from number `first` on, that one from its checkpoint."""
        stages = self.exit_objective.stages
        done: Any = None
        history: list[dict[str, Any]] = []
        for number, stage in enumerate(stages[first:], start=first):
            self.stage = stage
            if len(stages) > 1:
                self.optimizer = None
                if self.is_world_process_zero():
                    logger.info("stage %d of %d: %s", number + 1, len(stages), stage.name)
            if number > 0:  # a resumed run must shuffle as an uninterrupted one does
                set_seed(self.args.seed + number)
            with frozen(self.model, stage):
                self.model_wrapped = self.model  # processes exchange the gradients of what this stage trains
                done = super().train(checkpoint if number == first else None, **kwargs)
            history += [{**entry, "stage": stage.name} for entry in self.state.log_history]
        if len(stages) > 1:
            self.state.log_history = history
        return done

    def hyperparameter_search(self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kw: Any) -> Any:
        """Search as `transformers.Trainer.hyperparameter_search` does; the exits' losses are no part of the score."""
        return super().hyperparameter_search(hp_space, compute_objective or default_score, *args, **kw)

    def _attach_objective_modules(self, modules: Sequence[torch.nn.Module]) -> None:
        """Make the objective's own modules a part of the model, so that optimiser and checkpoints include them."""
        unwrap(self.model).objective_modules = torch.nn.ModuleList(modules).to(self.args.device)

    def run_files(self, trial: Any = None) -> RunFiles:
        """Return the checkpoints of this run, and what they say of it."""
        facts = run_facts(self.args, self._new_objective, self.train_dataset, self.class_weights, trial)
        stages = self.exit_objective.stages
        names = [stage.name for stage in stages] if len(stages) > 1 else []
        return RunFiles(Path(super()._get_output_dir(trial)), names, facts, self.args.save_only_model)

    def newest_checkpoint(self, trial: Any = None) -> Path | None:
        """Return the newest whole checkpoint of this run, and log which, and what is wrong with newer ones."""
        files = self.run_files(trial)
        checkpoint, faults = files.newest()
        if self.is_world_process_zero():
            outcome = f"resuming from {checkpoint}" if checkpoint else f"{files.folder}: no whole checkpoint"
            logger.info("%s%s", outcome, f"; cannot be used: {', '.join(faults)}" if faults else "")
        return checkpoint

    def _resume_point(self, checkpoint: str | bool | None, trial: Any) -> tuple[int, str | None]:
        """Return the number of the stage to resume, and the checkpoint to start from."""
        if not checkpoint:
            return 0, None
        path = self.newest_checkpoint(trial) if checkpoint is True else Path(checkpoint)
        if path is None:
            raise InvalidInput(f"{self.args.output_dir}: no checkpoint to resume from")
        files = self.run_files(trial)
        files.check(path, self.model)
        return files.stage_of(path), str(path)

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, self.stage.name) if len(self.exit_objective.stages) > 1 else folder

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.is_world_process_zero():  # which draws the order of the rows
            load_other_random_state(Path(checkpoint), self.args.world_size)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.args.should_save:
            self.run_files(trial).write_facts(
                Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            )
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch
            folder = self._get_output_dir(trial)
            raise InvalidInput(f"{folder}: the checkpoint cannot be written ({one_line(error)})") from None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the objective's loss, in place of `transformers.Trainer.compute_loss`'s."""
        if inputs.get("labels") is None:
            raise InvalidInput(f"training needs labels: a batch has {', '.join(inputs)}, and no 'labels'")
        labels, state = inputs.pop("labels"), self.accelerator.gradient_state
        rows = len(labels) if model.training else own_rows(len(labels), self.args.process_index, state)
        labels = labels[: max(rows, 1)]
        depth = len(self.model.config.exit_layers)  # an exit before the first layer, which is not trained, comes first
        scales = self.exit_objective.branch_scales(depth) if model.training else None
        if model.training and "backbone" not in self.stage.learns:
            freeze_batch_norm(self.model.backbone)
        outputs = model(**inputs, branch_scales=scales)
        weight = batch_weight(labels, self.class_weights, self.model.config.problem_type)
        task_loss = self._task_loss(num_items_in_batch, model.training, weight)
        logits, certainty = outputs.exit_logits[-depth:, : len(labels)], outputs.exit_certainty  # (L, B, C), (L, B)
        losses = task_loss(logits, labels)  # (L,)
        exits = ExitOutput(
            logits,
            None if certainty is None else certainty[-depth:, : len(labels)],
            problem_type=self.model.config.problem_type,
            # the losses of the model's own exits are computed once
            task_loss=lambda values, labels: losses if values is logits else task_loss(values, labels),
        )
        loss = self.exit_objective.loss(self.stage, self.state.global_step, exits, labels)
        self._exit_losses.add(losses.detach(), 1.0 if model.training else weight * min(rows, 1))
        return (loss, {"loss": loss, **outputs}) if return_outputs else loss

    def _task_loss(
        self, num_items: Tensor | int | None, training: bool, weight: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that maps logits (L, B, C) and labels to the loss L_i of every exit, (L,).

        Processes average their means. Where class weights divide these, each counts by its batch's weight.
        """
        if self.compute_loss_func is None:
            shared = training and self.class_weights is not None
            share = weight / self.accelerator.reduce(weight, "mean") if shared else 1.0
            return of_problem(self.model.config.problem_type, self.class_weights, share)
        # As in transformers the function's loss is scaled for accumulation and processes already; all losses of the
        # objective are divided by the accumulation steps, so this one is multiplied by them.
        scale = self.current_gradient_accumulation_steps if training else 1
        if self.args.average_tokens_across_devices and num_items is not None:
            scale *= self.accelerator.num_processes
        return by_exit(self.compute_loss_func, num_items, scale)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimiser, with the exits' learning rate for all that is not the backbone."""
        exists = self.optimizer is not None  # the user passed it, or an earlier call created it
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not exists and self.exit_learning_rate is not None:
            separate_exits(optimizer, self.model.backbone, self.exit_learning_rate)
        return optimizer

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card as `transformers.Trainer.create_model_card` does, with exits and operating points."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            model = unwrap(self.model)
            add_to_card(Path(self.args.output_dir), model.operating_points, model.config)

    def _take_exit_losses(self, prefix: str) -> dict[str, float]:
        add_up = partial(self.accelerator.reduce, reduction="sum")
        return self._exit_losses.take(self.model.config.exit_layers, prefix, add_up)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean loss of every exit since the last log, beside what `transformers.Trainer.log` gets."""
        if "loss" in logs:
            logs.update(self._take_exit_losses(""))
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate as `transformers.Trainer.evaluation_loop` does, and add the loss of every exit to the metrics."""
        training_losses, self._exit_losses = self._exit_losses, LossSum()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        output.metrics.update(self._take_exit_losses(f"{metric_key_prefix}_"))
        self._exit_losses = training_losses
        return output
