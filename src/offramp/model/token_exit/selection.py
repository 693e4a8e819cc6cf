"""Token exit: tokens that the first one hardly looks at leave a layer before its feed-forward half.

Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective Early Exiting", COLING
2022, section 3.1. In layer l, a_l is the mean over heads of the first token's attention, without its own column (eq.
5); a memory keeps A_l = (1 - beta) A_{l-1} + beta a_l, A_1 = a_1 (eq. 6). A layer of the schedule keeps the first token
and the m = ceil(keep_ratio N) of the N others with the largest A_l (eq. 7); those who leave become one fusion token,
the sum of their states weighted by A_l (eq. 8). That is done behind the attention's norm, so the feed-forward half runs
on fewer tokens already.

Differs from the authors' code, which pads to 128 tokens and selects among the padding too; here every sample selects
among its own real tokens, so neither padding nor company changes an answer. The code sorts the kept tokens by score and
leaves the memory in its old order; here kept tokens stay in their order and take their memory along. The fusion token's
memory is the mean of theirs who left, as in the code, and from then on it is a token like any other. Tokens must not
move against each other, so this is for encoders whose positions are in the embedding.
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
from offramp.model.token_exit.config import FINEST, TokenExit
from offramp.types.carry import Carry


def kept_count(counts: Tensor, ratio: float) -> Tensor:
    """How many of `counts` (N,) tokens stay, the first one not counted: ceil, at least 1."""
    share = Fraction(ratio).limit_denominator(FINEST)
    asked = (counts * share.numerator + share.denominator - 1) // share.denominator
    return torch.minimum(asked.clamp(min=1), counts)


@final
@dataclass(frozen=True)
class Selection:
    """Who stays, and what stands for those who left; callable on any states of these tokens.

    Attributes:
        columns: (B, T') where each token comes from.
        fused: (B, T') bool, where a fusion token stands in place of the column named.
        weights: (B, T) of the tokens that left, 0 for the others; a fusion token is the sum of its states by these.
        mask: (B, T') 1 for a real token.
        scores: (B, T'-1) the memory of the tokens that are there now, but the first.
    """

    columns: Tensor
    fused: Tensor
    weights: Tensor
    mask: Tensor
    scores: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """(B, T', D) of states (B, T, D)."""
        stay = states.gather(1, self.columns.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        if not torch.compiler.is_exporting() and not self.fused.any():
            return stay
        fusion = torch.bmm(self.weights.to(states.dtype).unsqueeze(1), states).to(states.dtype)  # (B, 1, D)
        return torch.where(self.fused.unsqueeze(-1), fusion, stay)


def select(scores: Tensor, mask: Tensor, ratio: float, fusion: str) -> Selection | None:
    """Each sample's choice among its own tokens; None where nobody has one to lose.

    Args:
        scores: (B, T-1) the memory, of all tokens but the first.
        mask: (B, T) 1 for a real token, padding on the right.
        ratio: see `TokenExit.keep_ratio`.
        fusion: one of FUSIONS.
    """
    real = mask[:, 1:].bool()  # (B, T-1)
    counts = real.sum(dim=1)  # (B,)
    keep = kept_count(counts, ratio)
    if not torch.compiler.is_exporting() and torch.equal(keep, counts):
        return None
    order = _in_order(scores.masked_fill(~real, -torch.inf), descending=True)
    stays = _in_order(order) < keep.unsqueeze(1)  # (B, T-1): by rank, the real ones first
    left = real & ~stays
    fuses = left.any(dim=1) & (fusion != "none")  # (B,)
    width = 1 + keep + fuses  # (B,)
    least = 2 if torch.compiler.is_exporting() else 1  # see `Carry.take`
    widest = width.max().clamp(min=least).item()
    torch._check(widest <= mask.shape[1])  # type: ignore[no-untyped-call]  # `torch.export` cannot know it
    place = torch.arange(widest, device=scores.device)  # (T',)

    first = torch.zeros_like(real[:, :1])
    gone = torch.cat((first, ~stays), dim=1)  # (B, T)
    columns = _in_order(gone.long())[:, :widest]  # (B, T'), those who stay in order
    fused = fuses.unsqueeze(1) & (place == 1 + keep.unsqueeze(1))  # (B, T')
    weights = torch.where(torch.cat((first, left), dim=1), _with_first(scores), 0.0)  # (B, T)
    mean = weights.sum(dim=1, keepdim=True) / left.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    after = torch.where(fused, mean, _with_first(scores).gather(1, columns))  # (B, T')
    if fusion == "weighted_mean":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return Selection(columns, fused, weights, (place < width.unsqueeze(1)).to(mask.dtype), after[:, 1:])


def _in_order(values: Tensor, descending: bool = False) -> Tensor:
    """(B, T) places of values (B, T), sorted; equal ones stay in order, as they always do in ONNX."""
    stable = {} if torch.compiler.is_exporting() else {"stable": True}
    return values.argsort(dim=1, descending=descending, **stable)


def _with_first(scores: Tensor) -> Tensor:
    """(B, T) of scores (B, T-1): the first token has none."""
    return torch.cat((scores.new_zeros(len(scores), 1), scores), dim=1)


def apply_token_exit(
    setting: TokenExit, layer: int, carry: Carry, row: Callable[[], Tensor], config: PreTrainedConfig
) -> tuple[Carry, Selection | None]:
    """What a layer does between its halves: remember its attention and, if it is in the schedule, select.

    Args:
        setting: who leaves where.
        layer: its number, 1-based.
        carry: with the states behind its attention, (B, T, D).
        row: what its attention function told.
        config: the encoder's.

    Returns:
        The carry of those who stay, and the selection; None = everybody stays.

    Raises:
        InvalidInput: another attention implementation was set, which does not tell the row.
    """
    if not callable(row):
        raise InvalidInput(
            f"token exit needs the attention implementation {CLASS_ATTENTION!r}, which the model has set"
        )
    looked_at = row()  # (B, T-1)
    before = looked_at if carry.token_importance is None else carry.token_importance
    scores = torch.lerp(before, looked_at, setting.beta_at(layer))
    after = replace(carry, token_importance=None if layer == setting.last else scores)
    ratio = setting.keep_ratio.get(layer, 1.0)
    mask = carry.hidden.new_ones(carry.hidden.shape[:2]).long() if carry.mask is None else carry.mask
    chosen = select(scores, mask, ratio, setting.fusion) if ratio < 1 else None
    if chosen is None:
        return after, None
    hidden = chosen(carry.hidden)
    if after.token_importance is not None:
        after = replace(after, token_importance=chosen.scores)
    if carry.mask is None:  # all samples are of one length, and stay so
        return replace(after, hidden=hidden), chosen
    attention = padding_mask(config, hidden, chosen.mask)
    pooling_weights = None if carry.pooling_weights is None else pooling_weights_of(chosen.mask)
    return replace(after, hidden=hidden, mask=chosen.mask, attention=attention, pooling_weights=pooling_weights), chosen
