"""What goes from block to block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Carry:
    """What goes from block to block.

    Attributes:
        hidden: (B, T, D) hidden states; of a convolutional backbone (B, D, H, W).
        mask: (B, T) 1 for a real token, 0 for padding; None where there is no such thing as padding.
        shares: (B, 1, T) how much each token counts in a mean over the real ones; None where nobody asks.
        attention: what the blocks take as attention mask, (B, 1, 1 or T, T) or (B, T); None = everybody
            sees everybody.
        read: (B, R, D) what the exit behind the last block reads in place of `hidden`; None = `hidden`.
        recalled: (B, C) the logits that a model with exit memory has come to; None before the first exit.
        token_scores: (B, T-1) how much each token but the first was looked at, where tokens leave (see
            `offramp.model.token_exit.selection`); None = nobody asked yet, or any more.
        pairs: (1 or B, H, T, T) what the blocks need for each pair of tokens besides; 1 = all samples share it.
        places: (1 or B, T, P) what the blocks need for each token's place; 1 = all samples share it.
    """

    hidden: Tensor
    mask: Tensor | None = None
    attention: Tensor | None = None
    shares: Tensor | None = None
    read: Tensor | None = None
    recalled: Tensor | None = None
    token_scores: Tensor | None = None
    pairs: Tensor | None = None
    places: Tensor | None = None

    def take(self, rows: Tensor) -> Carry:
        """The given rows alone, (K,), cut to the columns that some of them still use; their exit has read."""
        recalled, scores = (None if each is None else _rows(each, rows) for each in (self.recalled, self.token_scores))
        if self.mask is None:
            return Carry(_rows(self.hidden, rows), recalled=recalled, token_scores=scores)
        mask = _rows(self.mask, rows)  # (K, T)
        least = 2 if torch.compiler.is_exporting() else 1  # ONNX Runtime fails where none but the first is left
        used = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).max().clamp(min=least).item()
        torch._check(used <= mask.shape[1])  # type: ignore[no-untyped-call]  # `torch.export` cannot know it
        attention = self.attention
        if attention is not None:
            attention = _rows(attention, rows)[..., :used]
            if attention.dim() == 4 and attention.shape[-2] > 1:
                attention = attention[..., :used, :]
        scores = None if scores is None else scores[:, : used - 1]
        pairs, places = (
            each if each is None or len(each) < len(self.mask) else _rows(each, rows)
            for each in (self.pairs, self.places)
        )
        return Carry(
            _rows(self.hidden, rows)[:, :used],  # rows first: those who leave are not copied
            mask[:, :used],
            attention,
            None if self.shares is None else _rows(self.shares, rows)[..., :used],
            recalled=recalled,
            token_scores=scores,
            pairs=None if pairs is None else pairs[..., :used, :used],
            places=None if places is None else places[:, :used],
        )


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows)  # in ONNX one `Gather`; indexing is slower there
