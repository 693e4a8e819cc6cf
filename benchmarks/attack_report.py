"""What `attack.py` found, as JSON and as Markdown. The searches kept what every exit says; the rest is replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from machine import as_lines, provenance
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint, read_points
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
READING = RESULTS / "attack_reading.md"
BUDGETS = (4, 5)
DRAWS = 2000
TITLES = {"ag": "AG News", "snli": "SNLI"}
FOOL_COLUMNS = (
    *(
        "system",
        "speed-up on validation",
        "accuracy",
        "after attack",
        "less full depth's",
        "less one layer's",
        "under all texts found",
    ),
    *("queries", "words changed", "mean exit before", "after"),
)
SLOW_COLUMNS = (
    "system",
    "exit before",
    "after",
    "of what was saved",
    "at full depth before",
    "after",
    "queries",
    "words changed",
)
BUDGET_COLUMNS = ("system", "budget", "accuracy", "exit", "accuracy, slowed", "exit, slowed")
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Attacked:
    """The rows that were attacked with one model.

    Attributes:
        points: of its systems.
        labels: (N,).
        exits: what every exit says of the rows as they are, (N, L, C).
        attacks: for each row, how each search ended, by "system, aim".
    """

    points: dict[str, OperatingPoint]
    labels: Tensor
    exits: Tensor
    attacks: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> Attacked:
        """What `attack.py` left in a folder."""
        rows = [json.loads(line) for line in (folder / "attacked.jsonl").read_text().splitlines()]
        labels, exits = (torch.tensor([row[name] for row in rows]) for name in ("label", "exits"))
        return cls(read_points(folder / "points.json"), labels, exits, [row["attacks"] for row in rows])

    def take(self, count: int) -> Attacked:
        """The first rows alone."""
        return Attacked(self.points, self.labels[:count], self.exits[:count], self.attacks[:count])

    def ends(self, name: str) -> Tensor:
        """What every exit says of the texts that a search ended at, or of the row where there was none; (N, L, C)."""
        pairs = zip(self.attacks, self.exits, strict=True)
        return torch.stack([torch.tensor(row[name]["exits"]) if name in row else exits for row, exits in pairs])

    def of(self, name: str, what: str, reached: bool = False) -> np.ndarray:
        """A number of each search, NaN where there was none; of those that reached their goal alone, if asked."""
        rows = [row.get(name) for row in self.attacks]
        return np.array([row[what] if row and (row["reached"] or not reached) else np.nan for row in rows], dtype=float)

    def outcomes(self, point: OperatingPoint, exits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Whether a system is right, and its exit, for each row; (N,) both."""
        answers = replay(Trace(exits.transpose(0, 1)), point.policy, point.thresholds)
        right = answers.logits.argmax(dim=-1) == self.labels
        return right.numpy().astype(float), answers.exit_layers.numpy().astype(float)


def budgeted(point: OperatingPoint, most: int) -> OperatingPoint:
    """The same, but whoever has come to layer `most` is answered there."""
    return OperatingPoint(
        point.policy, point.thresholds[: most - 1] + (-torch.inf,) * (len(point.thresholds) - most + 1)
    )


def fooled(model: Attacked, name: str) -> dict[str, np.ndarray]:
    """One system under the attack on its answer: numbers of each row, (N,) each."""
    point, aim = model.points[name], f"{name}, fool"
    right, exits = model.outcomes(point, model.exits)
    survived, later = model.outcomes(point, model.ends(aim))
    everything = [model.outcomes(point, model.ends(f"{other}, fool"))[0] for other in model.points]
    return {
        "accuracy": right,
        "after": right * survived,
        "all_texts": right * np.min(everything, axis=0),
        "queries": model.of(aim, "queries"),
        "changed": model.of(aim, "changed", reached=True),
        "exit": exits,
        "exit_after": later,
    }


def slowed(model: Attacked, name: str) -> dict[str, np.ndarray]:
    """One system under the attack on its time: numbers of each row, (N,) each."""
    point, aim = model.points[name], f"{name}, slow"
    depth, ends = model.exits.shape[1], model.ends(aim)
    results: dict[str, np.ndarray] = {"queries": model.of(aim, "queries"), "changed": model.of(aim, "changed")}
    for most in (*BUDGETS, depth):
        for when, exits in (("before", model.exits), ("after", ends)):
            right, layers = model.outcomes(budgeted(point, most), exits)
            results |= {f"accuracy_{when}_{most}": right, f"exit_{when}_{most}": layers}
    deepest = {when: (results[f"exit_{when}_{depth}"] == depth).astype(float) for when in ("before", "after")}
    return results | {f"deepest_{when}": entry for when, entry in deepest.items()}


def interval(numbers: np.ndarray, value: Callable[[np.ndarray], Any] = lambda rows: np.nanmean(rows)) -> list[float]:
    """A value of rows and the middle 95 % of it over bootstrap draws of rows; numbers: (N, ...)."""
    generator = np.random.default_rng(0)
    drawn = [value(numbers[generator.integers(len(numbers), size=len(numbers))]) for _ in range(DRAWS)]
    return [round(float(entry), 4) for entry in (value(numbers), *np.quantile(drawn, (0.025, 0.975)))]


def pooled(models: list[Attacked], numbers: Callable[[Attacked, str], dict[str, np.ndarray]], name: str) -> Numbers:
    """Every number of a system with one column a model, (N, S): a row is drawn with all its models."""
    results = [numbers(model, name) for model in models]
    return {key: np.stack([one[key] for one in results], axis=-1) for key in results[0]}


def of_task(models: list[Attacked]) -> Numbers:
    """All figures of one data set: value, low, high."""
    fools = {name: pooled(models, fooled, name) for name in models[0].points}
    slow_names = [name for name, point in models[0].points.items() if point.policy["name"] != "fixed"]
    slows = {name: pooled(models, slowed, name) for name in slow_names}
    depth = models[0].exits.shape[1]
    results: Numbers = {"rows": len(models[0].labels), "models": len(models), "depth": depth, "fool": {}, "slow": {}}
    for name, entry in fools.items():
        measured = [model.points[name].measured for model in models]
        results["fool"][name] = {key: interval(values) for key, values in entry.items()} | {
            "validation_speedup": [round(one.speedup, 3) for one in measured if one],
            "thresholds": [model.points[name].to_json()["thresholds"][0] for model in models],
            "by_model": entry["after"].mean(axis=0).round(4).tolist(),
            "less_full": interval(entry["after"] - fools["full"]["after"]),
            "less_one_layer": interval(entry["after"] - fools["one layer"]["after"]),
        }
    for name, entry in slows.items():
        pair = np.stack((entry[f"exit_before_{depth}"], entry[f"exit_after_{depth}"]), axis=-1)  # (N, S, 2)
        results["slow"][name] = {key: interval(values) for key, values in entry.items()}
        results["slow"][name]["won_back"] = interval(pair, lambda rows: won_back(rows, depth))
    return results


def won_back(exits: np.ndarray, depth: int) -> float:
    """The share of the layers saved that the attacker gets to run after all; exits: (N, S, 2) before and after."""
    before, after = exits.mean(axis=(0, 1))
    return float((after - before) / (depth - before))


def share(value: list[float]) -> str:
    """In per cent, with the interval."""
    middle, low, high = (100 * entry for entry in value)
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def layers(value: list[float]) -> str:
    """A mean exit, with the interval."""
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)]


def tables(figures: Numbers) -> list[str]:
    """The three tables of a data set."""
    depth = figures["depth"]
    fool = [
        (
            *(name, ", ".join(f"{entry:.2f}" for entry in one["validation_speedup"]) or "-"),
            *(share(one[key]) for key in ("accuracy", "after", "less_full", "less_one_layer", "all_texts")),
            *(f"{one['queries'][0]:.1f}", f"{100 * one['changed'][0]:.1f} %"),
            *(f"{one[key][0]:.2f}" for key in ("exit", "exit_after")),
        )
        for name, one in figures["fool"].items()
    ]
    slow = [
        (
            *(name, layers(one[f"exit_before_{depth}"]), layers(one[f"exit_after_{depth}"]), share(one["won_back"])),
            *(share(one[f"deepest_{when}"]) for when in ("before", "after")),
            *(f"{one['queries'][0]:.1f}", f"{100 * one['changed'][0]:.1f} %"),
        )
        for name, one in figures["slow"].items()
    ]
    budget = [
        (
            *(name, "none" if most == depth else str(most)),
            *(f"{100 * one[f'accuracy_before_{most}'][0]:.1f}", f"{one[f'exit_before_{most}'][0]:.2f}"),
            *(f"{100 * one[f'accuracy_after_{most}'][0]:.1f}", f"{one[f'exit_after_{most}'][0]:.2f}"),
        )
        for name, one in figures["slow"].items()
        for most in (depth, *reversed(BUDGETS))
    ]
    parts = ("The answer attacked", FOOL_COLUMNS, fool), ("The time attacked", SLOW_COLUMNS, slow)
    lines = []
    for title, columns, rows in (*parts, ("The time attacked, with a depth budget", BUDGET_COLUMNS, budget)):
        lines += ["", f"### {title}", "", *table(columns, rows)]
    return lines


SETTING = """\
The default encoder (6 layers, width 384), `weighted` objective, trained by `attack_models.py`, run in bfloat16.
Rows are the first of TextFooler's. Accuracies and shares in per cent, in brackets the middle 95 % of bootstrap
draws of rows (with all their models). Thresholds: the strictest with a speed-up of {speedup:g} on validation rows.
"One layer" has no rule: everybody leaves at the layer that costs as much. Of SNLI the second sentence is attacked,
as in TextFooler.

*After attack*: right before, and not fooled. *Under all texts found*: right before, and fooled by none of the
texts that the searches against any of the five systems ended at. *Queries* are means over the rows attacked, which
are those answered right, or not yet at full depth; *words changed* is of those fooled, or of all slowed.
Candidates must keep a cosine of {least_similarity:g} to the original, mean pooling of the encoder that the models
were trained from: a stand-in for TextFooler's Universal Sentence Encoder, and closer to the models than that would
be. Parts of speech are not checked. So no figure here can be held against a published one; what can be compared is
the systems. The attack on time sees the answer, its probability and the exit taken, and keeps the answer: without
a budget it costs no accuracy. With a depth budget whoever comes to that layer is answered there (thresholds of
-inf from it on); the slowed texts are those found without a budget."""


def page(results: Numbers) -> str:
    """The results as Markdown."""
    lines = ["# Attacks by synonyms", "", SETTING.format(**results["setting"]), "", as_lines(results["about"]), ""]
    lines += [READING.read_text().strip()] if READING.exists() else []
    for task, figures in results["tasks"].items():
        title = f"{TITLES[task]}: {figures['rows']} rows, {figures['models']} model(s) of different seeds"
        lines += ["", f"## {title}", *tables(figures)]
    return "\n".join(lines) + "\n"


def write(runs: Path, tasks: list[str], setting: Numbers) -> None:
    """Write what is there; of the models of a task as many rows as all of them have."""
    results: Numbers = {"about": provenance(), "setting": setting, "tasks": {}}
    for task in tasks:
        models = [Attacked.load(file.parent) for file in sorted(runs.glob(f"{task}-*/attacked.jsonl"))]
        if models:
            count = min(len(model.labels) for model in models)
            results["tasks"][task] = of_task([model.take(count) for model in models])
    (RESULTS / "attack.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "attack.md").write_text(page(results))
    print(page(results))
