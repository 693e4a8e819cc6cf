"""A claim as data: what is subtracted from what, on which tasks; and what the lists of claims share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from claims_measure import Pair, Side
from claims_page import HIGHER, Rule
from offramp.studies.papers import badge, berxit, pabee, pcee
from offramp.studies.spec import LayersSaved, SpeedupBetween, Study

TRACES = ("mpnet-clinc150", "mpnet-sst2", "mpnet-snli")
"""Traces of twelve layers with linear exits, trained depth-weighted, one seed; they have no rival training."""
DEEP = ("mpnet-rte", "mpnet-mrpc")
SHALLOW = ("minilm-sst2", "minilm-cola", "minilm-mrpc", "minilm-rte")
CELLS, ALL, VALUES = (*SHALLOW, *DEEP), (*SHALLOW, *DEEP, *TRACES), ("minilm-stsb",)
TWELVE = (*DEEP, *TRACES)

WEIGHTED, WHOLE = pabee.WEIGHTED.name, pabee.WHOLE.name
BYPASS, JOINT = badge.BYPASS.name, badge.JOINT.name
TWO_STAGE, LEARNED = berxit.TWO_STAGE.name, berxit.LEARNED.name
ALT, JOINT_POOLER = berxit.ALTERNATING.name, berxit.JOINT.name
GRID = tuple(LayersSaved(share / 10) for share in range(2, 8))
BEST_EXIT = SpeedupBetween(1.0, 100.0)


MOST, HALF, LEAST = pcee.MOST, pcee.HALF, pcee.LEAST
T1, BERT_T2 = "table 1", "table 2"
PLAIN = Side(WHOLE)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper as a difference of scores in points.

    Attributes:
        name: paper and number.
        text: the claim, in other words than the paper's.
        where: in the paper.
        printed: the paper's figure.
        pairs: the mean of their differences is the figure.
        rule: when it holds.
        note: how it was compared, and where paper, code and these runs differ.
        cases: tasks that it is compared on, as far as there are runs.
        factor: of the second side's score.
    """

    name: str
    text: str
    where: str
    printed: str
    pairs: tuple[Pair, ...]
    rule: Rule = HIGHER
    note: str = ""
    cases: tuple[str, ...] = field(default=CELLS)
    factor: float = 1.0


def gap(study: Study, one: str, other: str, table: str, budgets: tuple[str, str] | None = None) -> str:
    """Return the mean difference of two systems in a paper's table as text, over the tasks that have both."""
    figures = {}
    for row in study.published:
        if row.table.startswith(table):
            for name in set(row.figures) & {"score", "average", "best", "relative"}:
                figures[row.system, row.budget, row.data, name] = row.figures[name]
    found: dict[str, list[float]] = {}
    for (system, budget, data, name), value in figures.items():
        wanted = budgets or (budget, budget)
        partner = figures.get((other, wanted[1], data, name))
        if system == one and budget == wanted[0] and partner is not None:
            found.setdefault(name, []).append(value - partner)
    names = {"average": " (average)", "best": " (best)"}
    means = [
        f"{sum(gaps) / len(gaps):+.1f} points{names.get(name, '')} over {len(gaps)} tasks"
        for name, gaps in sorted(found.items())
    ]
    return "; ".join(means)


def at_pace(one: Side, other: Side, pace: tuple[str, str], budgets: Iterable[LayersSaved]) -> tuple[Pair, ...]:
    """Return pairs at the savings that another system has at each budget."""
    return tuple(
        (
            Side(one.training, one.policy, budget, pace),
            Side(other.training, other.policy, budget, pace),
        )
        for budget in budgets
    )


def rivals(one: str, other: str, *budgets: LayersSaved, training: str = WEIGHTED) -> tuple[Pair, ...]:
    """Return pairs of two policies on one network at patience's savings."""
    pace = (training, "patience")
    return at_pace(Side(training, one), Side(training, other), pace, budgets)


def exits(one: str, other: str, which: str) -> tuple[Pair, ...]:
    """Return a pair of two trainings' exits, without thresholds."""
    return ((Side(one, exits=which), Side(other, exits=which)),)
