"""The first token's attention to the others, through transformers' attention interface."""

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
"""The name, in transformers, of the attention implementation that returns the class-attention row."""


def class_attention_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return the first token's attention to each of the others, mean over heads, (B, T-1) in float32.

    Args:
        query: (B, H, T, d).
        key: (B, H, T, d).
        mask: (B, 1, T, T) bool, True = may be attended to; None = all.
        scaling: factor of the products.
    """
    products = (query[:, :, :1] @ key.transpose(2, 3)).float() * scaling  # (B, H, 1, T)
    if mask is not None:
        products = products.masked_fill(~mask[:, :, :1], torch.finfo(products.dtype).min)
    heads = products.softmax(dim=-1)[:, :, 0]  # (B, H, T)
    # a product with equal weights: of a row alone ONNX Runtime's mean over many heads adds in another order
    weights = heads.new_full((1, 1, heads.shape[1]), 1 / heads.shape[1])
    return (weights @ heads)[:, 0, 1:]


def class_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the fast kernel's output and, in place of weights, a function that computes `class_attention_row`.

    A layer whose row is not needed runs at full speed. The row is exact, costs O(T d) and has no dropout.
    """
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output, partial(class_attention_row, query, key, attention_mask, scaling)


AttentionInterface.register(CLASS_ATTENTION, class_attention)
AttentionMaskInterface.register(CLASS_ATTENTION, sdpa_mask)
