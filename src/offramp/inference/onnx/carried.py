"""Rows between two levels of a graph, in numpy: cut, joined and padded as `Carry` does it in torch.

A batch is a mapping of fields: those of `Carry` and of the policy's memory, or the inputs of the embedding. All have
the rows first, but for what all rows share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from offramp.data.padding import Array

Fields = Mapping[str, Array]

MASKS = ("mask", "attention_mask")
BY_TOKEN = ("hidden", "mask", "input_ids", "attention_mask", "token_type_ids")
"""(B, T, ...)"""
PAIRS = ("attention", "local_attention")
"""(B, T), (B, 1, 1, T) or (B, 1, T, T)"""
SHARED = ("pair_bias", "position_embeddings")
"""(1, H, T, T) and (1, T, P): a number for each pair of positions, or for each position, the same for all rows."""
LEAST = 2
"""Columns of a batch: some branches of a graph need a second token."""


def count_tokens(fields: Fields) -> Array:
    """Return the number of real tokens of each row, (B,) int64; 1 for an image."""
    mask = _mask(fields)
    if mask is None:
        return np.ones(len(next(iter(fields.values()))), np.int64)
    tokens: Array = mask.sum(axis=1, dtype=np.int64)
    return tokens


def take(fields: Fields, positions: Array) -> dict[str, Array]:
    """Return the rows at some positions, (K,), cut to the columns that some of them use."""
    mask = _mask(fields)
    length = None
    if mask is not None:
        used = np.flatnonzero(mask[positions].any(axis=0))
        length = min(max(LEAST, int(used[-1]) + 1 if len(used) else 0), mask.shape[1])
    taken = {}
    for name, value in fields.items():
        columns = value if length is None else _cut(name, value, length)
        taken[name] = columns if name in SHARED else columns[positions]
    return taken


def merge(batches: Sequence[Fields]) -> dict[str, Array]:
    """Return the rows of batches with the same fields, one after the other, the shorter ones padded."""
    merged = {}
    for name, value in max(batches, key=_columns).items():
        values = [fields[name] for fields in batches]
        if name in SHARED:
            merged[name] = value
        elif all(other.shape[1:] == value.shape[1:] for other in values):
            merged[name] = np.concatenate(values)
        else:
            merged[name] = _concat_padded(name, values, value.shape[1:])
    return merged


def _mask(fields: Fields) -> Array | None:
    """Return the mask of a batch, (B, T), 0 for padding; images have none."""
    return next((fields[name] for name in MASKS if name in fields), None)


def _columns(fields: Fields) -> int:
    """Return the number of tokens of the longest row, with padding; 0 for images."""
    mask = _mask(fields)
    return 0 if mask is None else int(mask.shape[1])


def _cut(name: str, value: Array, length: int) -> Array:
    """Return a field's first `length` columns; those after them are padding in all rows."""
    if name in BY_TOKEN or name == "position_embeddings":
        return value[:, :length]
    if name == "pair_bias" or (name in PAIRS and value.ndim == 4 and value.shape[2] > 1):
        return value[..., :length, :length]
    if name in PAIRS or name == "pooling_weights":
        return value[..., :length]
    return value[:, : length - 1] if name == "token_importance" else value


def _concat_padded(name: str, values: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Return a field of several batches in one array, (B, *shape).

    No token attends to columns of padding, and a row of padding attends as the first one does.
    """
    dtype, pair = values[0].dtype, name in PAIRS
    filler = np.finfo(dtype).min if pair and np.issubdtype(dtype, np.floating) else 0
    merged = np.full((sum(map(len, values)), *shape), filler, dtype)
    start = 0
    for value in values:
        rows = merged[start : start + len(value)]
        rows[tuple(slice(size) for size in value.shape)] = value
        if pair and value.ndim == 4 and value.shape[2] > 1:
            rows[:, :, value.shape[2] :] = rows[:, :, :1]
        start += len(value)
    return merged
