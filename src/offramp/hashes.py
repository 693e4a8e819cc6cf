"""What the rows of a trace are known by afterwards: which ones a policy was fitted on."""

from __future__ import annotations

import hashlib

from offramp.values import Trace

DECIMALS = 3
"""Of the logits in a row's hash: float noise between batches is far below, different rows are far above."""


def row_hashes(trace: Trace) -> tuple[str, ...]:
    """A hash for each row, N of them: the first 8 bytes, in hex, of the SHA-256 of its logits (L, C).

    Labels are not in it, so a row is known again with and without them. The logits are rounded to `DECIMALS`: recorded
    in another batch nearly every row keeps its hash, but not every one (in int8 fewer). Equal texts have equal hashes.
    """
    rounded = trace.logits.double().round(decimals=DECIMALS) + 0.0  # (L, N, C); -0 becomes 0
    rows = rounded.transpose(0, 1).contiguous().numpy()  # (N, L, C)
    return tuple(hashlib.sha256(row.tobytes()).digest()[:8].hex() for row in rows)
