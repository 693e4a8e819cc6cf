"""Exit heads: what an exit reads of the hidden states, and how it turns that into logits.

`linear` is the head that PABEE, BERxiT, PCEE-BERT and BADGE write (z = W h + b); `shared_pooler` is what the code of
PABEE and PCEE-BERT has (z = W tanh(W_p h + b_p) + b, one W_p for all exits); `pooler` is that of DeeBERT's, BERxiT's
and MPEE's code (a W_p for each exit).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from offramp.errors import UnknownName

HEADS: dict[str, Callable[[int], int]] = {  # name -> how many poolers for this many exits
    "linear": lambda exits: 0,
    "pooler": lambda exits: exits,
    "shared_pooler": lambda exits: 1,
}
POOLINGS = ("first", "mean")


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector (B, D) for each sample.

    Args:
        hidden: (B, T, D).
        mask: (B, T), 1 for a real token; None = all are real.
        pooling: "first" = the first token's state, "mean" = the mean over the real tokens.
    """
    if pooling == "first":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1)
    weight = mask.to(hidden.dtype)  # (B, T)
    return torch.bmm(weight.unsqueeze(1), hidden).squeeze(1) / weight.sum(dim=1, keepdim=True).clamp(min=1)


class Heads(nn.Module):
    """A classifier for each exit, with the poolers that its kind of head has.

    Args:
        head: a name of HEADS.
        pooling: a name of POOLINGS.
        exits: how many.
        width: D of the hidden states.
        num_labels: C of the logits.
        dropout: before the last linear map, in training only.

    Raises:
        UnknownName: no such head or pooling.
    """

    def __init__(self, head: str, pooling: str, exits: int, width: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        if head not in HEADS:
            raise UnknownName(f"head must be one of {', '.join(HEADS)}; got {head!r}")
        if pooling not in POOLINGS:
            raise UnknownName(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        self.pooling = pooling
        self.poolers = nn.ModuleList(nn.Linear(width, width) for _ in range(HEADS[head](exits)))
        self.classifiers = nn.ModuleList(nn.Linear(width, num_labels) for _ in range(exits))
        self.dropout = nn.Dropout(dropout)

    def forward(self, exit: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (B, C) in float32 of exit `exit` (0-based) from hidden states (B, T, D)."""
        read = pool(hidden, mask, self.pooling)
        if self.poolers:
            read = self.poolers[exit % len(self.poolers)](read).tanh()
        logits: Tensor = self.classifiers[exit](self.dropout(read))
        return logits.float()
