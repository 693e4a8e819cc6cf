"""What an answer costs in multiply-accumulates (MACs), as a function of its length, its exit and the model's parts.

A layer with n_in tokens before attention and n_ff before its feed-forward half takes 4 n_in D^2 + 2 n_in^2 D +
2 n_ff D D_ff (MPEE, section 2, where both are N). On top come every exit that was asked on the way, with its pooling,
pooler and gate, and the bypass; with token exit the first token's attention and the fusion of those who leave. Left out
is what no exit saves, the embedding, and what is not a matrix product: norms, activations, softmax, biases, policies.

Differs from the authors' code, which calls these FLOPs (they are half of them), counts an attention too many where a
sample leaves early, and forgets the fusion token in the layer that makes it and all heads. Lengths are the true ones;
`padded` counts as a paper does that pads every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.backbones.registry import load_backbone
from offramp.model.bypass import Bypass
from offramp.model.config import MultiExitConfig
from offramp.model.heads import NARROW, PLAIN
from offramp.model.token_exit.config import TokenExit
from offramp.model.token_exit.selection import kept_count


@dataclass(frozen=True)
class Lengths:
    """How many tokens a layer sees, (N,) each: before attention, and before the feed-forward half."""

    attention: Tensor
    feed_forward: Tensor


def lengths(setting: TokenExit | None, layer: int, tokens: Tensor) -> Lengths:
    """Of layer `layer` (1-based), for samples that come to it with `tokens` (N,)."""
    if setting is None or layer not in setting.keep_ratio:
        return Lengths(tokens, tokens)
    others = tokens - 1
    stay = kept_count(others, setting.keep_ratio[layer])
    fusion = (stay < others) & (setting.fusion != "none")
    return Lengths(tokens, 1 + stay + fusion)


def macs(config: MultiExitConfig, tokens: Tensor | Sequence[int], *, padded: int | None = None) -> Tensor:
    """MACs (L, N) in float64 of samples that leave at each exit, all they ran on the way included.

    Args:
        config: the model's.
        tokens: (N,) real tokens of each sample, the first one counted (`Trace.tokens`).
        padded: count every sample with so many tokens instead.

    Raises:
        InvalidInput: samples without tokens, or longer than `padded`.
        UnsupportedBackbone: an encoder with other layers than these formulas are for.
    """
    counts = _counts(tokens, padded)
    setting = None if config.token_exit is None else TokenExit(**config.token_exit)
    sofar, found = torch.zeros(len(counts), dtype=torch.float64), []
    for layer in range(1, config.backbone.num_hidden_layers + 1):
        seen = lengths(setting, layer, counts)
        sofar = sofar + _layer(config, seen) + _selection(config, setting, layer, seen)
        counts = seen.feed_forward
        if layer in config.exit_layers:
            exit = config.exit_layers.index(layer)
            sofar = sofar + _exit(config, exit, counts) + _bypass(config, exit, seen)
            found.append(sofar)
    return torch.stack(found)


def plain_macs(config: MultiExitConfig, tokens: Tensor | Sequence[int], *, padded: int | None = None) -> Tensor:
    """MACs (N,) of the same encoder without early exit: all layers, all tokens, the last exit's head and no other.

    Args:
        config: see `macs`.
        tokens: see `macs`.
        padded: see `macs`.
    """
    depth = config.backbone.num_hidden_layers
    plain = MultiExitConfig(
        config.backbone, config.head, config.pooling, [depth], own_head=config.own_head, num_labels=config.num_labels
    )
    return macs(plain, tokens, padded=padded)[0]


def macs_ratio(
    config: MultiExitConfig, tokens: Tensor | Sequence[int], exit_layers: Tensor, *, padded: int | None = None
) -> float:
    """How many times less a run costs than the plain model: the ratio of the sums over all samples (MPEE, eq. 15).

    MPEE's tables have this ratio; the equation itself has it upside down.

    Args:
        config: see `macs`.
        tokens: see `macs`.
        exit_layers: (N,) the layer at which each sample left (`Answers.exit_layers`).
        padded: see `macs`.
    """
    at = torch.searchsorted(torch.tensor(config.exit_layers), exit_layers.cpu())  # (N,)
    run = macs(config, tokens, padded=padded).gather(0, at.unsqueeze(0))
    return (plain_macs(config, tokens, padded=padded).sum() / run.sum()).item()


def _counts(tokens: Tensor | Sequence[int], padded: int | None) -> Tensor:
    counts = torch.as_tensor(tokens).long()
    if counts.dim() != 1 or len(counts) == 0 or counts.min() < 1:
        raise InvalidInput("costs need the number of tokens of each sample, at least 1")
    if padded is None:
        return counts
    if counts.max() > padded:
        raise InvalidInput(f"padded to {padded} tokens, but a sample has {counts.max()}")
    return torch.full_like(counts, padded)


def _layer(config: MultiExitConfig, seen: Lengths) -> Tensor:
    backbone = config.backbone
    if not load_backbone(backbone.model_type).absolute_positions:
        raise UnsupportedBackbone(f"the layers of {backbone.model_type} are not those that the cost formulas are for")
    width: int = backbone.hidden_size
    wide: int = backbone.hidden_dim if backbone.model_type == "distilbert" else backbone.intermediate_size
    whole = _halves(seen.attention, seen.attention, width, wide)  # of an ALBERT group the last layer alone selects
    inner: int = backbone.inner_group_num - 1 if backbone.model_type == "albert" else 0
    return inner * whole + _halves(seen.attention, seen.feed_forward, width, wide)


def _halves(attention: Tensor, feed_forward: Tensor, width: int, wide: int) -> Tensor:
    n_in, n_ff = attention.double(), feed_forward.double()
    return 4 * n_in * width**2 + 2 * n_in**2 * width + 2 * n_ff * width * wide


def _selection(config: MultiExitConfig, setting: TokenExit | None, layer: int, seen: Lengths) -> Tensor:
    """The first token's products with all others, and the weighted sum of those who leave."""
    nothing = torch.zeros(len(seen.attention), dtype=torch.float64)
    if setting is None or not setting.needs_attention(layer):
        return nothing
    width: int = config.backbone.hidden_size
    return width * seen.attention.double() + _fusion(config, setting, layer, seen)


def _fusion(config: MultiExitConfig, setting: TokenExit, layer: int, seen: Lengths) -> Tensor:
    others, width = seen.attention - 1, int(config.backbone.hidden_size)
    fuses = (others > kept_count(others, setting.keep_ratio.get(layer, 1.0))) & (setting.fusion != "none")
    return width * fuses * seen.attention.double()


def _reads_first(config: MultiExitConfig, exit: int) -> bool:
    return _is_own(config, exit) or (config.pooling == "first" and config.head != "attention")


def _is_own(config: MultiExitConfig, exit: int) -> bool:
    last: int = len(config.exit_layers) - 1
    return config.own_head is not None and exit == last


def _exit(config: MultiExitConfig, exit: int, counts: Tensor) -> Tensor:
    """Pooling, pooler, gate and the last map of exit `exit` (0-based), on `counts` (N,) tokens.

    With exit memory and a gate each exit reads twice: before the block hands on what it has come to, and for the gate.
    """
    width, tokens = int(config.backbone.hidden_size), counts.double()
    outputs: int = config.num_labels + int(config.certainty)
    times = 2 if config.certainty and config.memory is not None else 1
    own = _is_own(config, exit)
    if config.head == "attention" and not own:
        inside = 4 * tokens * NARROW**2 + 2 * tokens**2 * NARROW + NARROW**2
        pooled = tokens * NARROW if config.pooling == "mean" else 0
        return times * (tokens * width * NARROW + inside + pooled) + NARROW * outputs
    pooled = 0 * tokens if _reads_first(config, exit) else tokens * width
    pooler: bool = config.own_head != PLAIN if own else config.head in ("pooler", "shared_pooler")
    return times * (pooled + width**2 * pooler) + width * outputs


def _bypass(config: MultiExitConfig, exit: int, seen: Lengths) -> Tensor:
    """2 r D for each token that the exit reads; for all tokens, the block's input goes through the selection too."""
    if config.bypass is None:
        return torch.zeros(len(seen.attention), dtype=torch.float64)
    bypass = Bypass(**config.bypass)
    each = 2 * bypass.rank * int(config.backbone.hidden_size)
    if _reads_first(config, exit):
        return torch.full((len(seen.attention),), float(each), dtype=torch.float64)
    again = torch.zeros(len(seen.attention), dtype=torch.float64)
    if config.token_exit is not None and bypass.placement == "block":
        again = _fusion(config, TokenExit(**config.token_exit), config.exit_layers[exit], seen)
    return each * seen.feed_forward.double() + again
