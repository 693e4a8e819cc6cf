"""Hashes of the rows that fitted a lexical exit, so that no threshold is certified on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def token_hashes(rows: Iterable[Sequence[int]]) -> Tensor:
    """Return a 64-bit hash of each row's token ids without padding, (N,) int64: the first 8 bytes of its BLAKE2b."""
    digests = [hashlib.blake2b(np.asarray(row, dtype="<i8").tobytes(), digest_size=8).digest() for row in rows]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64))


def have_fitted(fitted_rows: Tensor, rows: Iterable[Sequence[int]]) -> Tensor:
    """Return which rows have fitted the exit, (N,) bool.

    Args:
        fitted_rows: the classifier's buffer, sorted hashes (F,).
        rows: token ids of each row, without padding.
    """
    return torch.isin(token_hashes(rows), fitted_rows.cpu())
