"""Learning rates: the exits', which start from random weights, beside the backbone's."""

from __future__ import annotations

import torch


def separate_exits(optimizer: torch.optim.Optimizer, backbone: torch.nn.Module, exit_learning_rate: float) -> None:
    """Move all that is not the backbone's into parameter groups with a learning rate of their own.

    Args:
        optimizer: of the whole model; changed in place.
        backbone: keeps its groups.
        exit_learning_rate: of the others.
    """
    own = {id(parameter) for parameter in backbone.parameters()}
    for group in list(optimizer.param_groups):
        exits = [parameter for parameter in group["params"] if id(parameter) not in own]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in own]
        optimizer.add_param_group({**group, "params": exits, "lr": exit_learning_rate})
