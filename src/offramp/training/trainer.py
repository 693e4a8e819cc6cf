"""Training: the Hugging Face Trainer with an objective over all exits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from offramp.errors import InvalidInput
from offramp.model.losses import task_losses
from offramp.model.modeling import MultiExitModel
from offramp.model.wrappers import module_path, unwrap
from offramp.training.objectives.base import Objective, Stage
from offramp.training.objectives.joint import Weighted
from offramp.types.outputs import ExitOutput

logger = logging.getLogger(__name__)


class ExitTrainer(Trainer):
    """A `transformers.Trainer` whose loss is an objective over all exits.

    It reports the loss of every exit beside the objective's: `loss_exit_3` in training logs, `eval_loss_exit_3` in
    evaluation. For scores pass `compute_metrics`; its predictions are the last exit's logits.

    An objective of several stages is trained stage by stage, each with the whole schedule and an optimiser of its own;
    checkpoints lie in a folder for each stage, and `resume_from_checkpoint=True` finds the last one.

    Args:
        model: the model to train.
        objective: default `Weighted()`, PABEE's and PCEE-BERT's.
        exit_learning_rate: of all that is not the backbone: exits start from random weights, the backbone is
            pre-trained (the code of PCEE-BERT does so as well); None = the backbone's.
        kwargs: the Trainer's own arguments.

    Raises:
        InvalidInput: label smoothing, which belongs to a loss that this Trainer does not use; an objective that does
            not go with the model's exit memory; one optimiser for several stages.

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

    loss_is_scaled_for_ga = False  # a batch mean: the Trainer divides it by the accumulation steps

    def __init__(
        self,
        model: MultiExitModel,
        *args: Any,
        objective: Objective | None = None,
        exit_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = objective or Weighted()
        self.stage = self.objective.stages[0]
        self.branch_scales = self.objective.branch_scales(len(model.layers))
        self._check_memory(model)
        super().__init__(model, *args, **kwargs)
        self.exit_learning_rate = exit_learning_rate
        if self.args.label_smoothing_factor:
            raise InvalidInput("label_smoothing_factor is not supported by ExitTrainer: each exit has its own loss")
        if len(self.objective.stages) > 1 and self.optimizer is not None:
            name = type(self.objective).__name__
            raise InvalidInput(f"{name} has {len(self.objective.stages)} stages, each with an optimiser of its own")
        self._exit_losses = LossSum()
        model.set_operating_point(None)  # losses are those of all exits

    def _check_memory(self, model: MultiExitModel) -> None:
        if model.config.memory is None:
            return
        name = type(self.objective).__name__
        if any("final_exit" not in stage.learns for stage in self.objective.stages):
            raise InvalidInput(f"{name} freezes the last exit, and memory=... would let the early exits change it")
        if self.branch_scales is not None:
            raise InvalidInput(f"{name} scales what each exit sends back, and memory=... mixes the exits")

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train stage by stage, as `transformers.Trainer.train` does; freeze what a stage does not train.

        The model's operating points are deleted: they were chosen for other weights.
        """
        self.model.operating_points.clear()
        stages = self.objective.stages
        first, checkpoint = self._resume_point(resume_from_checkpoint)
        done: Any = None
        history: list[dict[str, Any]] = []
        self.objective.build(len(self.model.layers), self.model.config.num_labels)
        self._attach_objective_modules(self.objective.modules())
        try:
            for number, stage in enumerate(stages[first:], start=first):
                self.stage = stage
                if len(stages) > 1:
                    logger.info("stage %d of %d: %s", number + 1, len(stages), stage.name)
                if number > 0:  # a resumed run must shuffle as an uninterrupted one does
                    self.optimizer: torch.optim.Optimizer | None = None
                    set_seed(self.args.seed + number)
                with _frozen(self.model, stage):
                    done = super().train(checkpoint if number == first else None, **kwargs)
                history += [{**entry, "stage": stage.name} for entry in self.state.log_history]
        finally:
            self._attach_objective_modules(())
        if len(stages) > 1:
            self.state.log_history = history
        return done

    def _attach_objective_modules(self, modules: Sequence[torch.nn.Module]) -> None:
        """Make the objective's own modules a part of the model, so that optimiser and checkpoints include them."""
        unwrap(self.model).objective_modules = torch.nn.ModuleList(modules).to(self.args.device)

    def _resume_point(self, checkpoint: str | bool | None) -> tuple[int, str | None]:
        """Return the number of the stage to resume, and the checkpoint to start from."""
        if not checkpoint:
            return 0, None
        stages = self.objective.stages
        if checkpoint is True:
            for number in reversed(range(len(stages))):
                folder = Path(self._stage_folder(stages[number]))
                if last := get_last_checkpoint(folder) if folder.exists() else None:
                    return number, last
            raise InvalidInput(f"{self.args.output_dir}: no checkpoint to resume from")
        names = [stage.name for stage in stages]
        parent = Path(checkpoint).parent.name
        return names.index(parent) if len(stages) > 1 and parent in names else 0, str(checkpoint)

    def _stage_folder(self, stage: Stage) -> str:
        folder: str = self.args.output_dir
        return os.path.join(folder, stage.name) if len(self.objective.stages) > 1 else folder

    def _get_output_dir(self, trial: Any) -> str:
        return self._stage_folder(self.stage)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the objective's loss, in place of `transformers.Trainer.compute_loss`'s."""
        labels = inputs.pop("labels")
        scales = self.branch_scales if model.training else None
        if model.training and "backbone" not in self.stage.learns:
            _freeze_batch_norm(self.model.backbone)
        outputs = model(**inputs, branch_scales=scales)
        problem_type = self.model.config.problem_type
        exits = ExitOutput(outputs.exit_logits, outputs.exit_certainty, problem_type=problem_type)
        loss = self.objective.loss(self.stage, self.state.global_step, exits, labels)
        self._exit_losses.add(task_losses(ExitOutput(exits.logits.detach(), problem_type=problem_type), labels))
        return (loss, {"loss": loss, **outputs}) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimiser, with the exits' learning rate for all that is not the backbone."""
        exists = self.optimizer is not None  # the user passed it, or an earlier call created it
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not exists and self.exit_learning_rate is not None:
            backbone = {id(parameter) for parameter in self.model.backbone.parameters()}
            for group in list(optimizer.param_groups):
                exits = [parameter for parameter in group["params"] if id(parameter) not in backbone]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) in backbone]
                optimizer.add_param_group({**group, "params": exits, "lr": self.exit_learning_rate})
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean loss of every exit since the last log, beside what `transformers.Trainer.log` gets."""
        if "loss" in logs:
            logs.update(self._exit_losses.take(self.model.layers, ""))
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
        output.metrics.update(self._exit_losses.take(self.model.layers, f"{metric_key_prefix}_"))
        self._exit_losses = training_losses
        return output


@dataclass
class LossSum:
    """The losses (L,) of every exit, summed over batches."""

    total: Tensor | None = None
    batches: int = 0

    def add(self, losses: Tensor) -> None:
        """Add the losses of one batch."""
        self.total = losses if self.total is None else self.total + losses
        self.batches += 1

    def take(self, layers: Sequence[int], prefix: str) -> dict[str, float]:
        """Return the means by name, `loss_exit_<layer>`, and start again from zero."""
        means = [] if self.total is None else (self.total / self.batches).tolist()
        self.total, self.batches = None, 0
        return {f"{prefix}loss_exit_{layer}": round(mean, 4) for layer, mean in zip(layers, means, strict=False)}


@contextmanager
def _frozen(model: MultiExitModel, stage: Stage) -> Iterator[None]:
    """Freeze what a stage does not train; frozen parameters stay out of the optimiser as well."""
    learns = stage.learns | {"objective_modules"}
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter_group(name, model) not in learns
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _freeze_batch_norm(backbone: torch.nn.Module) -> None:
    """Keep the running means of a frozen backbone's batch norms as they are."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def parameter_group(name: str, model: MultiExitModel) -> str:
    """Return the part of `Stage.learns` that a parameter belongs to; an objective's own are "objective_modules".

    A pooler that exits share belongs to the last exit, and a bypass to its exit.

    Args:
        name: as in `model.named_parameters()`, or as in a wrapper's.
        model: the model.
    """
    module, *path = module_path(name)
    if module in ("objective_modules", "backbone", "gate"):
        return module
    last = model.heads.last
    if module == "bypasses":
        return "final_exit" if int(path[0]) == last else "early_exits"
    kind, number = path[0], int(path[1])
    final = model.heads.pooler_of.get(last) if kind == "poolers" else last
    return "final_exit" if number == final else "early_exits"
