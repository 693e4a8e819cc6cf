"""The outputs of exits: from the values behind a block to logits and certainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from offramp.model.backbones.base import Backbone
from offramp.model.config import MultiExitConfig
from offramp.model.gate import Gate
from offramp.model.heads import Heads, pooling_weights_of
from offramp.model.layers import scale_gradient
from offramp.types.carry import Carry
from offramp.types.outputs import ExitOutput


@final
class Exits:
    """A view of a model's exits; it owns no weights.

    Args:
        encoder: says which states an exit reads.
        heads: the classifiers.
        gate: of certainty; None where the model has none.
        config: of the model.
    """

    def __init__(self, encoder: Backbone, heads: Heads, gate: Gate | None, config: MultiExitConfig) -> None:
        self.encoder, self.heads, self.gate, self.config = encoder, heads, gate, config

    def prepare(self, carry: Carry) -> Carry:
        """Add what all exits read alike: the weight of each token in a mean."""
        if self.heads.pooling != "mean" or carry.mask is None:
            return carry
        return replace(carry, pooling_weights=pooling_weights_of(carry.mask))

    def remember(self, exit: int, carry: Carry) -> Carry:
        """Set M_1 = C_1, M_l = (1 - lambda) M_{l-1} + lambda C_l (MPEE, section 3.2, eq. 9 and 10).

        What the gate reads as well is kept for it.
        """
        features = self._features(exit, carry)
        logits = self.heads.classify(exit, features)  # (B, C)
        before = logits if carry.memory_logits is None else carry.memory_logits
        share: Any = self.config.memory
        mixed = torch.lerp(before, logits, share)
        return replace(carry, memory_logits=mixed, exit_features=None if self.gate is None else features)

    def output(self, exit: int, carry: Carry) -> ExitOutput:
        """Return the output of exit `exit` (0-based)."""
        attributes: dict[str, Any] = {
            "layer": self.config.exit_layers[exit],
            "problem_type": self.config.problem_type,
        }
        if carry.memory_logits is not None and self.gate is None:
            return ExitOutput(carry.memory_logits, **attributes)
        features = self._features(exit, carry) if carry.exit_features is None else carry.exit_features  # (B, W)
        logits = self.heads.classify(exit, features) if carry.memory_logits is None else carry.memory_logits
        return ExitOutput(logits, None if self.gate is None else self.gate(features), **attributes)

    def _features(self, exit: int, carry: Carry) -> Tensor:
        """Return the input of the last map of exit `exit` (0-based), (B, W)."""
        states = self.encoder.exit_states(carry.hidden) if carry.exit_input is None else carry.exit_input  # (B, T, D)
        return self.heads.features(exit, states, carry.mask, carry.pooling_weights)


def build_heads(config: MultiExitConfig, widths: Sequence[int]) -> Heads:
    """Return new classifiers for a model's exits.

    Args:
        config: of the model.
        widths: D of the hidden states after each layer.
    """
    return Heads(
        config.head,
        config.pooling,
        [widths[layer - 1] for layer in config.exit_layers],
        config.num_labels,
        config.exit_dropout,
        config.own_head,
        first_tanh=config.format > 1,
    )


def all_exits(
    model: Any, inputs: Mapping[str, Tensor], branch_scales: Sequence[float] | None, states: list[Tensor] | None
) -> ExitOutput:
    """Run a model at full depth and return the outputs of every exit, (L, B, C).

    Args:
        model: a `MultiExitModel`.
        inputs: of its forward pass.
        branch_scales: (L,) shares of the gradient at each exit's layer that come from the exit; None = both in full.
        states: takes the input of the first layer and the states after each layer; None = they are not kept.
    """
    carry: Carry = model.embed(inputs)
    if states is not None:
        states.append(carry.hidden)
    outputs: list[ExitOutput] = []
    for number in range(len(model.layers)):
        carry = branch = model.block(number, carry, states)
        if branch_scales is not None:
            share = branch_scales[number]
            branch, carry = scale_gradient(carry, share), scale_gradient(carry, 1 - share)
        outputs.append(model.exit(number, branch))
    logits = torch.stack([out.logits for out in outputs])
    certainty = [out.certainty for out in outputs if out.certainty is not None]
    problem_type = model.config.problem_type
    return ExitOutput(logits, torch.stack(certainty) if certainty else None, problem_type=problem_type)
