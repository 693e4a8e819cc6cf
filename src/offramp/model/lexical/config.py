"""The sizes of the lexical exit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, final

from offramp.errors import InvalidInput

MAX_NGRAMS = 3
MAX_BUCKETS = 2**19 - 1  # a bucket times the hash's multiplier stays below 2^31
MAX_RANK = 256  # sums of so many products of the classifier's integers are exact in float32
MOST_BUCKETS, LEAST_BUCKETS, TABLE_BYTES = 2**18, 2**15, 7_500_000  # of the default sizes


@final
@dataclass(frozen=True)
class LexicalExit:
    """An exit before the first layer: a linear classifier on hashed n-grams of token ids.

    Attributes:
        ngrams: the longest n-gram, in tokens, from 1 to 3.
        buckets: rows of the table of weights, at most 524,287; None = by the number of outputs, so that the table
            has at most 8 MB for up to 225 of them, and 32,768 rows for more.
        rank: columns of the table; None = as many as outputs, whose weights they are. Fewer, at most 256, make it
            smaller and the answers worse.
        fitted_rows: how many different rows have fitted the exit, whose hashes it keeps; 0 = not fitted.

    Raises:
        InvalidInput: a value out of its range.

    Example:
        >>> lexical = offramp.LexicalExit(ngrams=1)
        >>> lexical.resolved(num_labels=3, vocab_size=40).rank
        3
    """

    ngrams: int = 2
    buckets: int | None = None
    rank: int | None = None
    fitted_rows: int = 0

    def __post_init__(self) -> None:
        _check("ngrams", self.ngrams, 1, MAX_NGRAMS)
        _check("fitted_rows", self.fitted_rows, 0, None)
        if self.buckets is not None:
            _check("buckets", self.buckets, 1, MAX_BUCKETS)
        if self.rank is not None:
            _check("rank", self.rank, 1, None)

    def resolved(self, num_labels: int, vocab_size: int) -> LexicalExit:
        """Return the same exit with numbers for None.

        Args:
            num_labels: C outputs of the model.
            vocab_size: rows of the encoder's embedding.

        Raises:
            InvalidInput: a rank above the number of outputs, or above 256 and below it.
        """
        rank = num_labels if self.rank is None else self.rank
        if rank > num_labels or MAX_RANK < rank < num_labels:
            raise InvalidInput(f"rank must be at most {min(num_labels, MAX_RANK)} for {num_labels} outputs, got {rank}")
        by_size = max(TABLE_BYTES // (rank + 3), LEAST_BUCKETS)
        by_kind = 4 * vocab_size**2  # a small vocabulary has few pairs
        buckets = min(by_size, by_kind, MOST_BUCKETS) if self.buckets is None else self.buckets
        return replace(self, buckets=buckets, rank=rank)

    def to_data(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def _check(name: str, value: Any, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        reach = f"from {least} to {most:,}" if most is not None else f"{least} or more"
        raise InvalidInput(f"{name} of a lexical exit must be a whole number, {reach}; got {value!r}")
