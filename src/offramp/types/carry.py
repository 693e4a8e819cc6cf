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
        pooling_weights: (B, 1, T) how much each token counts in a mean over the real ones; None where nobody asks.
        attention: what the blocks take as attention mask, (B, 1, 1 or T, T) or (B, T); None = everybody
            sees everybody.
        exit_input: (B, R, D) what the exit behind the last block reads in place of `hidden`; None = `hidden`.
        memory_logits: (B, C) the logits that a model with exit memory has come to; None before the first exit.
        token_importance: (B, T-1) how much each token but the first was looked at, where tokens leave (see
            `offramp.model.token_exit.selection`); None = nobody asked yet, or any more.
        pair_bias: (1 or B, H, T, T) what the blocks need for each pair of tokens besides; 1 = all samples share it.
        position_embeddings: (1 or B, T, P) what the blocks need for each token's place; 1 = all samples share it.
    """

    hidden: Tensor
    mask: Tensor | None = None
    attention: Tensor | None = None
    pooling_weights: Tensor | None = None
    exit_input: Tensor | None = None
    memory_logits: Tensor | None = None
    token_importance: Tensor | None = None
    pair_bias: Tensor | None = None
    position_embeddings: Tensor | None = None

    def take(self, rows: Tensor) -> Carry:
        """The given rows alone, (K,), cut to the columns that some of them still use; their exit has read."""
        memory_logits, scores = (
            None if each is None else _rows(each, rows) for each in (self.memory_logits, self.token_importance)
        )
        if self.mask is None:
            return Carry(_rows(self.hidden, rows), memory_logits=memory_logits, token_importance=scores)
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
        pair_bias, position_embeddings = (
            each if each is None or len(each) < len(self.mask) else _rows(each, rows)
            for each in (self.pair_bias, self.position_embeddings)
        )
        return Carry(
            _rows(self.hidden, rows)[:, :used],  # rows first: those who leave are not copied
            mask[:, :used],
            attention,
            None if self.pooling_weights is None else _rows(self.pooling_weights, rows)[..., :used],
            memory_logits=memory_logits,
            token_importance=scores,
            pair_bias=None if pair_bias is None else pair_bias[..., :used, :used],
            position_embeddings=None if position_embeddings is None else position_embeddings[:, :used],
        )


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows)  # in ONNX one `Gather`; indexing is slower there
