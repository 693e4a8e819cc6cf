"""Exit heads: what an exit reads of the hidden states, and how it turns that into logits.

`linear` is the head that PABEE, BERxiT, PCEE-BERT and BADGE write (z = W h + b); `shared_pooler` is what the code of
PABEE and PCEE-BERT has (z = W tanh(W_p h + b_p) + b, one W_p for all exits); `pooler` is that of DeeBERT's, BERxiT's
and MPEE's code (a W_p for each exit). `attention` is FastBERT's (Liu et al., "FastBERT: a Self-distilling BERT with
Adaptive Inference Time", ACL 2020, section 3.1.2): a narrow self-attention over all tokens before the classifier.

A model that was fine-tuned already keeps its own head as the last exit: it reads the first token, through a pooler with
its family's activation where the family has one, whatever the early exits do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from offramp.errors import InvalidInput, UnknownName

HEADS: dict[str, Callable[[int], int]] = {  # name -> how many poolers for this many exits
    "attention": lambda exits: 0,
    "linear": lambda exits: 0,
    "pooler": lambda exits: exits,
    "shared_pooler": lambda exits: 1,
}
POOLINGS = ("first", "mean")
PLAIN = "linear"  # an own head without a pooler
NARROW, NARROW_HEADS = 128, 2  # FastBERT's width; its code has 2 heads


def pooling_weights_of(mask: Tensor) -> Tensor:
    """How much each token counts in a mean over the real ones, (B, 1, T) in float32, of a mask (B, T)."""
    weight = mask.float()
    return (weight / weight.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(1)


def pool(hidden: Tensor, pooling_weights: Tensor | None, pooling: str) -> Tensor:
    """One vector (B, D) for each sample.

    Args:
        hidden: (B, T, D).
        pooling_weights: (B, 1, T), see `pooling_weights_of`; None = all tokens are real.
        pooling: "first" = the first token's state, "mean" = the mean over the real tokens.
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling_weights is None:
        return hidden.mean(dim=1)
    return torch.bmm(pooling_weights.to(hidden.dtype), hidden).squeeze(1)


class NarrowAttention(nn.Module):
    """FastBERT's student before its last map: D -> 128, self-attention, pooling, 128 -> 128, tanh."""

    def __init__(self, width: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.down = nn.Linear(width, NARROW)
        self.attention = nn.MultiheadAttention(NARROW, NARROW_HEADS, batch_first=True)
        self.dense = nn.Linear(NARROW, NARROW)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 128) of hidden states (B, T, D)."""
        narrow = self.down(hidden)  # (B, T, 128)
        padding = None if mask is None else mask == 0
        seen, _ = self.attention(narrow, narrow, narrow, key_padding_mask=padding, need_weights=False)
        pooling_weights = None if mask is None else pooling_weights_of(mask)
        read: Tensor = self.dense(pool(seen, pooling_weights, self.pooling)).tanh()
        return read


class Heads(nn.Module):
    """A classifier for each exit, with what its kind of head has before it.

    Args:
        head: a name of HEADS.
        pooling: a name of POOLINGS.
        widths: (L,) D of the hidden states at each exit.
        num_labels: C of the logits.
        dropout: before the last linear map, in training only.
        own_head: a fine-tuned model's own head is the last exit: PLAIN, or the name of its pooler's activation, which
            the other poolers take as well; None = it has none.

    Raises:
        UnknownName: no such head or pooling.
        InvalidInput: a pooler shared by exits of several widths.
    """

    def __init__(
        self,
        head: str,
        pooling: str,
        widths: Sequence[int],
        num_labels: int,
        dropout: float,
        own_head: str | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UnknownName(f"head must be one of {', '.join(HEADS)}; got {head!r}")
        if pooling not in POOLINGS:
            raise UnknownName(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        if head == "shared_pooler" and len(set(widths)) > 1:
            raise InvalidInput(f"exits of the widths {sorted(set(widths))} cannot share a pooler; use head='pooler'")
        exits, last = len(widths), len(widths) - 1
        self.pooling, self.last, self.own_head = pooling, last, own_head
        poolers = HEADS[head](exits)
        self.pooler_of: dict[int, int] = {exit: exit % poolers for exit in range(exits)} if poolers else {}
        if own_head == PLAIN:
            self.pooler_of.pop(last, None)
        elif own_head is not None and not poolers:
            self.pooler_of[last] = 0
        width_of = {pooler: widths[exit] for exit, pooler in self.pooler_of.items()}
        self.poolers = nn.ModuleList(nn.Linear(width_of[pooler], width_of[pooler]) for pooler in sorted(width_of))
        self.activation = ACT2FN["tanh" if own_head in (None, PLAIN) else own_head]
        narrow = range(exits if own_head is None else last) if head == "attention" else range(0)
        self.attentions = nn.ModuleList(NarrowAttention(widths[exit], pooling) for exit in narrow)
        self.widths = [NARROW if exit in narrow else width for exit, width in enumerate(widths)]
        self.classifiers = nn.ModuleList(nn.Linear(width, num_labels) for width in self.widths)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Let every exit that starts anew answer `values` (C,), such as the mean of a regression's labels, at first.

        Started at zero, all exits together pull the encoder towards a large constant, and its features go.
        """
        started = self.classifiers if self.own_head is None else list(self.classifiers)[:-1]
        for classifier in started:
            classifier.get_parameter("bias").copy_(values)

    def reads_first_token(self, exit: int) -> bool:
        """Whether exit `exit` (0-based) looks at nothing but the first token."""
        own = self.own_head is not None and exit == self.last
        return own or (self.pooling == "first" and not self.attentions)

    def read(self, exit: int, hidden: Tensor, mask: Tensor | None, pooling_weights: Tensor | None = None) -> Tensor:
        """What the last map of exit `exit` (0-based) reads, (B, W), of hidden states (B, T, D).

        Args:
            exit: its number.
            hidden: what the exit sees.
            mask: (B, T) 1 for a real token; None = all are real.
            pooling_weights: `pooling_weights_of` of the mask, if they are worked out already.
        """
        if pooling_weights is None and mask is not None:
            pooling_weights = pooling_weights_of(mask)
        if exit < len(self.attentions):
            read = self.attentions[exit](hidden, mask)
        else:
            read = pool(hidden, pooling_weights, "first" if self.reads_first_token(exit) else self.pooling)
        if exit in self.pooler_of:
            read = self.activation(self.poolers[self.pooler_of[exit]](read))
        dropped: Tensor = self.dropout(read)
        return dropped

    def classify(self, exit: int, read: Tensor) -> Tensor:
        """Logits (B, C) in float32 of exit `exit` (0-based) from what it read, (B, W)."""
        logits: Tensor = self.classifiers[exit](read)
        return logits.float()

    def forward(self, exit: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (B, C) in float32 of exit `exit` (0-based) from hidden states (B, T, D)."""
        return self.classify(exit, self.read(exit, hidden, mask))
