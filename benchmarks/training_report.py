"""The results of `training.py` as JSON and as tables, beside the figures of the papers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from machine import as_lines, provenance

RESULTS = Path(__file__).parent / "results"
READING = RESULTS / "training_reading.md"
Run = dict[str, Any]

PUBLISHED = """\
## The papers' own figures

Mean over the exits / best exit, of 12-layer models on GLUE's development sets; encoders, data sizes and searches over
learning rates differ from ours, so only the order of the rows can be compared.

BADGE (Zhu et al., 2023), table 1, ALBERT-base, median of five seeds:

| training | RTE | MRPC, (acc+F1)/2 | MNLI |
|---|---|---|---|
| single exits (one model for each layer) | 67.5 / 77.6 | 85.4 / 89.1 | 76.4 / 83.7 |
| two-stage | 68.9 / 77.6 | 83.0 / 89.1 | 76.2 / 83.7 |
| joint | 66.8 / 72.5 | 84.4 / 87.9 | 76.0 / 83.8 |
| joint, attention exits | 67.5 / 75.9 | 84.8 / 87.9 | 76.8 / 83.2 |
| gradient equilibrium | 67.3 / 77.4 | 84.2 / 88.4 | 76.5 / 83.6 |
| alternating | 68.5 / 77.8 | 84.6 / 88.3 | 76.6 / 82.9 |
| Global Past-Future | 68.1 / 78.4 | 84.3 / 88.1 | 75.9 / 82.9 |
| bypass (BADGE) | 70.2 / 77.9 | 86.0 / 89.6 | 77.8 / 83.8 |

BADGE, table 6, RTE: joint, alternating, bypass with BERT-base 61.5 / 68.9, 61.9 / 69.3, 62.7 / 70.5; with ElasticBERT
62.3 / 70.7, 63.1 / 70.9, 64.5 / 72.3.

BERxiT (Xin et al., EACL 2021) compares joint, two-stage and alternating in plots (figures 2 and 3) and, in section 5.3,
by the area of one quality-saving curve above the other, joint over alternating and alternating over joint: RTE 0.4 and
13.5, MRPC 0.9 and 8.8, SST-2 0.2 and 18.2. Table 2 has alternating with BERT-base on the test sets, as a share of the
plain model's score at a share of layers saved: RTE 101 % at 44 %, MRPC 99 % at 30 %, SST-2 98 % at 65 %, STS-B 95 % at
50 %.
"""


def write(runs: Path, wanted: list[Run]) -> None:
    """Read every finished run, write `results/training.json` and `results/training.md`.

    Args:
        runs: the folder of results.
        wanted: task, objective, depth and seed of every cell of the plan; those without a result are named.
    """
    found = [json.loads(file.read_text()) for file in sorted(runs.glob("*/*.json"))]
    have = {_key(run) for run in found}
    missing = ["/".join(map(str, _key(cell))) for cell in wanted if _key(cell) not in have]
    groups: dict[tuple[str, int], dict[str, list[Run]]] = {}
    rank = {(cell["task"], cell["depth"]): place for place, cell in reversed(list(enumerate(wanted)))}
    for run in sorted(found, key=lambda run: rank.get((run["task"], run["depth"]), len(wanted))):
        name = "single" if run["objective"].startswith("single-") else run["objective"]
        groups.setdefault((run["task"], run["depth"]), {}).setdefault(name, []).append(run)
    order = list(dict.fromkeys(cell["objective"] for cell in wanted))
    told = [
        {"task": task, "depth": depth, **_setting(rows), "objectives": _summaries(rows, order)}
        for (task, depth), rows in groups.items()
    ]
    result = {
        "about": provenance(),
        "cpu_hours": sum(run["cpu_seconds"] for run in found) / 3600,
        "runs": len(found),
        "missing": missing,
        "tables": told,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "training.md").write_text(page(result))


def _key(cell: Run) -> tuple[str, str, int, int]:
    return cell["task"], cell["objective"], cell["depth"], cell["seed"]


def _setting(rows: dict[str, list[Run]]) -> Run:
    one = next(iter(rows.values()))[0]
    return {name: one[name] for name in ("metrics", "rows", "reported_rows", "recipe")}


def _summaries(rows: dict[str, list[Run]], order: list[str]) -> dict[str, Run]:
    ranked = sorted(rows, key=lambda name: order.index(name) if name in order else len(order))
    return {name: summary(_as_one_model(rows[name]) if name == "single" else rows[name]) for name in ranked}


def _as_one_model(singles: list[Run]) -> list[Run]:
    """One row of exits a seed, out of models that have one exit each; seeds that lack a model are left out."""
    joined = []
    for seed in sorted({run["seed"] for run in singles}):
        models = sorted((run for run in singles if run["seed"] == seed), key=lambda run: run["layers"])
        if len(models) == models[0]["depth"]:
            merged = {name: [value for run in models for value in run[name]] for name in ("scores", "layers")}
            spent = {name: sum(run[name] for run in models) for name in ("steps", "seconds", "cpu_seconds")}
            joined.append({**models[0], **merged, **spent})
    return joined


def summary(runs: list[Run]) -> Run:
    """Means over seeds, and the standard deviation where there are several.

    Args:
        runs: of one objective on one task, a seed each; none gives no scores.
    """
    if not runs:
        return {"seeds": []}
    averages = [mean(run["scores"]) for run in runs]
    bests = [max(run["scores"]) for run in runs]
    return {
        "seeds": [run["seed"] for run in runs],
        "layers": runs[0]["layers"],
        "scores": [mean(exits) for exits in zip(*(run["scores"] for run in runs), strict=True)],
        "average": mean(averages),
        "average_sd": stdev(averages) if len(runs) > 1 else None,
        "best": mean(bests),
        "best_sd": stdev(bests) if len(runs) > 1 else None,
        "steps": runs[0]["steps"],
        "cpu_seconds": mean(run["cpu_seconds"] for run in runs),
    }


def page(result: Run) -> str:
    """The results as Markdown."""
    lines = [
        "# Training objectives",
        "",
        "The default encoder (6 layers, width 384, mean pooling, linear exits); for 12 layers, each of them twice.",
        "Fixed recipe, the last step counts, nothing is chosen on the rows reported. *Average* is the mean over the",
        "exits, *best* the best exit of each run; both are means over the seeds, with the standard deviation between",
        "seeds. Objectives of two stages run every stage for all epochs, so they take twice the optimiser steps; in",
        "the second the encoder stands still. *single* is one model for each exit, cut there and trained alone: its",
        "steps and seconds are the sum. *bypass* is joint training on exits with bypasses of rank 16; *bypass-4* and",
        "*bypass-64* have other ranks, *bypass-ffn* starts behind the attention. Seconds are processor time of",
        "training. Values to be predicted are scaled to mean 0 and deviation 1 on the training rows.",
        "",
        as_lines(result["about"]),
        f"{result['runs']} runs, {result['cpu_hours']:.1f} hours of one core.",
        "",
    ]
    if READING.exists():
        lines += [READING.read_text().rstrip(), ""]
    for table in result["tables"]:
        lines += _table(table)
    lines += [PUBLISHED]
    if result["missing"]:
        lines += ["## Not run", "", ", ".join(result["missing"]) + ".", ""]
    return "\n".join(lines)


def _table(table: Run) -> list[str]:
    layers = max((told["layers"] for told in table["objectives"].values() if told["seeds"]), key=len, default=[])
    recipe = table["recipe"]
    metric = table["metrics"][0] if len(table["metrics"]) == 1 else f"({' + '.join(table['metrics'])}) / 2"
    lines = [
        f"## {table['task']}, {table['depth']} layers: {metric}",
        "",
        f"{table['rows']} rows to learn from, {table['reported_rows']} reported; {recipe['num_train_epochs']} epochs,",
        f"batches of {recipe['per_device_train_batch_size']}, learning rate {recipe['learning_rate']:g} (exits",
        f"{recipe['exit_learning_rate']:g}), at most {recipe['max_length']} tokens, bfloat16.",
        "",
        "| objective | " + " | ".join(map(str, layers)) + " | average | best | seeds | steps | seconds |",
        "|---|" + "---|" * (len(layers) + 5),
    ]
    for name, told in table["objectives"].items():
        if told["seeds"]:
            exits = " | ".join(f"{100 * score:.1f}" for score in told["scores"])
            both = f"{_spread(told['average'], told['average_sd'])} | {_spread(told['best'], told['best_sd'])}"
            spent = f"{len(told['seeds'])} | {told['steps']} | {told['cpu_seconds']:.0f}"
            lines.append(f"| {name} | {exits} | {both} | {spent} |")
    return [*lines, ""]


def _spread(value: float, sd: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
