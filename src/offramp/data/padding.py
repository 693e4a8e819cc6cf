"""Token rows -> padded arrays. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def padded(rows: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int | None) -> dict[str, Array]:
    """Pad token rows on the right to the longest of them, (B, T) int64 each; a mask is written where there is none.

    Args:
        rows: tokens by name.
        pad_token_id: fills `input_ids`; everything else is filled with 0. The mask hides it, so where the
            configuration has none (None, or -1) it is 0.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    fillers = dict.fromkeys(rows[0], 0) | {"input_ids": max(pad_token_id or 0, 0)}
    batch = {name: _pad([row[name] for row in rows], longest, filler) for name, filler in fillers.items()}
    if "attention_mask" not in batch:
        batch["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in rows], longest, 0)
    return batch


def _pad(rows: Sequence[Sequence[int]], longest: int, filler: int) -> Array:
    if len(rows) == 1:  # half the time
        return np.array(rows, np.int64)
    result = np.full((len(rows), longest), filler, np.int64)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return result
