"""Token exit: tokens that the first one hardly attends to leave a layer before its feed-forward half.

Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective Early Exiting", COLING
2022, section 3.1. In layer l, a_l is the mean over heads of the first token's attention, without its own column (eq.
5); a memory keeps A_l = (1 - beta) A_{l-1} + beta a_l, A_1 = a_1 (eq. 6). A layer of the schedule keeps the first token
and the m = ceil(keep_ratio N) of the N others with the largest A_l (eq. 7); the others become one fusion token, the
sum of their states weighted by A_l (eq. 8). This happens after the attention's norm, so the feed-forward half already
runs on fewer tokens.

Differs from the authors' code, which pads to 128 tokens and selects among the padding too; here every sample selects
among its own real tokens, so neither padding nor the rest of the batch changes an answer. The code sorts the kept
tokens by score and leaves the memory in its old order; here kept tokens stay in their order and take their memory
along. The fusion token's memory is the mean over the tokens that left, as in the code; afterwards it is a token like
any other. Columns change, so this is for encoders whose positions enter by the embedding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from offramp.errors import InvalidInput
from offramp.model.backbones.base import padding_mask
from offramp.model.heads import pooling_weights_of
from offramp.model.token_exit.class_attention import CLASS_ATTENTION
from offramp.model.token_exit.config import MAX_DENOMINATOR, TokenExit
from offramp.types.carry import Carry


def remaining_count(counts: Tensor, ratio: float) -> Tensor:
    """Return how many of `counts` (N,) tokens stay, the first one not counted: ceil(ratio N), at least 1."""
    share = Fraction(ratio).limit_denominator(MAX_DENOMINATOR)
    rounded_up = (counts * share.numerator + share.denominator - 1) // share.denominator
    return torch.minimum(rounded_up.clamp(min=1), counts)


@final
@dataclass(frozen=True)
class Selection:
    """The tokens that stay and the fusion token; callable on any states of the layer's tokens.

    Attributes:
        columns: (B, T') the old column of each token.
        fused: (B, T') bool, True for a fusion token, which replaces the token of `columns`.
        weights: (B, T) of the tokens that left, 0 for the others; a fusion token is the sum of its states by these.
        mask: (B, T') 1 for a real token.
        scores: (B, T'-1) the memory of the new tokens, but the first.
    """

    columns: Tensor
    fused: Tensor
    weights: Tensor
    mask: Tensor
    scores: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """Return the selected states (B, T', D) of states (B, T, D)."""
        selected = states.gather(1, self.columns.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        if not torch.compiler.is_exporting() and not self.fused.any():
            return selected
        fusion = torch.bmm(self.weights.to(states.dtype).unsqueeze(1), states).to(states.dtype)  # (B, 1, D)
        return torch.where(self.fused.unsqueeze(-1), fusion, selected)


def select(scores: Tensor, mask: Tensor, ratio: float, fusion: str) -> Selection | None:
    """Select among each sample's own tokens; None if no sample loses one.

    Args:
        scores: (B, T-1) the memory, of all tokens but the first.
        mask: (B, T) 1 for a real token, padding on the right.
        ratio: see `TokenExit.keep_ratio`.
        fusion: one of FUSIONS.
    """
    real = mask[:, 1:].bool()  # (B, T-1)
    counts = real.sum(dim=1)  # (B,)
    keep = remaining_count(counts, ratio)
    if not torch.compiler.is_exporting() and torch.equal(keep, counts):
        return None
    # 1) the best tokens stay, and the others leave
    order = _stable_argsort(scores.masked_fill(~real, -torch.inf), descending=True)
    stays = _stable_argsort(order) < keep.unsqueeze(1)  # (B, T-1): by rank, the real ones first
    left = real & ~stays
    # 2) the new tokens: the first, those that stay in their order, the fusion token
    fuses = left.any(dim=1) & (fusion != "none")  # (B,)
    width = 1 + keep + fuses  # (B,)
    least = 2 if torch.compiler.is_exporting() else 1  # see `Carry.take`
    widest = width.max().clamp(min=least).item()
    torch._check(widest <= mask.shape[1])  # type: ignore[no-untyped-call]  # `torch.export` cannot know it
    index = torch.arange(widest, device=scores.device)  # (T',)

    # 3) old columns, weights and memory of the new tokens
    first = torch.zeros_like(real[:, :1])
    removed = torch.cat((first, ~stays), dim=1)  # (B, T)
    columns = _stable_argsort(removed.long())[:, :widest]  # (B, T'), in the old order
    fused = fuses.unsqueeze(1) & (index == 1 + keep.unsqueeze(1))  # (B, T')
    weights = torch.where(torch.cat((first, left), dim=1), _with_first(scores), 0.0)  # (B, T)
    mean = weights.sum(dim=1, keepdim=True) / left.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    memory = torch.where(fused, mean, _with_first(scores).gather(1, columns))  # (B, T')
    if fusion == "weighted_mean":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return Selection(columns, fused, weights, (index < width.unsqueeze(1)).to(mask.dtype), memory[:, 1:])


def _stable_argsort(values: Tensor, descending: bool = False) -> Tensor:
    """Return the indices (B, T) that sort values (B, T); equal ones keep their order, as they always do in ONNX."""
    stable = {} if torch.compiler.is_exporting() else {"stable": True}
    return values.argsort(dim=1, descending=descending, **stable)


def _with_first(scores: Tensor) -> Tensor:
    """Return (B, T) of scores (B, T-1), with 0 for the first token."""
    return torch.cat((scores.new_zeros(scores.shape[0], 1), scores), dim=1)


def apply_token_exit(
    setting: TokenExit, layer: int, carry: Carry, class_attention: Callable[[], Tensor], config: PreTrainedConfig
) -> tuple[Carry, Selection | None]:
    """Update the memory with a layer's attention and, if the layer is in the schedule, select tokens.

    Args:
        setting: the schedule.
        layer: its number, 1-based.
        carry: with the states after the layer's attention, (B, T, D).
        class_attention: second output of the attention function.
        config: the encoder's.

    Returns:
        The carry of the tokens that stay, and the selection; None = all stay.

    Raises:
        InvalidInput: another attention implementation was set, which does not return the row.
    """
    if not callable(class_attention):
        raise InvalidInput(
            f"token exit needs the attention implementation {CLASS_ATTENTION!r}, which the model has set"
        )
    # 1) the memory
    row = class_attention()  # (B, T-1)
    before = row if carry.token_importance is None else carry.token_importance
    scores = torch.lerp(before, row, setting.beta_at(layer))
    carry = replace(carry, token_importance=None if layer == setting.last else scores)
    # 2) the selection
    ratio = setting.keep_ratio.get(layer, 1.0)
    mask = carry.hidden.new_ones(carry.hidden.shape[:2]).long() if carry.mask is None else carry.mask
    selection = select(scores, mask, ratio, setting.fusion) if ratio < 1 else None
    if selection is None:
        return carry, None
    # 3) the carry of the tokens that stay
    importance = None if carry.token_importance is None else selection.scores
    selected = replace(carry, hidden=selection(carry.hidden), token_importance=importance)
    if carry.mask is None:  # all samples have one length, before and after
        return selected, selection
    attention = padding_mask(config, selected.hidden, selection.mask)
    pooling_weights = None if carry.pooling_weights is None else pooling_weights_of(selection.mask)
    return replace(selected, mask=selection.mask, attention=attention, pooling_weights=pooling_weights), selection
