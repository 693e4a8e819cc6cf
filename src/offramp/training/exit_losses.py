"""The losses L_i of the exits: a function of the user's in place of the problem's own, and their means for logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import default_compute_objective

from offramp.errors import InvalidInput
from offramp.model.output import MultiExitOutput


def by_exit(
    function: Callable[..., Tensor], num_items: Tensor | int | None, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that maps logits (L, B, C) and labels to the loss of every exit, (L,).

    Args:
        function: a Trainer's `compute_loss_func(outputs, labels, num_items_in_batch)`, called for each exit with
            `outputs.logits` (B, C).
        num_items: rows of the accumulated batch, passed on.
        scale: factor of all losses.
    """

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        values: list[Any] = [
            function(MultiExitOutput(logits=exit), labels, num_items_in_batch=num_items) for exit in logits
        ]
        wrong = next((value for value in values if not isinstance(value, Tensor) or value.dim() > 0), None)
        if wrong is not None:
            shape = tuple(wrong.shape) if isinstance(wrong, Tensor) else type(wrong).__name__
            raise InvalidInput(f"compute_loss_func must return one number as a tensor, for each exit; got {shape}")
        return torch.stack(values) * scale

    return losses


@dataclass
class LossSum:
    """The losses (L,) of every exit, summed over batches."""

    total: Tensor | None = None
    batches: int = 0

    def add(self, losses: Tensor) -> None:
        """Add the losses of one batch."""
        self.total = losses if self.total is None else self.total + losses
        self.batches += 1

    def take(self, layers: Sequence[int], prefix: str, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means by name, `loss_exit_<layer>`, and start again from zero.

        Args:
            layers: of the exits.
            prefix: of the names.
            average: the mean over processes.
        """
        means = [] if self.total is None else average(self.total / self.batches).tolist()
        self.total, self.batches = None, 0
        return {f"{prefix}loss_exit_{layer}": round(mean, 4) for layer, mean in zip(layers, means, strict=False)}


def default_score(metrics: dict[str, float]) -> float:
    """Return transformers' default score of a search's trial: the evaluation loss, or the sum of the user's metrics."""
    plain = {name: value for name, value in metrics.items() if "loss_exit_" not in name}
    score: float = default_compute_objective(plain)
    return score
