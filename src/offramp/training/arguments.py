"""The Trainer's arguments that have no meaning where every exit has a loss of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import TrainingArguments

from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel
from offramp.model.wrappers import unwrap
from offramp.training.objectives.base import Objective

logger = logging.getLogger(__name__)


def check_arguments(
    arguments: Mapping[str, Any], objective: Objective, exit_learning_rate: float | None, class_weights: Any
) -> None:
    """Refuse what `ExitTrainer` cannot honour.

    Args:
        arguments: of `transformers.Trainer`, by name; those that were passed.
        objective: of the exits.
        exit_learning_rate: see `ExitTrainer`.
        class_weights: see `ExitTrainer`.

    Raises:
        InvalidInput: the first argument that cannot be honoured, and why.
    """
    own_optimizer = any(part is not None for part in arguments.get("optimizers", ()))
    if own_optimizer and len(objective.stages) > 1:
        raise InvalidInput(f"{_stages_of(objective)}, each with an optimiser of its own; pass no optimizers")
    if own_optimizer and exit_learning_rate is not None:
        raise InvalidInput(
            "exit_learning_rate is for an optimiser that the Trainer makes; leave it out with optimizers"
        )
    if class_weights is not None and arguments.get("compute_loss_func") is not None:
        raise InvalidInput("class_weights and compute_loss_func both set the loss of an exit; choose one")
    args = arguments.get("args")
    if args is not None:
        for problem in _problems(args, objective, class_weights):
            raise InvalidInput(problem)


def _problems(args: TrainingArguments, objective: Objective, class_weights: Any) -> Iterator[str]:
    """Yield what cannot be honoured of the training arguments."""
    if args.label_smoothing_factor:
        yield "label_smoothing_factor is not supported by ExitTrainer: each exit has its own loss"
    if args.label_names not in (None, ["labels"]):
        yield f"label_names must be ['labels'], under which the loss reads them; got {args.label_names}"
    if args.use_liger_kernel:
        yield "use_liger_kernel is not supported: its kernels replace the losses of transformers' own models"
    if args.ddp_find_unused_parameters and objective.modules():
        name = type(objective).__name__
        yield f"ddp_find_unused_parameters does not go with {name}, which uses its own modules outside the forward pass"
    if (args.deepspeed or args.fsdp) and len(objective.stages) > 1:
        yield f"{_stages_of(objective)}, and deepspeed and fsdp keep the parameters of the first; use DDP"
    if class_weights is not None and args.per_device_train_batch_size * args.world_size == 1:
        yield "class_weights weight the mean over a batch, so in batches of one row they change nothing"


def _stages_of(objective: Objective) -> str:
    return f"{type(objective).__name__} has {len(objective.stages)} stages"


def _is_frozen(module: nn.Module | None) -> bool:
    parameters = [] if module is None else list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def check_model(model: nn.Module, objective: Objective) -> None:
    """Refuse a model without exits, and exit memory where an objective cannot go with it.

    Raises:
        InvalidInput: the objective freezes the last exit or scales gradients by exit, and the model mixes its exits;
            a model without exits.
    """
    exits = unwrap(model)
    if not isinstance(exits, MultiExitModel):
        name = type(model).__name__
        raise InvalidInput(f"ExitTrainer trains a MultiExitModel, got a {name}; MultiExitModel.from_backbone makes one")
    still = [name for name in ("heads", "bypasses", "gate") if _is_frozen(getattr(exits, name))]
    if still:
        text = "%s of the model take no gradient and stay as they are; an adapter of PEFT trains them with %s"
        logger.warning(text, " and ".join(still), f"modules_to_save={still}")
    if exits.config.memory is None:
        return
    name = type(objective).__name__
    if any("final_exit" not in stage.learns for stage in objective.stages):
        raise InvalidInput(f"{name} freezes the last exit, and memory=... would let the early exits change it")
    if objective.branch_scales(len(exits.config.exit_layers)) is not None:
        raise InvalidInput(f"{name} scales what each exit sends back, and memory=... mixes the exits")
