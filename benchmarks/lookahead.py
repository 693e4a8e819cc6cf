"""Policies that are fitted on a trace against those of the papers: who scores best for how many layers.

    python benchmarks/training.py --tasks sick,cola,clinc150,sst2,mrpc --depths 6 --objectives weighted   # the traces
    python benchmarks/lookahead.py                                                                       # minutes

Held-out rows of each task are halved at random, 20 times. Numbers are fitted and thresholds for a budget of layers
chosen on the one half, scores are told of the other. No trace has a gate, so `certainty` is missing. Then, on CLINC150:
fewer rows to fit, and rows of other intents to fit than to report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from machine import as_lines, provenance
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import calibration_error, layerwise
from offramp.evaluation.sweep import curve
from offramp.policies.base import Policy
from offramp.policies.fitting import fit_lines, fit_policy, fit_temperatures
from offramp.policies.fixed import Fixed
from offramp.policies.registry import load_policy
from offramp.policies.replay import run_policy
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of
from training import TASKS

RESULTS = Path(__file__).parent / "results"
READING = RESULTS / "lookahead_reading.md"
BUDGETS = (0.25, 1 / 3, 0.5, 2 / 3)  # of the layers
SHARES = np.linspace(0.25, 1, 226)
OURS = ("consistency", "gain", "margin, tempered", "margin, per exit", "max-prob, per exit")
CLASSES = {
    "everybody at one exit": {"name": "fixed"},
    "entropy": {"name": "entropy"},
    "max-prob": {"name": "max-prob"},
    "margin": {"name": "margin"},
    "patience": {"name": "patience"},
    "pcee 2": {"name": "pcee", "patience": 2},
    "divergence": {"name": "divergence"},
}
VALUES = {
    "everybody at one exit": {"name": "fixed"},
    "stability 1": {"name": "stability", "patience": 1},
    "stability 2": {"name": "stability", "patience": 2},
}
SIZES = (50, 100, 200, 500)
Figures = dict[str, Any]


def policies(half: Trace) -> dict[str, Policy]:
    """The papers' policies, and those that are fitted on the half that chooses."""
    if half.problem_type == REGRESSION:
        return {name: load_policy(data) for name, data in VALUES.items()} | {
            "consistency": fit_policy("consistency", half)
        }
    fitted = {name: fit_policy(name, half) for name in ("consistency", "gain")}
    fitted["margin, tempered"] = load_policy("margin", **fit_temperatures(half))
    for name in ("margin", "max-prob"):
        fitted[f"{name}, per exit"] = load_policy(name, **fit_lines(name, half))
    return {name: load_policy(data) for name, data in CLASSES.items()} | fitted


def one_split(trace: Trace, metrics: tuple[str, ...], seed: int) -> Figures:
    """What every policy does on one half of the rows, with numbers and thresholds of the other."""
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    fit_half, test_half = (trace.take(rows) for rows in order.tensor_split(2))
    found: Figures = {
        name: figures_on(policy, fit_half, test_half, metrics) for name, policy in policies(fit_half).items()
    }
    for name in {"margin, tempered"} & set(found):
        tempered = run_policy(load_policy("margin", **fit_temperatures(fit_half)), test_half)[1]
        errors = [calibration_error(one).tolist() for one in (test_half, Trace(tempered, test_half.labels))]
        found[name] |= dict(zip(("error_before", "error_after"), errors, strict=True))
    return found


def figures_on(policy: Policy, fit_half: Trace, test_half: Trace, metrics: tuple[str, ...]) -> Figures:
    """The curve of a policy on the rest, and its score and cost at each budget.

    Before the earliest exit at which a policy lets anybody go, its curve is that of everybody at one exit.
    """
    shares, scores = line_of(policy, test_half, metrics)
    plain = np.interp(SHARES, *line_of(Fixed(), test_half, metrics))
    line = np.where(shares[0] - 1e-9 > SHARES, plain, np.interp(SHARES, shares, scores))
    points = [at_budget(policy, fit_half, test_half, metrics, budget) for budget in BUDGETS]
    return {"area": float(line.mean()), "line": line.tolist(), "points": points}


def line_of(policy: Policy, trace: Trace, metrics: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the layers, rising, and the score at each; (K,) both."""
    curves = [curve(trace, policy, metric) for metric in metrics]
    shares = curves[0].mean_exits.numpy() / trace.layer_numbers[-1]
    return shares[::-1], np.mean([entry.scores.numpy() for entry in curves], axis=0)[::-1]


def at_budget(
    policy: Policy, fit_half: Trace, test_half: Trace, metrics: tuple[str, ...], budget: float
) -> tuple[float, float] | None:
    """Score and share of layers on the rest; None where the policy cannot be that fast.

    No threshold may cost exactly the budget on our half: then it is a mixture of its two neighbours, which is what a
    coarse score such as patience gets for nothing here.
    """
    swept = curve(fit_half, policy, metrics[0])
    cost = swept.mean_exits / fit_half.layer_numbers[-1]  # falls
    faster = int((cost > budget + 1e-9).sum())
    if faster == len(cost):
        return None
    pair = [faster - 1, faster]
    slow, fast = cost[pair].tolist()
    part = (budget - fast) / (slow - fast)  # of the slower one
    mixed = np.zeros(2)
    for weight, place in zip((part, 1 - part), pair, strict=True):
        measured = [measure(test_half, policy, swept.thresholds[place].item(), metric) for metric in metrics]
        score, layers = mean(one.score or 0.0 for one in measured), measured[0].mean_exit
        mixed += weight * np.array([score, layers / test_half.layer_numbers[-1]])
    return float(mixed[0]), float(mixed[1])


def task_of(runs: Path, task: str, seeds: int, splits: int) -> Figures:
    """Everything about one task: means over seeds and splits, and differences from the best policy of a paper."""
    metrics = TASKS[task].metrics
    traces = [Trace.load(runs / task / f"weighted-6-{seed}.safetensors") for seed in range(seeds)]
    found = [one_split(trace, metrics, split) for trace in traces for split in range(splits)]
    names = list(found[0])
    areas = {name: np.array([one[name]["area"] for one in found]) for name in names}
    papers = [name for name in names if name not in OURS]
    best = max(papers, key=lambda name: areas[name].mean())
    full = mean(mean(layerwise(trace, metric)[-1] for metric in metrics) for trace in traces)
    rows = {name: row([one[name] for one in found], areas[name] - areas[best]) for name in names}
    errors: Figures = {}
    if "margin, tempered" in names:
        for when in ("error_before", "error_after"):
            errors[when] = np.mean([one["margin, tempered"][when] for one in found], axis=0).round(4).tolist()
    return {
        "rows": len(traces[0]),
        "metrics": metrics,
        "full": round(full, 4),
        "best_of_papers": best,
        "policies": rows,
        **errors,
    }


def few_and_others(traces: list[Trace], splits: int = 5) -> Figures:
    """Areas on CLINC150 where numbers are fitted on fewer rows, or on rows of other classes than those reported.

    Means over seeds and splits, in the accuracy's unit, of what margin alone has and of how far others are ahead of it.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for trace in traces:
        for split in range(splits):
            random = torch.Generator().manual_seed(split)
            fit_half, test_half = (
                trace.take(rows) for rows in torch.randperm(len(trace), generator=random).tensor_split(2)
            )
            for size in (*SIZES, len(fit_half)):
                found.setdefault(f"{size} rows", []).append(areas(fit_half.take(torch.arange(size)), test_half))
            classes = torch.randperm(trace.logits.shape[-1], generator=random).tensor_split(2)
            known, others = (torch.isin(labels_of(trace), half).nonzero().squeeze(1) for half in classes)
            found.setdefault("other intents", []).append(areas(trace.take(known), trace.take(others)))
            mixed = torch.randperm(len(others), generator=random)[: len(others) // 2]
            same = trace.take(others[mixed]), trace.take(others[~torch.isin(torch.arange(len(others)), mixed)])
            found.setdefault("the same intents, other rows", []).append(areas(*same))
    return {name: {key: mean(one[key] for one in entry) for key in entry[0]} for name, entry in found.items()}


def areas(fitted_on: Trace, test_half: Trace) -> dict[str, float]:
    """Of margin on the rest, and how far fitted policies are ahead of it."""
    made = {name: policies(fitted_on)[name] for name in ("margin", *OURS)}
    found = {name: line_area(policy, test_half) for name, policy in made.items()}
    margin = found.pop("margin")
    return {"margin": margin} | {name: value - margin for name, value in found.items()}


def line_area(policy: Policy, test_half: Trace) -> float:
    """Mean accuracy from 25 to 100 % of the layers."""
    return float(np.interp(SHARES, *line_of(policy, test_half, ("accuracy",))).mean())


def row(found: list[Figures], ahead: np.ndarray) -> Figures:
    """One policy's means, and how far it is ahead of the best policy of a paper."""
    points = []
    for entry in zip(*(one["points"] for one in found), strict=True):
        reached = [point for point in entry if point is not None]
        points.append(np.mean(reached, axis=0).round(4).tolist() if len(reached) == len(entry) else None)
    low, high = np.quantile(ahead, (0.025, 0.975))
    return {
        "points": points,
        "area": round(mean(one["area"] for one in found), 4),
        "ahead": [round(float(value), 4) for value in (ahead.mean(), low, high)],
        "wins": round(float((ahead > 0).mean()), 2),
        "line": np.mean([one["line"] for one in found], axis=0).round(4).tolist(),
    }


def page(results: Figures) -> str:
    """The results in Markdown: where from, how to read them, the table."""
    tasks = results["tasks"]
    lines = ["| task | policy | 25 % | 33 % | 50 % | 67 % | area | ahead of the best paper's |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for task, one in tasks.items():
        title = f"{task} ({' and '.join(one['metrics'])}, full {one['full']:.3f})"
        for name, entry in one["policies"].items():
            middle, low, high = (100 * value for value in entry["ahead"])
            ahead = "(the best)" if name == one["best_of_papers"] else f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"
            lines.append(table_row(title, name, [entry["points"]], [entry["area"]], ahead))
            title = ""
    classes = [one["policies"] for one in tasks.values() if "gain" in one["policies"]]
    title = f"mean of {len(classes)} tasks"
    for name in CLASSES | dict.fromkeys(OURS):
        found = [one[name] for one in classes]
        lines.append(
            table_row(title, name, [entry["points"] for entry in found], [entry["area"] for entry in found], "")
        )
        title = ""
    costs = [
        abs(point[1] - budget)
        for one in tasks.values()
        for entry in one["policies"].values()
        for point, budget in zip(entry["points"], BUDGETS, strict=True)
        if point
    ]
    errors = [
        f"- {task}: {', '.join(f'{100 * value:.0f}' for value in one['error_before'])} before, "
        f"{', '.join(f'{100 * value:.0f}' for value in one['error_after'])} after"
        for task, one in tasks.items()
        if "error_before" in one
    ]
    setting = (
        f"{as_lines(results)} {results['seeds']} seeds, {results['splits']} halves each; 6 layers, objective weighted."
        "\n\n"
        "Columns: score at a budget of layers, whose threshold (or mixture of two) was chosen on the other half; mean "
        "score from 25 to 100 % of the layers (area). A dash: the policy cannot be that fast, and its area has "
        "everybody at one exit there. Last: area, in hundredths, ahead of the best policy of a paper (best in "
        "hindsight), mean and the middle 95 % of the halves and seeds. Halves share their rows, so this tells of seeds "
        "and of what was fitted, not of new data.\n\n"
        f"Layers run on the half that reports: at most {100 * max(costs):.1f} % of all from the budget, on average."
    )
    head = f"| fitted on | margin | {' | '.join(OURS)} |"
    few = [head, "|" + "---|" * (2 + len(OURS))]
    for name, one in results["few"].items():
        ahead = " | ".join(f"{100 * one[key]:+.2f}" for key in OURS)
        few.append(f"| {name} | {one['margin']:.4f} | {ahead} |")
    fewer = (
        "Fitted on fewer rows, and on rows of other classes: on CLINC150, margin's area, and how far the others are "
        "ahead of it, in hundredths. Every size is reported on the same halves, intents on theirs."
    )
    calibrated = "Calibration error of the six exits, in %, without and with fitted temperatures:"
    parts = [
        "# Fitted policies against the papers'",
        setting,
        READING.read_text().strip() if READING.exists() else "",
        "\n".join(lines),
    ]
    return "\n\n".join([*parts, fewer, "\n".join(few), calibrated, "\n".join(errors)]) + "\n"


def table_row(title: str, name: str, points: list[Any], areas: list[float], ahead: str) -> str:
    """One line of the table, mean over tasks."""
    cells = [f"{mean(point[0] for point in entry):.3f}" if all(entry) else "-" for entry in zip(*points, strict=True)]
    shown = f"**{name}**" if name in OURS else name
    return f"| {title} | {shown} | {' | '.join(cells)} | {mean(areas):.4f} | {ahead} |"


def draw(results: Figures, path: Path) -> None:
    """Score against the share of layers, one panel a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).flatten()
    styles = {
        "consistency": ("C3", 2.2),
        "gain": ("C1", 1.8),
        "margin, per exit": ("C0", 2.2),
        "everybody at one exit": ("0.6", 1.2),
    }
    colours = {
        "margin": "C6",
        "patience": "C2",
        "pcee 2": "C4",
        "divergence": "C5",
        "stability 1": "C0",
        "stability 2": "C2",
    }
    for axes, (task, one) in zip(panels, results["tasks"].items(), strict=False):
        for name, entry in one["policies"].items():
            if name in styles or name in colours:
                colour, width = styles.get(name, (colours.get(name), 1.2))
                axes.plot(100 * SHARES, entry["line"], color=colour, linewidth=width, label=name)
        axes.axhline(one["full"], color="black", linewidth=0.6, linestyle=":")
        axes.set_title(task)
        axes.set_xlabel("layers run, %")
        axes.set_ylabel(" and ".join(one["metrics"]))
        axes.grid(alpha=0.25)
    for axes in panels[len(results["tasks"]) :]:
        axes.axis("off")
    labels = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(labels.values(), labels, loc="center", frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Replay all, write results, table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/training"), help="where the traces are")
    parser.add_argument("--tasks", default="sst2,cola,mrpc,clinc150,sick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--few", action="store_true", help="the second part alone, into the results that are there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    target = options.results / "lookahead.json"
    if options.few:
        results: Figures = json.loads(target.read_text())
    else:
        tasks = {task: task_of(options.runs, task, options.seeds, options.splits) for task in options.tasks.split(",")}
        results = {**provenance(), "seeds": options.seeds, "splits": options.splits, "budgets": BUDGETS, "tasks": tasks}
    traces = [Trace.load(options.runs / "clinc150" / f"weighted-6-{seed}.safetensors") for seed in range(options.seeds)]
    results["few"] = few_and_others(traces)
    target.write_text(json.dumps(results) + "\n")
    draw(results, Path(__file__).parent.parent / "docs" / "lookahead.png")
    (options.results / "lookahead.md").write_text(page(results))


if __name__ == "__main__":
    main()
