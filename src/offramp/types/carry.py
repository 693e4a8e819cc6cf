"""The values that go from block to block, cut and joined by rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InvalidInput

EXIT_FIELDS = ("exit_input", "exit_features")
"""The fields that the exit after a block reads, and no block."""


@dataclass(frozen=True)
class Carry:
    """The values that go from block to block.

    Attributes:
        hidden: (B, T, D) hidden states; of a convolutional backbone (B, D, H, W).
        mask: (B, T) 1 for a real token, 0 for padding; None for images, which have none.
        attention: the blocks' attention mask, (B, 1, 1 or T, T) or (B, T); None = every token attends to every token.
        local_attention: (B, 1, T, T) the mask of blocks that attend within a window; None = `attention`.
        pooling_weights: (B, 1, T) weight of each token in a mean over the real ones; None where no exit takes a mean.
        exit_input: (B, R, D) the input of the exit after the last block, in place of `hidden`; None = `hidden`.
        exit_features: (B, W) the input of that exit's last map, where the block computed it already.
        memory_logits: (B, C) the logits of a model with exit memory so far; None before the first exit.
        token_importance: (B, T-1) attention to each token but the first, where tokens exit (see
            `offramp.model.token_exit.selection`); None = not yet, or no longer, needed.
        pair_bias: (1, 1 or H, T, T) a number for each pair of positions, the same for all samples.
        position_embeddings: (1 or B, T, P) numbers for each position; 1 = the same for all samples.
    """

    hidden: Tensor
    mask: Tensor | None = None
    attention: Tensor | None = None
    local_attention: Tensor | None = None
    pooling_weights: Tensor | None = None
    exit_input: Tensor | None = None
    exit_features: Tensor | None = None
    memory_logits: Tensor | None = None
    token_importance: Tensor | None = None
    pair_bias: Tensor | None = None
    position_embeddings: Tensor | None = None

    def for_next_block(self) -> Carry:
        """Return the values without those that only the exit before reads."""
        return replace(self, exit_input=None, exit_features=None)

    def take(self, rows: Tensor) -> Carry:
        """Return the given rows, (K,), cut to the columns that some of them use.

        What only the exit before reads is dropped.
        """
        positions = self.position_embeddings
        own_positions = positions is not None and positions.shape[0] == self.hidden.shape[0]
        taken = Carry(
            self.hidden.index_select(0, rows),  # rows first: those that leave are not copied
            _take_rows(self.mask, rows),
            _take_rows(self.attention, rows),
            _take_rows(self.local_attention, rows),
            _take_rows(self.pooling_weights, rows),
            memory_logits=_take_rows(self.memory_logits, rows),
            token_importance=_take_rows(self.token_importance, rows),
            pair_bias=self.pair_bias,
            position_embeddings=_take_rows(positions, rows) if own_positions else positions,
        )
        return taken if taken.mask is None else taken._cut_columns(_count_used_columns(taken.mask))

    def concat(self, other: Carry) -> Carry:
        """Return the rows of both, the shorter ones padded.

        What only the exit before reads is dropped.

        A missing attention mask is written where the other batch has one, or where the lengths differ. For flash
        attention there is none to write: it joins batches of one length, or with padding.

        Raises:
            InvalidInput: states that do not fit together, such as images of two sizes.
        """
        if self.mask is None or other.mask is None:
            if self.mask is not other.mask or self.hidden.shape[1:] != other.hidden.shape[1:]:
                raise InvalidInput(
                    f"states of shape {tuple(self.hidden.shape)} and {tuple(other.hidden.shape)} make no batch"
                )
            one, two = self, other
        else:
            one, two = self._pad_for(other), other._pad_for(self)
        return Carry(
            torch.cat((one.hidden, two.hidden)),
            _join(one.mask, two.mask),
            _join(one.attention, two.attention),
            _join(one.local_attention, two.local_attention),
            _join(one.pooling_weights, two.pooling_weights),
            memory_logits=_join(one.memory_logits, two.memory_logits),
            token_importance=_join(one.token_importance, two.token_importance),
            pair_bias=_pick_longer(one.pair_bias, two.pair_bias),
            position_embeddings=_join(one.position_embeddings, two.position_embeddings),
        )

    def _cut_columns(self, length: int) -> Carry:
        """Return the first `length` columns; all after them are padding."""

        def corner(mask: Tensor | None) -> Tensor | None:
            if mask is None or mask.dim() == 2 or mask.shape[-2] == 1:
                return None if mask is None else mask[..., :length]
            return mask[..., :length, :length]

        mask, weights, importance = self.mask, self.pooling_weights, self.token_importance
        bias, positions = self.pair_bias, self.position_embeddings
        return replace(
            self,
            hidden=self.hidden[:, :length],
            mask=None if mask is None else mask[:, :length],
            attention=corner(self.attention),
            local_attention=corner(self.local_attention),
            pooling_weights=None if weights is None else weights[..., :length],
            token_importance=None if importance is None else importance[:, : length - 1],
            pair_bias=None if bias is None else bias[..., :length, :length],
            position_embeddings=None if positions is None else positions[:, :length],
        )

    def _pad_for(self, other: Carry) -> Carry:
        """Pad the rows to the longer of the two batches, and add the masks that only the other has."""
        extra = max(0, other.hidden.shape[1] - self.hidden.shape[1])
        attention, local = self.attention, self.local_attention
        if attention is None and (other.attention is not None or self.hidden.shape[1] != other.hidden.shape[1]):
            attention = self._attend_to_all(other.attention)
        if local is None and other.local_attention is not None:
            local = attention
        importance, positions = self.token_importance, self.position_embeddings
        return replace(
            self,
            hidden=F.pad(self.hidden, (0, 0, 0, extra)),
            mask=None if self.mask is None else F.pad(self.mask, (0, extra)),
            attention=None if attention is None else _pad_mask(attention, extra),
            local_attention=None if local is None else _pad_mask(local, extra),
            pooling_weights=None if self.pooling_weights is None else F.pad(self.pooling_weights, (0, extra)),
            token_importance=None if importance is None else F.pad(importance, (0, extra)),
            position_embeddings=None
            if positions is None
            else F.pad(positions, (0, 0, 0, extra)).expand(len(self.hidden), -1, -1),
        )

    def _attend_to_all(self, like: Tensor | None) -> Tensor:
        """Return an attention mask under which every token attends to every token, of the kind of `like`."""
        rows, length = self.hidden.shape[:2]
        if like is None:
            return self.hidden.new_zeros(rows, 1, 1, length)  # what scaled dot products and eager attention both take
        allowed = 0 if like.is_floating_point() else 1
        return like.new_full((rows, length) if like.dim() == 2 else (rows, 1, 1, length), allowed)


def take_inputs(inputs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return the inputs of the given rows, (K,), cut to the columns that some of them use; without a mask to none.

    Args:
        inputs: of an encoder, batch first; all that goes with `attention_mask` (B, T) has its T columns.
        rows: numbers of rows.
    """
    taken = {name: value.index_select(0, rows) for name, value in inputs.items()}
    mask = taken.get("attention_mask")
    if mask is None:
        return taken
    length = _count_used_columns(mask != 0)
    return {name: value[:, :length] for name, value in taken.items()}


def _take_rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows)  # in ONNX one `Gather`; indexing is slower there


def _count_used_columns(mask: Tensor) -> int:
    """Return the number of columns of a mask (B, T) that some row uses."""
    least = 2 if torch.compiler.is_exporting() else 1  # ONNX Runtime fails where none but the first is left
    count: Any = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).max().clamp(min=least).item()
    torch._check(count <= mask.shape[1])  # type: ignore[no-untyped-call]  # `torch.export` cannot know it
    used: int = count  # not `int(count)`, which `torch.export` cannot trace where a mask has a row for each token
    return used


def _pad_mask(mask: Tensor, extra: int) -> Tensor:
    """Add `extra` columns to an attention mask, to which no token attends; new rows attend as the first one does."""
    hidden = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
    wider = F.pad(mask, (0, extra), value=hidden)
    if mask.dim() == 2 or mask.shape[-2] == 1:
        return wider
    return torch.cat((wider, wider[:, :, :1].expand(-1, -1, extra, -1)), dim=2)


def _join(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Join two batches; if only one of two attention masks has a row for each token, the other one gets them.

    Where only one of two masks is added to the scores, the other one, which says what is attended to, is made so.
    """
    if one is None or other is None:
        return None
    if one.is_floating_point() != other.is_floating_point():
        one, other = (_as_added(mask, like) for mask, like in ((one, other), (other, one)))
    if one.dim() == 4 and one.shape[2] != other.shape[2]:
        height = max(one.shape[2], other.shape[2])
        one, other = (mask.expand(-1, -1, height, -1) for mask in (one, other))
    return torch.cat((one, other))


def _as_added(mask: Tensor, like: Tensor) -> Tensor:
    """Return an attention mask as numbers that are added to the scores, in the dtype of `like` where it is another."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask == 0, torch.finfo(like.dtype).min)


def _pick_longer(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the bias (1, H, T, T) for more positions; on the shared positions both are the same."""
    return one if one is None or other is None or one.shape[-1] >= other.shape[-1] else other
