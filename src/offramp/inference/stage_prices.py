"""Which rows of several batches go on together, by what a model's stages take. No clock, no I/O, no torch.

A stage is the layers that lead to an exit, and the exit; it takes a time whatever the batch, and a time for each token.
Rows before the same stage save the first part where they go on together, and pay for the padding of the shorter ones.
Rows that stand before an earlier stage may catch up with others, which wait for them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class StagePrices:
    """What the stages of a model take.

    Attributes:
        batch_s: seconds of each stage for a batch, whatever its size, (S,).
        token_s: seconds of each stage for a token, padding included, (S,).
    """

    batch_s: tuple[float, ...]
    token_s: tuple[float, ...]

    @classmethod
    def of(cls, tokens: tuple[int, int], seconds: tuple[Sequence[float], Sequence[float]]) -> StagePrices:
        """Return the prices that two batches show: their tokens, and the seconds of each stage; the small one first."""
        slopes = [max(more - few, 0.0) / (tokens[1] - tokens[0]) for few, more in zip(*seconds, strict=True)]
        fixed = [max(few - tokens[0] * slope, 0.0) for few, slope in zip(seconds[0], slopes, strict=True)]
        return cls(tuple(fixed), tuple(slopes))

    def of_stages(self, first: int, end: int | None, tokens: int) -> float:
        """Return the seconds of the stages from one to another, exclusive, for so many tokens; None = to the end."""
        return sum(self.batch_s[first:end]) + tokens * sum(self.token_s[first:end])


@final
@dataclass(frozen=True)
class Group:
    """Rows that stand before the same stage.

    Attributes:
        stage: 0-based.
        rows: how many.
        longest: tokens of the longest.
        rule: only rows of the same rule go on together.
        delayed_s: for how long rows before earlier stages have gone first.
    """

    stage: int
    rows: int
    longest: int
    rule: Hashable = None
    delayed_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Return the tokens of all rows, with padding."""
        return self.rows * self.longest

    def merged(self, other: Group) -> int:
        """Return the tokens of both, with padding, as one batch."""
        return (self.rows + other.rows) * max(self.longest, other.longest)


def merging_pays(one: Group, other: Group, prices: StagePrices) -> bool:
    """Return whether two groups go on as one: before the same stage, where the padding takes less than is saved."""
    return (one.rule, one.stage) == (other.rule, other.stage) and _saved_s(one, other, one.stage, prices) > 0


def next_group(groups: Sequence[Group], prices: StagePrices) -> int:
    """Return which group runs now: the deepest, or rows before an earlier stage that are to catch up with it.

    Of two equally deep ones it is the first.
    """
    order = sorted(range(len(groups)), key=lambda number: (groups[number].stage, -number))
    chosen = order.pop()
    while order:
        behind = order.pop()
        others = sum(groups[number].rows for number in order)
        if _catching_up_pays(groups[behind], groups[chosen], others, prices):
            chosen = behind
    return chosen


def _catching_up_pays(late: Group, early: Group, others: int, prices: StagePrices) -> bool:
    """Return whether rows that wait are answered sooner in sum if `late` runs until it stands beside `early`.

    `late` and the others behind it win the time that is saved from there on; `early` loses the time until then and
    that of the added tokens. It may be overtaken for as long as its own way takes, at most.
    """
    if late.rule != early.rule or late.stage == early.stage:
        return False
    delay_s = prices.of_stages(late.stage, early.stage, late.tokens)
    if early.delayed_s + delay_s > prices.of_stages(early.stage, None, early.tokens):
        return False
    added_s = (late.merged(early) - early.tokens) * sum(prices.token_s[early.stage :])
    won_s = (late.rows + others) * _saved_s(late, early, early.stage, prices)
    return won_s > early.rows * (delay_s + added_s)


def _saved_s(one: Group, other: Group, stage: int, prices: StagePrices) -> float:
    """Return the seconds that two groups save from a stage on if they are one batch."""
    padding = one.merged(other) - one.tokens - other.tokens
    return sum(prices.batch_s[stage:]) - padding * sum(prices.token_s[stage:])
