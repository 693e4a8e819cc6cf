"""The page and the picture of `lexical_rules.py`, from its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import as_lines

READING = Path(__file__).parent / "results" / "lexical_rules_reading.md"
PICTURED = ("clinc150", "sst2", "snli")
COLORS = {"margin per exit": "C0", "entropy": "C1", "pcee": "C4", "patience": "C2"}
"""The rules of the picture."""
SMALL = "1"
"""The batch size of the picture and of most tables."""
Results = Mapping[str, Any]


def page(results: Results) -> str:
    """Return the results as Markdown."""
    parts = ["# Layer 0 under every rule", head(results)]
    if READING.exists():
        parts.append(READING.read_text().strip())
    for size, one in results["sizes"].items():
        parts += [f"## Batch size {size}", rank_table(one), area_table(one)]
    parts += ["## Score at a share of the cost, batch size 1", budget_table(results)]
    parts += ["## Ahead of another rule, with the lexical exit, batch size 1", ahead_table(results["sizes"][SMALL])]
    return "\n\n".join(parts) + "\n"


def head(results: Results) -> str:
    """Return how the figures were made, and what is missing."""
    tasks = results["sizes"][SMALL]["tasks"]
    text = f"""MiniLM, six layers, exits behind all of them, with and without the lexical exit before the first layer.
Cost: milliseconds of the fastest engine; 100 % is the same encoder with its last exit alone. A rule pays for every exit
that it reads, so that full depth with all exits costs more than 100 %. Of the rows that nothing was trained on, one
random half fits and chooses and the other half reports, {results["draws"]} times for each seed. At a budget a rule has
the setting with the best accuracy on the half that chooses among all that cost no more than the budget there. *Area*:
mean accuracy over all budgets from the cheapest answer of a model without the lexical exit (all rows leave after
layer 1) to 100 %; where a rule cannot be so cheap, all rows leave at the best exit behind a layer that can, with the
lexical exit and without it, so that the gain is the rule's own. In brackets 95 % intervals: bootstrap over rows, the
same rows for all rules, seeds and draws; thresholds stay as chosen. *Better*, *worse*: share of the resamples in which
the rank is.

{as_lines(results["about"])}"""
    scaled = [task for task, one in tasks.items() if one["is_scaled"]]
    few = [f"{task} ({len(one['seeds'])} of 3)" for task, one in tasks.items() if len(one["seeds"]) < 3]
    without = [task for task, one in tasks.items() if "certainty" not in one["rules"]]
    notes = [
        (scaled, "No prices yet, so that layers have the times of other tasks, on a line over the tokens"),
        (few, "Seeds that are there"),
        (without, "Without the gate of `certainty` on all seeds, so that it is left out of the task and of the mean"),
    ]
    lines = [f"{text}: {', '.join(names)}." for names, text in notes if names]
    return "\n".join([text, "", *lines]) if lines else text


def rank_table(one: Results) -> str:
    """Return the ranks of the papers' rules on every task, without and with the lexical exit."""
    columns = one["tasks"] | {"mean of the areas": one["mean"]}
    rules = list(dict.fromkeys(name for column in columns.values() for name in column["ranks"]))
    lines = [
        "Rank among the papers' rules by area, without -> with the lexical exit (better / worse, in %):",
        "",
        f"| rule | {' | '.join(columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name in rules:
        cells = [rank_text(column["ranks"][name]) if name in column["ranks"] else "-" for column in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rank_text(rank: Results) -> str:
    """Return a rule's ranks and how often they change."""
    return f"{rank['without']} -> {rank['with']} ({100 * rank['better']:.0f} / {100 * rank['worse']:.0f})"


def area_table(one: Results) -> str:
    """Return every rule's area on every task."""
    lines = [
        "| task | rule | area without | with | gain, in hundredths | of each seed |",
        "|---|---|---|---|---|---|",
    ]
    for task, column in one["tasks"].items():
        first = (
            f"{task} (full {column['full']:.3f}, lexical {column['lexical']:.3f}, from {100 * column['from']:.0f} %)"
        )
        for name, rule in column["rules"].items():
            seeds = ", ".join(f"{100 * gain:+.2f}" for gain in rule["gain_by_seed"])
            areas = " | ".join(f"{rule[system]['area'][0]:.4f}" for system in ("without", "with"))
            lines.append(f"| {first} | {name} | {areas} | {hundredths(rule['gain'])} | {seeds} |")
            first = ""
    first = "mean of the tasks"
    for name, rule in one["mean"]["rules"].items():
        areas = " | ".join(f"{rule[system][0]:.4f}" for system in ("without", "with"))
        lines.append(f"| {first} | {name} | {areas} | {hundredths(rule['gain'])} | |")
        first = ""
    return "\n".join(lines)


def hundredths(values: list[float]) -> str:
    """Return a difference and its interval."""
    middle, low, high = (100 * value for value in values)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def budget_table(results: Results) -> str:
    """Return the accuracy at shares of the cost, without / with the lexical exit."""
    budgets = results["budgets"]
    lines = [
        "Without / with the lexical exit; - where the rule cannot be so cheap.",
        "",
        f"| task | rule | {' | '.join(f'{100 * budget:.0f} %' for budget in budgets)} |",
        "|---" * (2 + len(budgets)) + "|",
    ]
    for task, column in results["sizes"][SMALL]["tasks"].items():
        first = f"{task} (100 % is {column['full_ms']:.2f} ms)"
        for name, rule in column["rules"].items():
            pairs = zip(rule["without"]["scores"], rule["with"]["scores"], strict=True)
            cells = [" / ".join("-" if score is None else f"{score[0]:.3f}" for score in pair) for pair in pairs]
            lines.append(f"| {first} | {name} | {' | '.join(cells)} |")
            first = ""
    return "\n".join(lines)


def ahead_table(one: Results) -> str:
    """Return how far the default rule is ahead of every other rule, with the lexical exit."""
    columns = one["tasks"] | {"mean": one["mean"]}
    rules = list(dict.fromkeys(name for column in columns.values() for name in column["ahead"]["with"]))
    others = [name for name in rules if name != "margin per exit"]
    lines = [
        "Area of margin per exit less that of another rule, in hundredths:",
        "",
        f"| task | {' | '.join(others)} |",
        "|---" * (1 + len(others)) + "|",
    ]
    for task, column in columns.items():
        ahead = column["ahead"]["with"]["margin per exit"]
        cells = [hundredths(ahead[name]) if name in ahead else "-" for name in others]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Draw accuracy against milliseconds, a panel a task, one below the other for narrow screens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = {task: one for task, one in results["sizes"][SMALL]["tasks"].items() if task in PICTURED}
    figure = Figure(figsize=(5.2, 3.4 * len(tasks) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(tasks), 1, squeeze=False).flatten()
    for axes, (task, one) in zip(panels, tasks.items(), strict=True):
        shown = []
        for name, color in COLORS.items():
            for system, style in (("without", "--"), ("with", "-")):
                line = one["rules"][name][system]["line"]
                points = [
                    (share * one["full_ms"], score) for share, score in zip(results["grid"], line, strict=True) if score
                ]
                shown += [score for _, score in points]
                label = name if system == "with" else None
                axes.step(*zip(*points, strict=True), where="post", color=color, linestyle=style, label=label)
        axes.axhline(one["full"], color="black", linewidth=0.8, linestyle=":")
        axes.set_ylim(max(min(shown), one["full"] - 0.15), one["full"] + 0.012)
        axes.set_xlim(0, one["full_ms"])
        axes.set_title(task, fontsize=13)
        axes.set_xlabel("milliseconds a text", fontsize=12)
        axes.set_ylabel("accuracy", fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.25)
    labels = panels[0].get_legend_handles_labels()
    title = "solid: with layer 0; dashed: without;\ndotted: all six layers"
    figure.legend(
        *labels, loc="outside lower center", ncols=2, fontsize=11, frameon=False, title=title, title_fontsize=11
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
