"""A layer in two halves: token exit between them, and the bypass of an exit in parallel to the layer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from offramp.errors import UnsupportedBackbone
from offramp.model.backbones.base import Backbone
from offramp.model.bypass import Bypass, BypassBranch
from offramp.model.config import MultiExitConfig
from offramp.model.token_exit.class_attention import CLASS_ATTENTION
from offramp.model.token_exit.config import TokenExit
from offramp.model.token_exit.selection import apply_token_exit
from offramp.types.carry import Carry


def run_layers(
    encoder: Backbone,
    numbers: range,
    carry: Carry,
    *,
    token_exit: TokenExit | None,
    bypass: Any,
    first_token_only: bool,
    states: list[Tensor] | None,
) -> Carry:
    """Run the layers between two exits.

    Args:
        encoder: has the layers.
        numbers: of the layers, 0-based; the next exit is after the last one.
        carry: states before the first one.
        token_exit: see `run_halves`.
        bypass: of the exit, see `run_halves`.
        first_token_only: of the exit, see `run_halves`.
        states: takes the states after each layer, (B, T, D); None = they are not kept.
    """
    for number in numbers:
        at_exit = {"bypass": bypass, "first_token_only": first_token_only} if number == numbers[-1] else {}
        carry = run_layer(encoder, number, carry, token_exit=token_exit, **at_exit)
        if states is not None:
            states.append(carry.hidden)
    return carry


def run_layer(
    encoder: Backbone,
    number: int,
    carry: Carry,
    *,
    token_exit: TokenExit | None = None,
    bypass: Any = None,
    first_token_only: bool = False,
) -> Carry:
    """Run layer `number` (0-based): whole, or as two halves where something happens between them.

    The arguments are those of `run_halves`.
    """
    if token_exit is not None and not token_exit.needs_attention(number + 1):
        token_exit = None
    if bypass is None and token_exit is None:
        return encoder.block(number, carry)
    halves = partial(run_halves, token_exit=token_exit, bypass=bypass, first_token_only=first_token_only)
    model = encoder.model
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        recomputed: Carry = checkpoint(halves, encoder, number, carry, use_reentrant=False)
        return recomputed
    return halves(encoder, number, carry)


def run_halves(
    encoder: Backbone,
    number: int,
    carry: Carry,
    *,
    token_exit: TokenExit | None = None,
    bypass: BypassBranch | None = None,
    first_token_only: bool = False,
) -> Carry:
    """Run layer `number` (0-based) as two halves.

    Args:
        encoder: has layers that run in halves.
        number: the layer.
        carry: states before the layer, (B, T, D).
        token_exit: removes tokens between the halves, or only remembers the attention; None = all tokens stay.
        bypass: of the exit after the layer; None = that exit reads what the next layer reads.
        first_token_only: the exit reads the first token alone, so the bypass runs on that one.

    Returns:
        States after the layer, (B, T', D); with a bypass also `exit_input`, (B, T' or 1, D).
    """
    layer_input = carry.hidden  # (B, T, D)
    attended, class_attention = encoder.attention_half(number, carry)
    carry = replace(carry, hidden=attended)
    selection = None  # None = all tokens stay
    if token_exit is not None:
        carry, selection = apply_token_exit(token_exit, number + 1, carry, class_attention, encoder.model.config)
    pre_norm = encoder.feed_forward_half(number, carry.hidden)  # (B, T', D)
    exit_input = None
    if bypass is not None:
        tokens = slice(0, 1) if first_token_only else slice(None)
        # the first token stays in its column, so it needs no selection
        source = bypass.source(layer_input, carry.hidden, None if first_token_only else selection)
        exit_input = bypass(source[:, tokens], pre_norm[:, tokens])
    return replace(carry, hidden=encoder.final_norm(number)(pre_norm), exit_input=exit_input)


def build_token_exit(encoder: Backbone, config: MultiExitConfig) -> TokenExit | None:
    """Return the configured token exit, and set the attention implementation that it needs.

    Raises:
        UnsupportedBackbone: layers that do not run in halves, or positions outside the embedding.
    """
    if config.token_exit is None:
        return None
    if not encoder.has_halves or not encoder.absolute_positions:
        missing = "layers that run in halves" if not encoder.has_halves else "positions that only the embedding adds"
        raise UnsupportedBackbone(f"token exit needs {missing}; {config.backbone.model_type} does not have them")
    encoder.model.set_attn_implementation(CLASS_ATTENTION)
    return TokenExit(**config.token_exit)


def build_bypasses(encoder: Backbone, config: MultiExitConfig) -> list[BypassBranch]:
    """Return a bypass for each exit; none where the configuration has no bypass.

    Raises:
        UnsupportedBackbone: layers that do not run in halves.
    """
    if config.bypass is None:
        return []
    if not encoder.has_halves:
        raise UnsupportedBackbone(
            f"a bypass needs layers that run in halves; those of this {config.backbone.model_type} do not"
        )
    norms: list[Any] = [encoder.final_norm(layer - 1) for layer in config.exit_layers]
    return [BypassBranch(Bypass(**config.bypass), config.backbone.hidden_size, norm.eps) for norm in norms]


def scale_gradient(carry: Carry, share: float) -> Carry:
    """Return the same values with gradients that are `share` of what they were."""

    def scale(states: Tensor) -> Tensor:
        return states * share + (states * (1 - share)).detach()

    optional = {"exit_input": carry.exit_input, "token_importance": carry.token_importance}
    scaled = {name: scale(states) for name, states in optional.items() if states is not None}
    return replace(carry, hidden=scale(carry.hidden), **scaled)
