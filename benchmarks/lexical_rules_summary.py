"""Areas, ranks and intervals of `lexical_rules.py`, from the figures of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lexical_models import TASKS
from offramp.types.cost_table import CostTable
from rule_curves import rank_changes, ranks, resampled_means

RESAMPLES, SIZES = 1000, (1, 32)
SYSTEMS = {"without": tuple(range(1, 7)), "with": tuple(range(7))}
"""The exits that each system reads."""
GRID = tuple(round(0.01 * number, 2) for number in range(1, 101))
BUDGETS = (0.10, 0.25, 0.33, 0.50)
"""In shares of the full cost; all of them are in the grid."""
PAPERS: dict[str, tuple[dict[str, Any], ...]] = {
    "entropy": ({"name": "entropy"},),
    "patience": ({"name": "patience"},),
    "pcee": tuple({"name": "pcee", "measure": "entropy", "patience": patience} for patience in (2, 3, 4)),
    "divergence": tuple({"name": "divergence", "patience": patience} for patience in (1, 2, 3)),
    "certainty": ({"name": "certainty"},),
}
FITTED = ("consistency", "margin per exit")
"""Fitted on the rows that choose; the second is the default of the command line."""


Cells = Mapping[int, tuple[dict[str, Tensor], tuple[str, ...]]]
"""Figures and rules of a task, by seed."""


def summarize(by_seed: Cells, table: CostTable, size: int, number: int) -> tuple[dict[str, Any], Tensor]:
    """Return a task's results at a batch size, and its areas (1 + S, 2, R): as they are, then resampled."""
    rules = [name for name in next(iter(by_seed.values()))[1] if all(name in known for _, known in by_seed.values())]
    rows = 1 + max(int(figures["rows"].max()) for figures, _ in by_seed.values())
    totals, counts = torch.zeros(rows, 2, len(rules), 1 + len(BUDGETS), dtype=torch.float64), torch.zeros(rows)
    seeds, lines = [], []
    for figures, known in by_seed.values():
        own = [known.index(name) for name in rules]
        part = torch.stack([figures[f"{size}-{system}-totals"][:, own] for system in SYSTEMS], dim=1).double()
        totals[figures["rows"]] += part
        counts[figures["rows"]] += figures["counts"]
        seeds.append(part.sum(dim=0) / figures["counts"].sum())
        keys = ("scores", "costs", "reached")
        lines.append({key: torch.stack([figures[f"{size}-{system}-{key}"][own] for system in SYSTEMS]) for key in keys})
    means = resampled_means(totals, counts, RESAMPLES, number)  # (1 + S, 2, R, 1 + K)
    mean_lines = {key: torch.stack([one[key] for one in lines]).mean(dim=0) for key in lines[0]}  # (2, R, G)
    full, low = area_range(table)
    result: dict[str, Any] = {
        "full_ms": full,
        "timed": table.describe(),
        "is_scaled": table.machine.startswith("layers scaled"),
        "from": low,
        "rows": int((counts > 0).sum()),
        "seeds": list(by_seed),
        "full": mean_of([figures["full"] for figures, _ in by_seed.values()]),
        "lexical": mean_of([figures["lexical"] for figures, _ in by_seed.values()]),
        "rules": {name: rule_result(means[:, :, index], mean_lines, seeds, index) for index, name in enumerate(rules)},
        **comparisons(means[..., 0], rules),
    }
    return result, means[..., 0]


def mean_of(right: Sequence[Tensor]) -> float:
    """Return the mean over seeds of shares of right answers."""
    return torch.stack([one.double().mean() for one in right]).mean().item()


def rule_result(means: Tensor, lines: Mapping[str, Tensor], seeds: Sequence[Tensor], index: int) -> dict[str, Any]:
    """Return a rule's areas and scores without and with the lexical exit; means (1 + S, 2, 1 + K)."""
    result: dict[str, Any] = {}
    for number, system in enumerate(SYSTEMS):
        reached = lines["reached"][number, index] > 1 - 1e-9
        shown = [GRID.index(budget) for budget in BUDGETS]
        scores = [
            [*interval(means[:, number, 1 + column])] if reached[grid] else None for column, grid in enumerate(shown)
        ]
        result[system] = {
            "area": interval(means[:, number, 0]),
            "area_by_seed": [seed[number, index, 0].item() for seed in seeds],
            "scores": scores,
            "costs": [lines["costs"][number, index, grid].item() if reached[grid] else None for grid in shown],
            "line": [
                round(score, 4) if reachable else None
                for score, reachable in zip(lines["scores"][number, index].tolist(), reached.tolist(), strict=True)
            ],
        }
    result["gain"] = interval(means[:, 1, 0] - means[:, 0, 0])
    result["gain_by_seed"] = [(seed[1, index, 0] - seed[0, index, 0]).item() for seed in seeds]
    return result


def interval(values: Tensor) -> list[float]:
    """Return the figure of the rows as they are and the ends of 95 % of the resamples, of (1 + S,)."""
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return [values[0].item(), low, high]


def comparisons(areas: Tensor, rules: Sequence[str]) -> dict[str, Any]:
    """Return ranks of the papers' rules, how often they change, and differences between rules; areas (1 + S, 2, R)."""
    papers = [name for name in rules if name in PAPERS]
    own = areas[:, :, [rules.index(name) for name in papers]]
    changes = rank_changes(own[1:, 0], own[1:, 1])
    rank = {
        name: {
            "without": int(ranks(own[0, 0])[index]),
            "with": int(ranks(own[0, 1])[index]),
            **{key: values[index] for key, values in changes.items()},
        }
        for index, name in enumerate(papers)
    }
    ahead = {
        system: {
            one: {
                other: interval(areas[:, number, rules.index(one)] - areas[:, number, rules.index(other)])
                for other in rules
                if other != one
            }
            for one in rules
        }
        for number, system in enumerate(SYSTEMS)
    }
    return {"ranks": rank, "ahead": ahead}


def compare(cells: Mapping[str, Cells], tables: Mapping[str, Mapping[int, CostTable]]) -> dict[str, Any]:
    """Return all results, by batch size and task, and of the mean over the tasks."""
    sizes: dict[str, Any] = {}
    for size in SIZES:
        areas: list[tuple[Tensor, list[str]]] = []
        tasks: dict[str, Any] = {}
        for number, task in enumerate(name for name in TASKS if name in cells):
            tasks[task], every = summarize(cells[task], tables[task][size], size, number)
            areas.append((every, list(tasks[task]["rules"])))
        sizes[str(size)] = {"tasks": tasks, "mean": mean_of_tasks(areas)}
    return {"budgets": BUDGETS, "grid": GRID, "sizes": sizes}


def mean_of_tasks(areas: Sequence[tuple[Tensor, list[str]]]) -> dict[str, Any]:
    """Return the comparison by the mean area over the tasks, of the rules that all of them have."""
    shared = [name for name in areas[0][1] if all(name in rules for _, rules in areas)]
    mean = torch.stack([every[:, :, [rules.index(name) for name in shared]] for every, rules in areas]).mean(dim=0)
    rules = {
        name: {system: interval(mean[:, number, index]) for number, system in enumerate(SYSTEMS)}
        | {"gain": interval(mean[:, 1, index] - mean[:, 0, index])}
        for index, name in enumerate(shared)
    }
    return {"rules": rules, **comparisons(mean, shared)}


def area_range(table: CostTable) -> tuple[float, float]:
    """Return the full cost in ms, and the share of it from which on a model without lexical exit can answer at all."""
    full = table.select(table.layers[-1:]).ms[-1]
    return full, table.select(SYSTEMS["without"]).ms[0] / full
