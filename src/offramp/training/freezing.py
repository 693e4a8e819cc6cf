"""Freezing: which parameters a stage of training trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.model.modeling import MultiExitModel
from offramp.model.wrappers import module_path
from offramp.training.objectives.base import Stage


@contextmanager
def frozen(model: MultiExitModel, stage: Stage) -> Iterator[None]:
    """Freeze what a stage does not train; frozen parameters stay out of the optimiser as well."""
    learns = stage.learns | {"objective_modules"}
    parameters = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter_group(name, model) not in learns
    ]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def freeze_batch_norm(backbone: torch.nn.Module) -> None:
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
