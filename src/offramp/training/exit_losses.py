"""The losses L_i of the exits: a function of the user's in place of the problem's own, and their means for logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import GradientState
from torch import Tensor
from transformers.trainer_utils import default_compute_objective

from offramp.errors import InvalidInput
from offramp.model.losses import problem_losses
from offramp.model.output import MultiExitOutput
from offramp.types.outputs import ExitOutput


def of_problem(
    problem_type: str | None, class_weights: Tensor | None, share: Tensor | float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that maps logits (L, B, C) and labels to the problem's loss of every exit, (L,).

    Args:
        problem_type: one of PROBLEM_TYPES.
        class_weights: (C,) or None.
        share: factor of all losses.
    """

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        weights = None if class_weights is None else class_weights.to(logits.device)
        return share * problem_losses(ExitOutput(logits, problem_type=problem_type), labels, weights)

    return losses


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
    """The losses of every exit, summed over batches, and behind them the sum of the batches' weights: (L + 1,)."""

    total: Tensor | None = None

    def add(self, losses: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add the losses (L,) of one batch, with what the batch counts."""
        weighted = torch.cat([losses, losses.new_ones(1)]) * weight
        self.total = weighted if self.total is None else self.total + weighted

    def take(self, layers: Sequence[int], prefix: str, add_up: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means by name, `loss_exit_<layer>`, and start again from zero.

        Args:
            layers: of the exits.
            prefix: of the names.
            add_up: the sum over processes.
        """
        total = torch.ones(1) if self.total is None else add_up(self.total)
        self.total = None
        means = (total[:-1] / total[-1]).tolist()
        return {f"{prefix}loss_exit_{layer}": round(mean, 4) for layer, mean in zip(layers, means, strict=False)}


def own_rows(rows: int, process: int, state: GradientState) -> int:
    """Return how many rows of a batch of an evaluation count; accelerate fills the last ones up with rows once more.

    Args:
        rows: of the batch.
        process: the number of this process, which has the rows behind those of the processes before it.
        state: of the rows that are left for the last batches of all processes.
    """
    if not state.end_of_dataloader or state.remainder <= 0:
        return rows
    left: int = state.remainder - process * rows
    return min(max(left, 0), rows)


def default_score(metrics: dict[str, float]) -> float:
    """Return transformers' default score of a search's trial: the evaluation loss, or the sum of the user's metrics."""
    plain = {name: value for name, value in metrics.items() if "loss_exit_" not in name}
    score: float = default_compute_objective(plain)
    return score
