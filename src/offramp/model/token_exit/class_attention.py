"""How much each token is attended to by the first one, through transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CLASS_ATTENTION = "offramp_class_attention"
"""The attention implementation that tells the class-attention row, as transformers knows it."""


def class_attention_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """How much the first token looks at each of the others, mean over heads, (B, T-1) in float32.

    Args:
        query: (B, H, T, d).
        key: (B, H, T, d).
        mask: (B, 1, T, T) bool, True = may be looked at; None = all.
        scaling: of the products.
    """
    looks = (query[:, :, :1] @ key.transpose(2, 3)).float() * scaling  # (B, H, 1, T)
    if mask is not None:
        looks = looks.masked_fill(~mask[:, :, :1], torch.finfo(looks.dtype).min)
    return looks.softmax(dim=-1).mean(dim=1)[:, 0, 1:]


def class_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The fast kernel's output; in place of weights, `class_row` of these very tensors, worked out when it is called.

    So a layer whose row nobody wants runs at full speed. The row is exact, costs O(T d) and knows no dropout.
    """
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output, partial(class_attention_row, query, key, attention_mask, scaling)


AttentionInterface.register(CLASS_ATTENTION, class_attention)
AttentionMaskInterface.register(CLASS_ATTENTION, sdpa_mask)
