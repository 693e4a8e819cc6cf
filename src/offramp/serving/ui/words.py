"""Why a row leaves at an exit or goes on, in words. No torch."""

from __future__ import annotations

import math

MOST_DIGITS = 9


GOES_ON, LAST = "full depth: goes on", "the last exit: leaves"


def reason(policy: str, score: float, limit: float, leaves: bool) -> str:
    """Return the words for a score against an exit's threshold.

    Args:
        policy: its name.
        score: -inf = not yet.
        limit: inf = never, -inf = always.
        leaves: what `offramp.policies.decision` makes of the two.

    Example:
        >>> reason("margin", 0.71, 0.86, leaves=False)
        'margin 0.71 is below 0.86: goes on'
    """
    if limit == -math.inf:
        return "every row leaves here"
    if score == -math.inf:
        return f"{policy} has no score yet: goes on"
    if limit == math.inf:
        return f"{policy} {score:.3g}, but no row leaves here: goes on"
    shown, bound = _apart(score, limit)
    return f"{policy} {shown} reaches {bound}: leaves" if leaves else f"{policy} {shown} is below {bound}: goes on"


def _apart(score: float, limit: float) -> tuple[str, str]:
    """Return two numbers with as few digits as keep them apart, and each from whole numbers; two at least."""
    for digits in range(2, MOST_DIGITS + 1):
        shown, bound = f"{score:.{digits}g}", f"{limit:.{digits}g}"
        whole = any(
            float(text).is_integer() and not value.is_integer() for text, value in ((shown, score), (bound, limit))
        )
        if shown != bound and not whole:
            break
    return shown, bound
