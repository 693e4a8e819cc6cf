"""Similarity of a text's tokens, layer by layer (MPEE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.data.batching import collate, length_sorted
from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel


@torch.inference_mode()
def token_similarity(model: MultiExitModel, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> Tensor:
    """Return the mean cosine between two tokens of a text, after each exit's block, (L,) (MPEE, figure 1).

    Every text has the same weight; texts of one token are skipped.

    Args:
        model: its training mode is restored.
        rows: tokenized, as `offramp.record` takes them.
        batch_size: rows at once; it does not change the result.

    Raises:
        InvalidInput: no text has two tokens.
    """
    was_training = model.training
    model.eval()
    total, texts = torch.zeros(2, len(model.layers), dtype=torch.float64)
    for numbers in length_sorted(rows, batch_size):
        inputs = collate([rows[number] for number in numbers], model.config.pad_token_id)
        carry = model.embed({name: value.to(model.device) for name, value in inputs.items() if name != "labels"})
        for exit in range(len(model.layers)):
            carry = model.block(exit, carry)
            mask = carry.mask if carry.mask is not None else torch.ones(carry.hidden.shape[:2], device=model.device)
            similarity = _similarity(carry.hidden, mask)
            total[exit] += similarity.nansum().item()
            texts[exit] += similarity.isfinite().sum().item()
    model.train(was_training)
    if not texts[0]:
        raise InvalidInput("no text has two tokens to be compared")
    return torch.div(total, texts)


def _similarity(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cosine (B,) over all pairs of real tokens of hidden (B, T, D); NaN where there is one token."""
    real = mask.to(hidden.dtype).unsqueeze(-1)
    unit = torch.nn.functional.normalize(hidden, dim=-1) * real
    count = real.sum(dim=(1, 2))
    together: Tensor = unit.sum(dim=1).square().sum(dim=-1)  # every token with every token, itself too
    mean: Tensor = (together - count) / (count * (count - 1))
    return torch.where(count > 1, mean, math.nan).double().cpu()
