"""Hashes of the rows that fitted a lexical exit."""

import hashlib
import struct

import torch

from offramp.model.lexical.fitted_rows import have_fitted, token_hashes


def test_a_hash_is_of_the_token_ids_as_64_bit_integers() -> None:
    digest = hashlib.blake2b(struct.pack("<3q", 101, 7, 102), digest_size=8).digest()
    assert token_hashes([[101, 7, 102]]).tolist() == [struct.unpack("<q", digest)[0]]


def test_rows_are_found_by_their_ids() -> None:
    fitted = token_hashes([[1, 2], [3]]).unique()
    assert have_fitted(fitted, [[3], [1], [2, 1], [1, 2], []]).tolist() == [True, False, False, True, False]
    assert have_fitted(torch.zeros(0, dtype=torch.long), [[3]]).tolist() == [False]
