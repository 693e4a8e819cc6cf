"""The outputs of exits: from the values behind a block to logits and certainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.model.backbones.base import Backbone
from offramp.model.config import MultiExitConfig
from offramp.model.gate import Gate
from offramp.model.heads import Heads, pooling_weights_of
from offramp.model.inputs import check_token_ids
from offramp.model.layers import scale_gradient
from offramp.model.lexical.classifier import LexicalClassifier
from offramp.model.lexical.config import LexicalExit
from offramp.policies.base import Memory
from offramp.policies.registry import load_policy
from offramp.types.carry import Carry
from offramp.types.operating_point import OperatingPoint
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


def encoder_exits(
    model: Any,
    inputs: Mapping[str, Tensor],
    branch_scales: Sequence[float] | None = None,
    states: list[Tensor] | None = None,
) -> ExitOutput:
    """Run a model at full depth and return the outputs of its encoder's exits, (L, B, C): all but the lexical one.

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
    first = len(model.layers) - len(model.config.exit_layers)  # behind the lexical exit, where there is one
    for number, exit in enumerate(range(first, len(model.layers))):
        carry = branch = model.block(exit, carry, states)
        if branch_scales is not None:
            share = branch_scales[number]
            branch, carry = scale_gradient(carry, share), scale_gradient(carry, 1 - share)
        outputs.append(model.exit(exit, branch))
    if states is not None:
        states[-1] = model._encoder_view.last_of_states(states[-1])
    logits = torch.stack([out.logits for out in outputs])
    certainty = [out.certainty for out in outputs if out.certainty is not None]
    problem_type = model.config.problem_type
    return ExitOutput(logits, torch.stack(certainty) if certainty else None, problem_type=problem_type)


def build_lexical(config: MultiExitConfig) -> LexicalClassifier | None:
    """Return a new classifier for the exit before the first layer, not fitted yet; None where there is no such exit."""
    if config.lexical is None:
        return None
    return LexicalClassifier(LexicalExit(**config.lexical), config.num_labels, config.problem_type)


def renew_lexical(model: Any, setting: LexicalExit) -> None:
    """Give a model an exit before the first layer that is not fitted yet, in place of one that it may have.

    Raises:
        InvalidInput: the encoder reads no tokens.
    """
    model.config.set_lexical(setting)
    model.lexical_exit = build_lexical(model.config)
    model.lexical_exit.to(model.device)


def refuse_policy(model: Any, point: OperatingPoint) -> None:
    """Let a point's policy score one row at each exit that it reads, so that what it cannot do shows before a row.

    Raises:
        InvalidInput: the point is for other exits than the model's, or its policy was fitted for another number.
        NotApplicable: the policy has no meaning for the model.
    """
    policy, read = load_policy(point.policy), point.layers_read(model.layers)
    logits = torch.zeros(1, model.config.num_labels)
    certainty = None if model.gate is None else torch.zeros(1)
    out = ExitOutput(logits, certainty, problem_type=model.config.problem_type)
    memory: Memory = ()
    for number, layer in enumerate(read):
        memory = policy.step(number, replace(out, layer=layer, last=layer == read[-1]), memory).memory


def refuse_unfitted(classifier: LexicalClassifier | None) -> None:
    """Raise InvalidInput where the exit before the first layer is not fitted yet."""
    if classifier is not None and not len(classifier.fitted_rows):
        fit = "offramp.training.lexical.fit_lexical"
        raise InvalidInput(f"the exit before the first layer is not fitted; {fit}(model, tokenizer, examples) fits it")


def lexical_output(model: Any, inputs: Mapping[str, Tensor]) -> ExitOutput:
    """Return the output of a model's exit before the first layer; zeros as long as it is not fitted.

    Raises:
        InvalidInput: there is no such exit, or there are no `input_ids`.
    """
    classifier: LexicalClassifier | None = model.lexical_exit
    if classifier is None:
        raise InvalidInput("this model has no exit before the first layer")
    if "input_ids" not in inputs:
        raise InvalidInput(f"the exit before the first layer reads input_ids; got {' and '.join(inputs)}")
    check_token_ids(inputs["input_ids"], model.config.vocab_size)
    kind = inputs["input_ids"].device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        logits = classifier(inputs["input_ids"], inputs.get("attention_mask"))  # (B, C) in float32
    certainty = None if model.gate is None else classifier.certainty(logits)
    return ExitOutput(logits, certainty, layer=0, problem_type=model.config.problem_type)


def in_front(lexical: ExitOutput | None, exits: ExitOutput) -> ExitOutput:
    """Return the outputs of all exits, (L + 1, B, C): the one before the first layer, then the encoder's (L, B, C)."""
    if lexical is None:
        return exits
    certainty = exits.certainty
    if certainty is not None and lexical.certainty is not None:
        certainty = torch.cat((lexical.certainty.unsqueeze(0), certainty))
    return replace(exits, logits=torch.cat((lexical.logits.unsqueeze(0), exits.logits)), certainty=certainty)
