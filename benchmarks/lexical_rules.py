"""What does an exit before the first layer give to each exit rule, and which of the papers' rules changes rank?

    python benchmarks/lexical_models.py --data ../shared/data --no-training    # traces and lexical exits
    python benchmarks/lexical_gate.py --data ../shared/data                    # the gate of `certainty`
    python benchmarks/prices.py --data ../shared/data                          # milliseconds of each exit
    python benchmarks/lexical_rules.py --data ../shared/data

Replay alone: seven tasks, three seeds each, with and without the lexical exit. Of the rows that nothing was trained on
a random half fits and chooses, the other half reports, DRAWS times. Costs are milliseconds of the fastest engine of
`results/prices.json`, in shares of the same encoder with its last exit alone; tasks that are not measured yet get
times by their number of tokens. `rule_curves.py` has the arithmetic. The figures of each task and seed are kept under
`--figures` and taken up again where prices and rules are the same. Writes `results/lexical_rules.json` and `.md`, and
`docs/pictures/lexical_rules.png`; what came of it is in `results/lexical_rules_reading.md`, by hand. Two to three
minutes on one idle core, half a minute where all cells are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lexical_rules_page
from lexical_gate import certainty_of
from lexical_models import TASKS, Cell, add_options, cells, encoder_trace, new_rows, trace_of
from lexical_rules_summary import BUDGETS, FITTED, GRID, PAPERS, SIZES, SYSTEMS, area_range, compare
from machine import provenance
from offramp.policies.fitting import fit_lines, fit_policy
from offramp.policies.registry import load_policy
from offramp.policies.replay import run_policy
from offramp.types.cost_table import CostTable
from offramp.types.trace import Trace
from rule_curves import Setting, choices, one_exit, report, scaled_table

RESULTS = Path(__file__).parent / "results"
DRAWS = 10


def tables_of(prices: Path) -> dict[str, dict[int, CostTable]]:
    """Return the times of all exits of every task at every batch size, by the fastest engine; scaled where missing."""
    measured: dict[int, dict[str, CostTable]] = {size: {} for size in SIZES}
    for task, result in json.loads(prices.read_text()).items():
        for size in SIZES:
            every = [CostTable(**one["cost"]) for key, one in result["expected"].items() if key.endswith(f", {size}")]
            measured[size][task] = min(every, key=lambda table: table.select(table.layers[-1:]).ms[-1])
    return {task: {size: measured[size].get(task) for size in SIZES} for task in TASKS}  # type: ignore[return-value]


def fill(tables: Mapping[str, dict[int, CostTable | None]], cell: Cell) -> dict[int, CostTable]:
    """Return a cell's times; by its tokens where its task was not measured."""
    tokens = encoder_trace(cell).tokens
    assert tokens is not None
    filled = {}
    for size, table in tables[cell.task].items():
        known = [one[size] for one in tables.values() if one[size] is not None]
        filled[size] = table or scaled_table(known, round(tokens.double().mean().item(), 1))
    return filled


def full_trace(cell: Cell) -> Trace:
    """Return the trace at all exits, with the gate's certainty where it is fitted.

    The lexical exit's is its largest probability, at the temperature that its fit chose.
    """
    trace = trace_of(cell, range(7))
    if not cell.file("gate").exists():
        return trace
    lexical = trace.logits[:1].softmax(dim=-1).amax(dim=-1)
    return replace(trace, certainty=torch.cat((lexical, certainty_of(cell)[:, new_rows(cell)])))


def unfitted(trace: Trace) -> dict[str, list[Setting]]:
    """Return the settings of the papers' rules, and of margin, from which the fitted one is made."""
    right = answers_right(trace)
    rules = {name: data for name, data in PAPERS.items() if name != "certainty" or trace.certainty is not None}
    return {
        name: [
            Setting(run_policy(load_policy(one), trace)[0], right, 0.0 if name == "patience" else -torch.inf)
            for one in data
        ]
        for name, data in (rules | {"margin": ({"name": "margin"},)}).items()
    }


def answers_right(trace: Trace) -> Tensor:
    """Return whether each exit's answer is right, (L, N)."""
    return trace.logits.argmax(dim=-1) == trace.labels


def settings_of(trace: Trace, known: dict[str, list[Setting]], choose: Tensor) -> dict[str, list[Setting]]:
    """Return the settings of all rules on all rows; those that are fitted, on the rows that choose."""
    margin, fit_rows = known["margin"][0], trace.take(choose)
    lines = load_policy("margin", **fit_lines("margin", fit_rows))
    consistency = run_policy(fit_policy("consistency", fit_rows), trace)[0]
    fitted = (consistency, lines.rescale(margin.scores))  # type: ignore[attr-defined]
    papers = {name: settings for name, settings in known.items() if name != "margin"}
    return papers | {name: [Setting(scores, margin.right)] for name, scores in zip(FITTED, fitted, strict=True)}


def halves(rows: int, draw: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows that choose and of those that report."""
    choose, reported = torch.randperm(rows, generator=torch.Generator().manual_seed(draw)).tensor_split(2)
    return choose, reported


def figures_of(cell: Cell, tables: dict[int, CostTable]) -> dict[str, Tensor]:
    """Return a cell's figures, summed over the draws.

    Returns:
        `rows`: (N,) the numbers of its rows among all of the task's; `counts`: (N,) how often each reported;
        `full`, `lexical`: (N,) whether the last and the lexical exit are right; and for each batch size and system
        `SIZE-SYSTEM-totals`: (N, R, 1 + K) right answers, as the mean over the budgets of the area and at each of
        BUDGETS, `-reached` (R, G), `-scores` (R, G) and `-costs` (R, G), the last two in shares.
    """
    trace, numbers = full_trace(cell), new_rows(cell)
    right = answers_right(trace)
    figures = {"rows": numbers, "counts": torch.zeros(len(numbers)), "full": right[-1], "lexical": right[0]}
    for system, layers in SYSTEMS.items():
        part = trace.select(layers)
        known = unfitted(part)
        for draw in range(DRAWS):
            choose, reported = halves(len(part), draw)
            rules = settings_of(part, known, choose)
            if system == "with":
                figures["counts"][reported] += 1
            for size, table in tables.items():
                add(figures, f"{size}-{system}", rules, (choose, reported), table)
    return figures


def add(
    figures: dict[str, Tensor],
    name: str,
    rules: dict[str, list[Setting]],
    halves: tuple[Tensor, Tensor],
    table: CostTable,
) -> None:
    """Add a draw's figures of a system at a batch size to the sums; `table` is of all exits.

    For budgets below a rule's all rows leave at one exit behind a layer, in both systems: what the lexical exit gives
    is what it gives to the rule.
    """
    (choose, reported), (full, low) = halves, area_range(table)
    right = next(iter(rules.values()))[0].right
    read = table.select(table.layers[-len(right) :])
    behind = SYSTEMS["without"]
    plain = [one_exit(right[-len(behind) :, rows]) for rows in (choose, reported)]
    fallback = choices(plain[0], table.select(behind)), plain[1]
    budgets = [full * share for share in GRID]
    shown = [GRID.index(budget) for budget in BUDGETS]
    for number, settings in enumerate(rules.values()):
        made = report(
            [one.take(choose) for one in settings], [one.take(reported) for one in settings], fallback, read, budgets
        )
        first = next(index for index, share in enumerate(GRID) if share >= low)
        columns = torch.cat((made.right[first:].mean(dim=0, keepdim=True), made.right[shown].nan_to_num()))
        totals = figures.setdefault(f"{name}-totals", torch.zeros(right.shape[1], len(rules), 1 + len(BUDGETS)))
        totals[reported, number] += columns.T.float()
        sums = {"scores": made.right.mean(dim=1), "costs": made.costs / full, "reached": made.reached.double()}
        for key, values in sums.items():
            figures.setdefault(f"{name}-{key}", torch.zeros(len(rules), len(GRID), dtype=torch.float64))
            figures[f"{name}-{key}"][number] += values / DRAWS


def kept(cell: Cell, tables: dict[int, CostTable], runs: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return a cell's figures and the names of its rules, made where they are missing or of other prices."""
    names = [name for name in PAPERS if name != "certainty" or cell.file("gate").exists()]
    rules = (*names, *FITTED)
    settings = [PAPERS, rules, DRAWS, GRID, BUDGETS, {size: asdict(table) for size, table in tables.items()}]
    made = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    file = runs / f"{cell.task}-{cell.seed}.safetensors"
    if file.exists():
        with safe_open(file, "pt") as opened:
            if opened.metadata()["made"] == made:
                return load_file(file), rules
    figures = figures_of(cell, tables)
    runs.mkdir(parents=True, exist_ok=True)
    save_file({name: values.contiguous() for name, values in figures.items()}, file, {"made": made})
    return figures, rules


def main() -> None:
    """Replay what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--figures", type=Path, default=Path("runs/rules"), help="where the figures of cells are kept")
    options = parser.parse_args()
    tables, cells_of, used = tables_of(RESULTS / "prices.json"), {}, {}
    for cell in cells(options):
        if cell.file("encoder").exists() and cell.file("lexical").exists():
            used.setdefault(cell.task, fill(tables, cell))
            cells_of.setdefault(cell.task, {})[cell.seed] = kept(cell, used[cell.task], options.figures)
            print(cell.task, cell.seed, flush=True)
    results = {"about": provenance(), "draws": DRAWS, **compare(cells_of, used)}
    (RESULTS / "lexical_rules.json").write_text(json.dumps(results) + "\n")
    (RESULTS / "lexical_rules.md").write_text(lexical_rules_page.page(results))
    lexical_rules_page.draw(results, RESULTS.parents[1] / "docs" / "pictures" / "lexical_rules.png")


if __name__ == "__main__":
    main()
