"""The output of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from offramp.model.exits import in_front
from offramp.model.losses import depth_weighted, exit_losses
from offramp.types.outputs import ExitOutput


@dataclass
class MultiExitOutput(ModelOutput):
    """Output of a forward pass; attributes or a tuple, as always in transformers.

    Attributes:
        loss: scalar, depth-weighted over the exits behind layers; None without labels.
        logits: (B, C): the last exit's, or with an operating point set those of the exit at which each sample exited.
        logits_by_exit: (B, L, C) at full depth; an exit before the first layer comes first, with zeros until it is
            fitted, and is left out in training.
        certainty_by_exit: (B, L) at full depth, where the model has a gate.
        exit_layers: (B,) layer numbers, where an operating point was set.
        hidden_states: the input of the first layer and the states after each layer, (B, T, D) each, where asked for:
            transformers' hidden_states of the encoder.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_by_exit: Tensor | None = None
    certainty_by_exit: Tensor | None = None
    exit_layers: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    @property
    def exit_logits(self) -> Tensor | None:
        """Return the logits of every exit, (L, B, C): a view of `logits_by_exit`."""
        return None if self.logits_by_exit is None else self.logits_by_exit.transpose(0, 1)

    @property
    def exit_certainty(self) -> Tensor | None:
        """Return the certainty of every exit, (L, B): a view of `certainty_by_exit`."""
        return None if self.certainty_by_exit is None else self.certainty_by_exit.transpose(0, 1)


def full_depth_output(
    lexical: ExitOutput | None, exits: ExitOutput, labels: Tensor | None, states: Sequence[Tensor] | None
) -> MultiExitOutput:
    """Return the output of a pass at full depth.

    Args:
        lexical: of the exit before the first layer, which has no loss; None = it is left out.
        exits: of the exits behind layers, (L, B, C).
        labels: for the loss; None = no loss.
        states: the hidden states; None = they were not asked for.
    """
    every = in_front(lexical, exits)
    certainty = every.certainty
    return MultiExitOutput(
        loss=None if labels is None else depth_weighted(exit_losses(exits, labels)),
        logits=exits.logits[-1],
        logits_by_exit=every.logits.transpose(0, 1).contiguous(),
        certainty_by_exit=None if certainty is None else certainty.transpose(0, 1).contiguous(),
        hidden_states=None if states is None else tuple(states),
    )
