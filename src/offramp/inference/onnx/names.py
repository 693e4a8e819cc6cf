"""Names of the values that pass between the pieces of a graph. Saved files contain these names."""

from __future__ import annotations


def carry(i: int, field: str) -> str:
    """Return the name of a field before block `i` (0-based)."""
    return f"carry{i}.{field}"


def after(i: int, field: str) -> str:
    """Return the name of a field that block `i`, its exit or its step writes."""
    return f"seen{i}.{field}"


def cut(i: int, field: str) -> str:
    """Return the name of a field after exit `i`, for the rows that continue."""
    return f"cut{i}.{field}"


def rows(i: int) -> str:
    """Return the name of the indices of the rows that continue after exit `i`, (K,)."""
    return f"row{i}"


def logits(i: int) -> str:
    """Return the name of exit `i`'s logits, (B, C)."""
    return f"logits{i}"


def certainty(i: int) -> str:
    """Return the name of exit `i`'s certainty, (B,)."""
    return f"certainty{i}"


def certainty_column(i: int) -> str:
    """Return the name of exit `i`'s certainty as a column, (B, 1)."""
    return f"certainty{i}.column"


def continues(i: int) -> str:
    """Return the name of the rows' decisions at exit `i`, (B,) bool: True where a row continues."""
    return f"stays{i}"


def limit(i: int) -> str:
    """Return the name of the rows' thresholds at exit `i`, (B,)."""
    return f"limit{i}"


def answer(i: int) -> str:
    """Return the name of the logits that a policy answers with at exit `i`, (B, C)."""
    return f"answer{i}"


def table(i: int) -> str:
    """Return the name of what level `i` returns, (B, columns): the outputs from exit `i` on, the answer, the layer."""
    return f"table{i}"


def uncalled_cut(i: int) -> str:
    """Return the name of the function that keeps the cut after exit `i`, which the file's policy does not read."""
    return f"cut{i}"


def if_continues(i: int) -> str:
    """Return the name of the node that runs block `i + 1` where a row continues."""
    return f"go_on{i}"


def if_all_continue(i: int) -> str:
    """Return the name of the node that cuts the batch where a row leaves at exit `i`."""
    return f"cut{i}"
