"""The output of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class MultiExitOutput(ModelOutput):
    """Output of a forward pass; attributes or a tuple, as always in transformers.

    Attributes:
        loss: scalar, depth-weighted over the exits; None without labels.
        logits: (B, C): the last exit's, or with an operating point set those of the exit at which each sample exited.
        logits_by_exit: (B, L, C) at full depth.
        certainty_by_exit: (B, L) at full depth, where the model has a gate.
        exit_layers: (B,) layer numbers, where an operating point was set.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_by_exit: Tensor | None = None
    certainty_by_exit: Tensor | None = None
    exit_layers: Tensor | None = None

    @property
    def exit_logits(self) -> Tensor | None:
        """Return the logits of every exit, (L, B, C): a view of `logits_by_exit`."""
        return None if self.logits_by_exit is None else self.logits_by_exit.transpose(0, 1)

    @property
    def exit_certainty(self) -> Tensor | None:
        """Return the certainty of every exit, (L, B): a view of `certainty_by_exit`."""
        return None if self.certainty_by_exit is None else self.certainty_by_exit.transpose(0, 1)
