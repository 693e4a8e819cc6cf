"""Compare exit rules at equal cost: the best setting within a budget, its score on other rows, areas, ranks.

A rule may have several settings, such as a patience, and thresholds for each. At a budget it has the setting with the
best score on the rows that choose among all whose mean cost there is within the budget; what other rows score with it
is reported. Coarse rules such as patience are treated like any other: between two of their costs they keep the
cheaper one. The area is the mean score over a range of budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.evaluation.sweep import sweep
from offramp.types.cost_table import CostTable

TOLERANCE = 1e-12
"""Smaller differences of costs, scores and areas are rounding."""


@dataclass(frozen=True)
class Setting:
    """What a setting of a rule does with all rows.

    Attributes:
        scores: (L, N) float32.
        right: (L, N) bool, whether the answer at an exit is right.
        least: thresholds at or below it are left out; patience 0 would leave at the first exit whatever it answers.
    """

    scores: Tensor
    right: Tensor
    least: float = -torch.inf

    def take(self, rows: Tensor) -> Setting:
        """Return what it does with some rows."""
        return Setting(self.scores[:, rows], self.right[:, rows], self.least)


def one_exit(right: Tensor) -> list[Setting]:
    """Return the settings that let all rows leave at one exit: a budgeted exit, from `right` (L, N)."""
    exits = torch.arange(len(right)).unsqueeze(-1)
    return [Setting((exits == exit).float().expand(right.shape), right, 0.0) for exit in range(len(right))]


@dataclass(frozen=True)
class Choices:
    """Thresholds that are worth their cost, by rising cost and rising score, on the rows that choose; (K,) each."""

    settings: Tensor
    thresholds: Tensor
    costs: Tensor
    scores: Tensor

    def within(self, budget: float) -> int | None:
        """Return the number of the best one within a budget, None where even the cheapest is above it."""
        number = int((self.costs <= budget + TOLERANCE).sum()) - 1
        return None if number < 0 else number


def choices(settings: Sequence[Setting], table: CostTable) -> Choices:
    """Return all thresholds of all settings that no cheaper one equals, on the rows that choose.

    Costs are expected milliseconds by the table, whose exits are the settings'.
    """
    columns: list[list[Tensor]] = [[], [], [], []]
    for number, setting in enumerate(settings):
        depth, rows = setting.scores.shape
        exits = torch.eye(depth, dtype=torch.float64).unsqueeze(1).expand(-1, rows, -1)
        swept = sweep(setting.scores, torch.cat((exits, setting.right.unsqueeze(-1).double()), dim=-1))
        kept = swept.thresholds > setting.least
        sums = swept.statistics[kept] / rows
        values = (
            torch.full((len(sums),), number),
            swept.thresholds[kept],
            table.expected_ms(sums[:, :-1]),
            sums[:, -1],
        )
        for column, part in zip(columns, values, strict=True):
            column.append(part)
    numbers, thresholds, costs, scores = map(torch.cat, columns)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(costs[order], stable=True)]  # by cost, of equal costs the best score first
    best = scores[order].cummax(dim=0).values
    ahead = order[torch.cat((torch.tensor([True]), best[1:] > best[:-1] + TOLERANCE))]
    return Choices(numbers[ahead], thresholds[ahead], costs[ahead], scores[ahead])


def exits_at(setting: Setting, threshold: float) -> Tensor:
    """Return the number of the exit at which each row leaves, (N,)."""
    return (setting.scores[:-1].cummax(dim=0).values < threshold).sum(dim=0)


@dataclass(frozen=True)
class Reported:
    """What a rule does at rising budgets with the rows that report.

    Attributes:
        right: (G, N) 1.0 where the answer is right; where the rule cannot be so cheap, of the best exit for all rows
            within the budget; NaN where there is none.
        costs: (G,) the mean cost on these rows, likewise.
        reached: (G,) bool, whether the rule itself has a threshold within the budget.
    """

    right: Tensor
    costs: Tensor
    reached: Tensor


def report(
    choosing: Sequence[Setting],
    reporting: Sequence[Setting],
    plain: tuple[Choices, Sequence[Setting]],
    table: CostTable,
    budgets: Sequence[float],
) -> Reported:
    """Choose at every budget on some rows and answer others.

    Args:
        choosing: the settings of a rule, with the rows that choose.
        reporting: the same settings, with the rows that report.
        plain: for budgets below the rule's: the choices of `one_exit`, perhaps of other exits than the rule's, and its
            settings with the rows that report.
        table: of the exits of the settings.
        budgets: (G,) in milliseconds, rising.
    """
    own, rows = (choices(choosing, table), reporting), len(reporting[0].right[0])
    keys = []
    for budget in budgets:
        reached = own[0].within(budget) is not None
        keys.append((reached, (own if reached else plain)[0].within(budget)))
    answers: dict[tuple[bool, int | None], tuple[Tensor, float]] = {
        (False, None): (torch.full((rows,), torch.nan, dtype=torch.float64), torch.nan)
    }
    for reached, number in set(keys) - set(answers):
        made, settings = own if reached else plain
        assert number is not None
        setting = settings[int(made.settings[number])]
        exits = exits_at(setting, made.thresholds[number].item())
        shares = torch.bincount(exits, minlength=len(setting.right)).double() / rows
        cost = table.expected_ms(shares).item() if reached else made.costs[number].item()  # the same for all rows
        answers[reached, number] = setting.right.gather(0, exits[None])[0].double(), cost
    return Reported(
        torch.stack([answers[key][0] for key in keys]),
        torch.tensor([answers[key][1] for key in keys], dtype=torch.float64),
        torch.tensor([reached for reached, _ in keys]),
    )


def ranks(areas: Tensor) -> Tensor:
    """Return the ranks of areas (..., R), 1 = the largest; equal ones share the better rank."""
    ahead = areas.unsqueeze(-2) > areas.unsqueeze(-1) + TOLERANCE  # (..., R, R): column is ahead of row
    return 1 + ahead.sum(dim=-1)


def rank_changes(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """Return how often each rule's rank gets better and worse over resamples; areas (S, R) before and after."""
    gain = ranks(before) - ranks(after)  # above 0: nearer to the first
    return {"better": (gain > 0).double().mean(dim=0).tolist(), "worse": (gain < 0).double().mean(dim=0).tolist()}


def resampled_means(totals: Tensor, counts: Tensor, resamples: int, seed: int = 0) -> Tensor:
    """Return means over rows and over resamples of them, (1 + S, ...): the first is that of the rows as they are.

    Args:
        totals: (N, ...) of each row, summed over how often it reported.
        counts: (N,) how often that was.
        resamples: S.
        seed: of the resamples.
    """
    rows = len(totals)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(rows, (resamples, rows), generator=generator)
    weights = torch.zeros(resamples, rows, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(resamples, rows, dtype=torch.float64)
    )
    weights = torch.cat((torch.ones(1, rows, dtype=torch.float64), weights))  # (1 + S, N)
    sums = weights @ totals.flatten(1).double()
    return (sums / (weights @ counts.double()).unsqueeze(-1)).view(-1, *totals.shape[1:])


def scaled_table(tables: Sequence[CostTable], tokens: float) -> CostTable:
    """Return the times of texts of other lengths: layers on a line over the tokens, all else the mean of the tables.

    Args:
        tables: of one engine and batch size, of the same exits from layer 0 on, for texts of several lengths.
        tokens: of a mean text.
    """
    last = len(tables[0].layers) - 1

    def mean(values: Callable[[CostTable], float]) -> float:
        return sum(map(values, tables)) / len(tables)

    layer = torch.tensor(
        [(one.ms[-1] - one.ms[0] - sum((one.exit_ms or ())[1:])) / last for one in tables], dtype=torch.float64
    )
    lengths = torch.tensor([[1.0, one.tokens or 0.0] for one in tables], dtype=torch.float64)
    constant, slope = torch.linalg.lstsq(lengths, layer.unsqueeze(-1)).solution.flatten().tolist()
    first = mean(lambda one: one.ms[0])
    exits = [mean(lambda one, exit=exit: (one.exit_ms or (0.0,) * last)[exit]) for exit in range(last)]
    cuts = tuple(mean(lambda one, exit=exit: (one.cut_ms or (0.0,) * last)[exit]) for exit in range(last))
    ms = [first + number * (constant + slope * tokens) + sum(exits[1 : number + 1]) for number in range(last + 1)]
    one = tables[0]
    about = f"layers scaled to {tokens:.0f} tokens from {len(tables)} tasks; {one.machine}"
    return CostTable(
        one.layers,
        tuple(ms),
        0.0,
        one.engine,
        one.batch_size,
        tokens,
        about,
        one.threads,
        one.workers,
        tuple(min(price, first) if number == 0 else price for number, price in enumerate(exits)),
        cuts,
    )
