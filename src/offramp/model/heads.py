"""Exit heads: pooling of the hidden states and the classifier of each exit.

`linear` is the head in the papers PABEE, BERxiT, PCEE-BERT and BADGE (z = W h + b); `shared_pooler` is that in the code
of PABEE and PCEE-BERT (z = W tanh(W_p h + b_p) + b, one W_p for all exits); `pooler` is that of DeeBERT's, BERxiT's
and MPEE's code (a W_p for each exit). `attention` is FastBERT's (Liu et al., "FastBERT: a Self-distilling BERT with
Adaptive Inference Time", ACL 2020, section 3.1.2): a narrow self-attention over all tokens before the classifier, with
the two tanh of the authors' code.

A fine-tuned model keeps its own head as the last exit: it reads the first token, through a pooler with its family's
activation if the family has one, whatever the early exits do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from offramp.errors import InvalidInput, UnknownName

HEADS: dict[str, Callable[[int], int]] = {  # name -> number of poolers for a number of exits
    "attention": lambda exits: 0,
    "linear": lambda exits: 0,
    "pooler": lambda exits: exits,
    "shared_pooler": lambda exits: 1,
}
POOLINGS = ("first", "mean")
PLAIN = "linear"  # an own head without a pooler
NARROW, NARROW_HEADS = 128, 2  # FastBERT's width; its code has 2 heads


def pooling_weights_of(mask: Tensor) -> Tensor:
    """Return each token's weight in a mean over the real ones, (B, 1, T) in float32, for a mask (B, T)."""
    weight = mask.float()
    return (weight / weight.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(1)


def pool(hidden: Tensor, pooling_weights: Tensor | None, pooling: str) -> Tensor:
    """Pool the states of each sample to one vector, (B, D).

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
    """FastBERT's student before its last map: D -> 128, tanh, self-attention, pooling, 128 -> 128, tanh.

    Args:
        width: D of the hidden states.
        pooling: a name of POOLINGS.
        first_tanh: False = without the first tanh, as in model folders of format 1.
    """

    def __init__(self, width: int, pooling: str, first_tanh: bool = True) -> None:
        super().__init__()
        self.pooling, self.first_tanh = pooling, first_tanh
        self.down = nn.Linear(width, NARROW)
        self.attention = nn.MultiheadAttention(NARROW, NARROW_HEADS, batch_first=True)
        self.dense = nn.Linear(NARROW, NARROW)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, 128) of hidden states (B, T, D)."""
        narrow = self.down(hidden)  # (B, T, 128)
        narrow = narrow.tanh() if self.first_tanh else narrow
        padding = None if mask is None else mask == 0
        attended, _ = self.attention(narrow, narrow, narrow, key_padding_mask=padding, need_weights=False)
        pooling_weights = None if mask is None else pooling_weights_of(mask)
        features: Tensor = self.dense(pool(attended, pooling_weights, self.pooling)).tanh()
        return features


class Heads(nn.Module):
    """A classifier for each exit, with the poolers or attentions of its kind of head.

    Args:
        head: a name of HEADS.
        pooling: a name of POOLINGS.
        widths: (L,) D of the hidden states at each exit.
        num_labels: C of the logits.
        dropout: before the last linear map, in training only.
        own_head: a fine-tuned model's own head is the last exit: PLAIN, or the name of its pooler's activation, which
            the other poolers take as well; None = it has none.
        first_tanh: of "attention", see `NarrowAttention`.

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
        first_tanh: bool = True,
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
        self.attentions = nn.ModuleList(NarrowAttention(widths[exit], pooling, first_tanh) for exit in narrow)
        self.widths = [NARROW if exit in narrow else width for exit, width in enumerate(widths)]
        self.classifiers = nn.ModuleList(nn.Linear(width, num_labels) for width in self.widths)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Set the biases of the exits that start anew to `values` (C,), such as the mean of a regression's labels.

        From zero, all exits together pull the encoder towards a large constant, and its features are lost.

        Raises:
            InvalidInput: another number of values than outputs.
        """
        new = self.classifiers if self.own_head is None else list(self.classifiers)[:-1]
        for classifier in new:
            bias = classifier.get_parameter("bias")
            if bias.shape != values.shape:
                raise InvalidInput(f"labels of {len(values)} numbers a row do not fit the model's {len(bias)} outputs")
            bias.copy_(values)

    def reads_first_token(self, exit: int) -> bool:
        """Return True if exit `exit` (0-based) reads the first token alone."""
        own = self.own_head is not None and exit == self.last
        return own or (self.pooling == "first" and not self.attentions)

    def features(self, exit: int, hidden: Tensor, mask: Tensor | None, pooling_weights: Tensor | None = None) -> Tensor:
        """Return the input of the last map of exit `exit` (0-based), (B, W), from hidden states (B, T, D).

        Args:
            exit: its number.
            hidden: the states that the exit reads.
            mask: (B, T) 1 for a real token; None = all are real.
            pooling_weights: `pooling_weights_of` the mask, if already computed.
        """
        if pooling_weights is None and mask is not None:
            pooling_weights = pooling_weights_of(mask)
        if exit < len(self.attentions):
            features = self.attentions[exit](hidden, mask)
        else:
            features = pool(hidden, pooling_weights, "first" if self.reads_first_token(exit) else self.pooling)
        if exit in self.pooler_of:
            features = self.activation(self.poolers[self.pooler_of[exit]](features))
        dropped: Tensor = self.dropout(features)
        return dropped

    def classify(self, exit: int, features: Tensor) -> Tensor:
        """Return logits (B, C) in float32 of exit `exit` (0-based) from its features, (B, W)."""
        logits: Tensor = self.classifiers[exit](features)
        return logits.float()

    def forward(self, exit: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return logits (B, C) in float32 of exit `exit` (0-based) from hidden states (B, T, D)."""
        return self.classify(exit, self.features(exit, hidden, mask))
