"""Names of the values that the pieces of a graph pass to each other; saved files have them."""

from __future__ import annotations


def carry(i: int, field: str) -> str:
    """Return the name of a field before block `i` (0-based)."""
    return f"carry{i}.{field}"


def after(i: int, field: str) -> str:
    """Return the name of a field that block `i`, its exit or its step writes."""
    return f"seen{i}.{field}"


def cut(i: int, field: str) -> str:
    """Return the name of a field behind exit `i`, for the rows that continue."""
    return f"cut{i}.{field}"


def rows(i: int) -> str:
    """Return the name of the indices of the rows that continue behind exit `i`, (K,)."""
    return f"row{i}"


def logits(i: int) -> str:
    """Return the name of exit `i`'s logits, (B, C)."""
    return f"logits{i}"


def certainty(i: int) -> str:
    """Return the name of exit `i`'s certainty, (B,)."""
    return f"certainty{i}"
