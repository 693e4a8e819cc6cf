"""Multiply-accumulates (MACs) of an answer, as a function of its length, its exit and the model's parts.

A layer with n_in tokens before attention and n_ff before its feed-forward half takes 4 n_in D^2 + 2 n_in^2 D +
2 n_ff D D_ff (MPEE, section 2, where both are N). Added are every exit on the way, with its pooling, pooler and gate,
and the bypass; with token exit the first token's attention, its mean over the heads, and the fusion of the tokens that
leave. Left out are all but matrix products: look-ups in tables, norms, activations, softmax, biases, policies.

`encoder_macs` counts layers and their exits, as papers do. `macs`, for costs, adds what comes before the first layer:
the lexical exit, which takes R + 1 for each n-gram, its weights and its norm, n n_in of them, and R C where its R
columns are fewer than the C outputs; and the projection of an embedding that is narrower than the layers (ALBERT,
ELECTRA), E D for each token, which samples that leave at the lexical exit do not take.

Differs from the authors' code, which calls these FLOPs (they are half of them), counts one attention too many where a
sample exits early, and omits the fusion token in the layer that makes it and all heads. Lengths are the true ones;
`padded` counts every text at the padded length, as papers do.
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
from offramp.model.lexical.config import LexicalExit
from offramp.model.token_exit.config import TokenExit
from offramp.model.token_exit.selection import remaining_count

RELATIVE = ("mpnet",)
"""Families with the same layers but for relative positions, which are sums and no products."""


@dataclass(frozen=True)
class Lengths:
    """The numbers of tokens of a layer, (N,): before attention, and before the feed-forward half."""

    attention: Tensor
    feed_forward: Tensor


def lengths(setting: TokenExit | None, layer: int, tokens: Tensor) -> Lengths:
    """Return the lengths at layer `layer` (1-based), for samples that reach it with `tokens` (N,)."""
    if setting is None or layer not in setting.keep_ratio:
        return Lengths(tokens, tokens)
    others = tokens - 1
    stay = remaining_count(others, setting.keep_ratio[layer])
    fusion = (stay < others) & (setting.fusion != "none")
    return Lengths(tokens, 1 + stay + fusion)


def macs(config: MultiExitConfig, tokens: Tensor | Sequence[int], exit_layers: Sequence[int] | None = None) -> Tensor:
    """Return MACs (L, N) in float64 of samples that leave at each exit, with all that is read before it.

    Args:
        config: the model's.
        tokens: (N,) real tokens of each sample, the first one counted (`Trace.tokens`).
        exit_layers: the layers whose exits are read, 0 = the lexical exit; the others take nothing, the layers that
            lead to them all the same. None = all that the model has.

    Raises:
        InvalidInput: samples without tokens; layers at which the model has no exit.
        UnsupportedBackbone: an encoder whose layers have other formulas.
    """
    counts = _counts(tokens, None)
    read = config.layers if exit_layers is None else list(exit_layers)
    if missing := sorted(set(read) - set(config.layers)):
        raise InvalidInput(f"the model has no exits at layers {missing}; it has them at {config.layers}")
    lexical = _lexical(config, counts) if 0 in read else torch.zeros(len(counts), dtype=torch.float64)
    encoder = lexical + _embedding(config, counts) + _encoder(config, counts, [layer for layer in read if layer])
    return torch.cat((lexical[None], encoder)) if 0 in read else encoder


def encoder_macs(config: MultiExitConfig, tokens: Tensor | Sequence[int], *, padded: int | None = None) -> Tensor:
    """Return MACs (L, N) in float64 of the layers up to each exit behind one, with all these exits before it.

    Args:
        config: the model's.
        tokens: (N,) real tokens of each sample, the first one counted (`Trace.tokens`).
        padded: count every sample with so many tokens instead.

    Raises:
        InvalidInput: samples without tokens, or longer than `padded`.
        UnsupportedBackbone: an encoder whose layers have other formulas.
    """
    return _encoder(config, _counts(tokens, padded), config.exit_layers)


def _encoder(config: MultiExitConfig, counts: Tensor, read: Sequence[int]) -> Tensor:
    """Return MACs (len(read), N) of samples with `counts` (N,) tokens that leave at the exits behind these layers."""
    setting = None if config.token_exit is None else TokenExit(**config.token_exit)
    total, at_exits = torch.zeros(len(counts), dtype=torch.float64), []
    for layer in range(1, config.backbone.num_hidden_layers + 1):
        tokens_in = lengths(setting, layer, counts)
        total = total + _layer(config, tokens_in) + _selection(config, setting, layer, tokens_in)
        counts = tokens_in.feed_forward
        if layer in read:
            exit = config.exit_layers.index(layer)
            total = total + _exit(config, exit, counts) + _bypass(config, exit, tokens_in)
            at_exits.append(total)
    return torch.stack(at_exits)


def plain_macs(config: MultiExitConfig, tokens: Tensor | Sequence[int], *, padded: int | None = None) -> Tensor:
    """Return MACs (N,) of the same encoder without early exit: all layers, all tokens, the last exit's head alone.

    Args:
        config: see `encoder_macs`.
        tokens: see `encoder_macs`.
        padded: see `encoder_macs`.
    """
    depth = config.backbone.num_hidden_layers
    plain = MultiExitConfig(
        config.backbone, config.head, config.pooling, [depth], own_head=config.own_head, num_labels=config.num_labels
    )
    return encoder_macs(plain, tokens, padded=padded)[0]


def macs_ratio(
    config: MultiExitConfig, tokens: Tensor | Sequence[int], exit_layers: Tensor, *, padded: int | None = None
) -> float:
    """Return MACs of the plain model over MACs of a run, both summed over all samples (MPEE, eq. 15).

    MPEE's tables print this ratio; the equation itself is its inverse.

    Args:
        config: see `encoder_macs`; of a model without a lexical exit, which papers do not have.
        tokens: see `encoder_macs`.
        exit_layers: (N,) the layer at which each sample exited (`Answers.exit_layers`).
        padded: see `encoder_macs`.
    """
    exits = torch.searchsorted(torch.tensor(config.exit_layers), exit_layers.cpu())  # (N,)
    run = encoder_macs(config, tokens, padded=padded).gather(0, exits.unsqueeze(0))
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


def _lexical(config: MultiExitConfig, counts: Tensor) -> Tensor:
    """Return MACs (N,) of the lexical exit, on samples with `counts` (N,) tokens."""
    setting = LexicalExit(**(config.lexical or {})).resolved(config.num_labels, config.vocab_size)
    rank, outputs = int(setting.rank or 0), int(config.num_labels)
    return counts.double() * setting.ngrams * (rank + 1) + rank * outputs * (rank < outputs)


def _embedding(config: MultiExitConfig, counts: Tensor) -> Tensor:
    """Return MACs (N,) of the map from the embedding's width to that of the layers; 0 where the two are one."""
    backbone = config.backbone
    width: int = backbone.hidden_size
    narrow: int = getattr(backbone, "embedding_size", width)
    return counts.double() * narrow * width * (narrow != width or backbone.model_type == "albert")


def _layer(config: MultiExitConfig, tokens_in: Lengths) -> Tensor:
    backbone = config.backbone
    if not (load_backbone(backbone.model_type).absolute_positions or backbone.model_type in RELATIVE):
        raise UnsupportedBackbone(f"the cost formulas are not for the layers of {backbone.model_type}")
    width: int = backbone.hidden_size
    wide: int = backbone.hidden_dim if backbone.model_type == "distilbert" else backbone.intermediate_size
    whole = _halves(
        tokens_in.attention, tokens_in.attention, width, wide
    )  # of an ALBERT group the last layer alone selects
    inner: int = backbone.inner_group_num - 1 if backbone.model_type == "albert" else 0
    return inner * whole + _halves(tokens_in.attention, tokens_in.feed_forward, width, wide)


def _halves(attention: Tensor, feed_forward: Tensor, width: int, wide: int) -> Tensor:
    n_in, n_ff = attention.double(), feed_forward.double()
    return 4 * n_in * width**2 + 2 * n_in**2 * width + 2 * n_ff * width * wide


def _selection(config: MultiExitConfig, setting: TokenExit | None, layer: int, tokens_in: Lengths) -> Tensor:
    """Return MACs of the first token's products with all tokens, of their mean over the heads, and of the fusion."""
    if setting is None or not setting.needs_attention(layer):
        return torch.zeros(len(tokens_in.attention), dtype=torch.float64)
    width: int = config.backbone.hidden_size + config.backbone.num_attention_heads
    return width * tokens_in.attention.double() + _fusion(config, setting, layer, tokens_in)


def _fusion(config: MultiExitConfig, setting: TokenExit, layer: int, tokens_in: Lengths) -> Tensor:
    others, width = tokens_in.attention - 1, int(config.backbone.hidden_size)
    fuses = (others > remaining_count(others, setting.keep_ratio.get(layer, 1.0))) & (setting.fusion != "none")
    return width * fuses * tokens_in.attention.double()


def _reads_first(config: MultiExitConfig, exit: int) -> bool:
    return _is_own(config, exit) or (config.pooling == "first" and config.head != "attention")


def _is_own(config: MultiExitConfig, exit: int) -> bool:
    last: int = len(config.exit_layers) - 1
    return config.own_head is not None and exit == last


def _exit(config: MultiExitConfig, exit: int, counts: Tensor) -> Tensor:
    """Return MACs of pooling, pooler, gate and last map of exit `exit` (0-based), on `counts` (N,) tokens."""
    width, tokens = int(config.backbone.hidden_size), counts.double()
    outputs: int = config.num_labels + int(config.certainty)
    own = _is_own(config, exit)
    if config.head == "attention" and not own:
        inside = 4 * tokens * NARROW**2 + 2 * tokens**2 * NARROW + NARROW**2
        pooled = tokens * NARROW if config.pooling == "mean" else 0
        return tokens * width * NARROW + inside + pooled + NARROW * outputs
    pooled = 0 * tokens if _reads_first(config, exit) else tokens * width
    pooler: bool = config.own_head != PLAIN if own else config.head in ("pooler", "shared_pooler")
    return pooled + width**2 * pooler + width * outputs


def _bypass(config: MultiExitConfig, exit: int, tokens_in: Lengths) -> Tensor:
    """Return 2 r D for each token that the exit reads; for all tokens, the selection of the block's input is added."""
    if config.bypass is None:
        return torch.zeros(len(tokens_in.attention), dtype=torch.float64)
    bypass = Bypass(**config.bypass)
    per_token = 2 * bypass.rank * int(config.backbone.hidden_size)
    if _reads_first(config, exit):
        return torch.full((len(tokens_in.attention),), float(per_token), dtype=torch.float64)
    selection = torch.zeros(len(tokens_in.attention), dtype=torch.float64)
    if config.token_exit is not None and bypass.placement == "block":
        selection = _fusion(config, TokenExit(**config.token_exit), config.exit_layers[exit], tokens_in)
    return per_token * tokens_in.feed_forward.double() + selection
