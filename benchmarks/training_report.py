"""The results of `training.py` as JSON and as tables, beside the figures of the papers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from machine import as_lines, provenance

RESULTS = Path(__file__).parent / "results"
READING = RESULTS / "training_reading.md"
SETTING = ("task", "depth", "metrics", "rows", "reported_rows", "recipe")  # the same for all runs of a table
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
    """Add the finished runs to `results/training.json`, and write `results/training.md` from it.

    A row reported before stays, unless the runs have its task, depth and objective with at least as many seeds.

    Args:
        runs: the folder of results.
        wanted: task, objective, depth and seed of every cell of the plan; those without a result are named.

    Raises:
        SystemExit: a run differs from the others of its table in more than objective and seed.
    """
    file = RESULTS / "training.json"
    before = json.loads(file.read_text()) if file.exists() else {"about": [], "tables": []}
    results = [json.loads(run.read_text()) for run in sorted(runs.glob("*/*.json"))]
    tables = {(table["task"], table["depth"]): table for table in before["tables"]}
    for key in dict.fromkeys((run["task"], run["depth"]) for run in results):
        tables[key] = _extended(tables.get(key), [run for run in results if (run["task"], run["depth"]) == key], wanted)
    plan = [(cell["task"], cell["depth"]) for cell in wanted]
    ordered = list({key: tables[key] for key in [*plan, *tables] if key in tables}.values())
    rows = [
        (table["task"], name, table["depth"], row) for table in ordered for name, row in table["objectives"].items()
    ]
    have = {(*row[:-1], seed) for row in rows for seed in row[-1]["seeds"]}
    missing = [cell for cell in wanted if (cell["task"], _row(cell), cell["depth"], cell["seed"]) not in have]
    new = [now for now in [provenance()] if ordered != before["tables"] and now not in before["about"]]
    result = {
        "about": before["about"] + new,
        "cpu_hours": sum(len(row["seeds"]) * row["cpu_seconds"] for *_, row in rows) / 3600,
        "runs": sum(len(row["seeds"]) * (len(row["layers"]) if name == "single" else 1) for _, name, _, row in rows),
        "missing": ["/".join(map(str, cell.values())) for cell in missing],
        "tables": ordered,
    }
    file.write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "training.md").write_text(page(result))


def _row(run: Run) -> str:
    return "single" if run["objective"].startswith("single-") else run["objective"]


def _extended(table: Run | None, results: list[Run], wanted: list[Run]) -> Run:
    """A table, or a new one, with the runs that belong there."""
    table = table or {name: results[0][name] for name in SETTING} | {"objectives": {}}
    rows = dict(table["objectives"])
    for run in results:
        if other := [name for name in SETTING if run[name] != table[name]]:
            raise SystemExit(f"{run['task']}, {run['depth']} layers: {run['objective']} has other {', '.join(other)}")
    for name in dict.fromkeys(map(_row, results)):
        seeds = _whole([run for run in results if _row(run) == name])
        if seeds and len(seeds) >= len(rows.get(name, {"seeds": ()})["seeds"]):
            rows[name] = summary(seeds)
    return {**table, "objectives": {name: rows[name] for name in [*map(_row, wanted), *rows] if name in rows}}


def _whole(runs: list[Run]) -> list[Run]:
    """One run a seed, with all exits: single exits are put together; seeds that lack one are left out."""
    joined = []
    for seed in sorted({run["seed"] for run in runs}):
        models = sorted((run for run in runs if run["seed"] == seed), key=lambda run: run["layers"])
        merged = {name: [value for run in models for value in run[name]] for name in ("scores", "layers")}
        spent = {name: sum(run[name] for run in models) for name in ("steps", "cpu_seconds")}
        joined.append({**models[0], **merged, **spent})
    return [run for run in joined if len(run["layers"]) == run["depth"]]


def summary(runs: list[Run]) -> Run:
    """Means over seeds, one run each, and the standard deviation where there are several."""
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
        "All objectives have one recipe, set after trial runs on the rows reported (see the reading); since then",
        "nothing is chosen on these rows but the exit called *best*: the last step counts. *Average* is the mean over",
        "the exits, *best* the best exit of each run; both are means over the seeds, with the standard deviation",
        "between seeds. Objectives of two stages run every stage for all epochs, so they take twice the optimiser",
        "steps; in the second the encoder stands still. *single* is one model for each exit, cut there and trained",
        "alone: its steps and seconds are the sum. *bypass* is joint training on exits with bypasses of rank 16;",
        "*bypass-4* and *bypass-64* have other ranks, *bypass-ffn* starts behind the attention. Seconds are processor",
        "time of training. Values to be predicted are scaled to mean 0 and deviation 1 on the training rows.",
        "",
        *map(as_lines, result["about"]),
        f"{result['runs']} runs, {result['cpu_hours']:.1f} hours of one core.",
        "",
        READING.read_text().rstrip(),
        "",
    ]
    for table in result["tables"]:
        lines += _table(table)
    lines += [PUBLISHED]
    if result["missing"]:
        lines += ["## Not run", "", ", ".join(result["missing"]) + ".", ""]
    return "\n".join(lines)


def _table(table: Run) -> list[str]:
    layers = max((figures["layers"] for figures in table["objectives"].values()), key=len, default=[])
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
    for name, figures in table["objectives"].items():
        exits = " | ".join(f"{100 * score:.1f}" for score in figures["scores"])
        both = f"{_spread(figures['average'], figures['average_sd'])} | {_spread(figures['best'], figures['best_sd'])}"
        spent = f"{len(figures['seeds'])} | {figures['steps']} | {figures['cpu_seconds']:.0f}"
        lines.append(f"| {name} | {exits} | {both} | {spent} |")
    return [*lines, ""]


def _spread(value: float, sd: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
