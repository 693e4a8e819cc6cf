"""What does an exit before the first layer save, at which loss, on seven tasks?

    python benchmarks/lexical.py --data ../shared/data

The default encoder with six exits (objective `weighted`), three seeds a task, and onto each finished model a lexical
exit, fitted on the rows that the encoder was trained on. All else is replay of traces of other rows: policy margin with
a threshold for each exit, chosen on a random half of them and reported on the other, SPLITS times for each seed.
Compared are the model without the lexical exit, with it, and a cascade of the lexical exit and the last one; and,
without any layer, TF-IDF and static embeddings, each with logistic regression.

Models and traces under `--runs` are taken up again (`lexical_models.py`). Writes `benchmarks/results/lexical.json` and
`.md`. Some two hours on one core, most of it training.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lexical_models import (
    CLASSIFIERS,
    TASKS,
    Cell,
    add_options,
    cells,
    encoder_trace,
    logits_of,
    new_rows,
    trace_of,
    train,
)
from machine import as_lines, provenance
from offramp.calibration.calibrate import calibrate
from offramp.calibration.exit_choice import choose_exits
from offramp.evaluation.measure import replay_point
from offramp.evaluation.metrics import layerwise
from offramp.policies.fitting import fit_default_policy
from offramp.types.operating_point import Target
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
ASKED, SPLITS, RESAMPLES = (0.0, 0.005, 0.01, 0.02), 10, 1000
WITHOUT, WITH, CASCADE = "without", "with", "cascade"
LAYERS = {WITHOUT: range(1, 7), WITH: range(7), CASCADE: (0, 6)}
"""The exits that each system reads; 0 is the lexical one."""


@dataclass(frozen=True)
class Draw:
    """One choice on a half and its answers to the other half."""

    seed: int
    score: float
    full_score: float
    lost: float
    layers: float
    cost: float
    before_layer_1: float


@dataclass(frozen=True)
class Figures:
    """Means over seeds and draws of a system on a task; shares of 1. `cost` is in MACs, 1 = the full model.

    `interval` is the bootstrap's over rows, `draws` the lowest and highest of 95 % of the draws, `seeds` the mean of
    each seed; all of the share of the full model's score that is lost.
    """

    task: str
    asked: float
    system: str
    score: float
    full_score: float
    lost: float
    interval: tuple[float, float]
    draws: tuple[float, float]
    seeds: list[float]
    layers: float
    layers_by_seed: list[float]
    cost: float
    before_layer_1: float


def draw(trace: Trace, seed: int, split: int, asked: float, rights: Tensor) -> Draw:
    """Choose on a half, report on the other; add its rows' right answers, early and full, to `rights` (N, 2)."""
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(split))
    choose, report = order.tensor_split(2)
    policy, rows = fit_default_policy(trace.take(choose))
    point = calibrate(rows, policy, Target(max_drop=asked))
    reported = trace.take(report)
    _, answers = replay_point(reported, point)
    early, full = (
        (logits.argmax(dim=-1) == reported.labels).double() for logits in (answers.logits, reported.logits[-1])
    )
    rights[report] += torch.stack((early, full), dim=-1)
    exits = torch.searchsorted(torch.tensor(reported.layer_numbers), answers.exit_layers)
    assert reported.macs is not None
    macs = reported.macs.double()
    return Draw(
        seed,
        early.mean().item(),
        full.mean().item(),
        1 - (early.sum() / full.sum()).item(),
        answers.exit_layers.double().mean().item(),
        (macs.gather(0, exits[None]).mean() / macs[-1].mean()).item(),
        (answers.exit_layers == 0).double().mean().item(),
    )


def summary(task: str, asked: float, system: str, draws: list[Draw], rights: Tensor) -> Figures:
    """Return the means of draws, and intervals; `rights` (N, 2) as of `draw`, over all of them."""
    table = torch.tensor([[getattr(one, name) for name in MEANS] for one in draws], dtype=torch.float64)
    score, full_score, lost, layers, cost, before = table.mean(dim=0).tolist()
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(rights), (RESAMPLES, len(rights)), generator=generator)
    early, full = rights[drawn].sum(dim=1).unbind(dim=-1)  # (R,) each
    by_seed = [[one for one in draws if one.seed == seed] for seed in sorted({one.seed for one in draws})]
    return Figures(
        task,
        asked,
        system,
        score,
        full_score,
        lost,
        tuple((1 - early / full).quantile(ends).tolist()),
        tuple(table[:, 2].quantile(ends).tolist()),
        [mean([one.lost for one in some]) for some in by_seed],
        layers,
        [mean([one.layers for one in some]) for some in by_seed],
        cost,
        before,
    )


def pays(cell: Cell) -> int:
    """Return on how many of the halves that choose `offramp train` would have the lexical exit read, of SPLITS."""
    trace, number = trace_of(cell, range(7)), 0
    for split in range(SPLITS):
        choose = torch.randperm(len(trace), generator=torch.Generator().manual_seed(split)).tensor_split(2)[0]
        number += not choose_exits(trace.take(choose), lambda rows: fit_default_policy(rows)[0]).reason
    return number


MEANS = ("score", "full_score", "lost", "layers", "cost", "before_layer_1")


def mean(values: list[float]) -> float:
    """Return the mean of some numbers."""
    return sum(values) / len(values)


def as_markdown(results: list[Figures], alone: dict[str, dict[str, list[float]]], about: dict[str, object]) -> str:
    """A table of all tasks at 1 %, one of the classifiers without a layer, and one for each task."""
    tasks = [task for task in TASKS if any(row.task == task for row in results)]
    missing = [f"{task} ({len(alone[task]['full'])} of 3 seeds)" for task in tasks if len(alone[task]["full"]) < 3]
    missing += [f"{task} (none)" for task in TASKS if task not in tasks]
    parts = [
        "# An exit before the first layer",
        f"Mean of {SPLITS} random halves for each seed; chosen on one half, reported on the other. *Lost*: share of"
        "\nthe full model's right answers (net), with the bootstrap's 95 % interval over rows, and in brackets that of"
        "\nsingle draws. *Layers*: mean number that run, of 6. *Cost*: multiply-accumulates, with all exits on the way,"
        "\nin percent of full depth.\n" + as_lines(about),
    ]
    if missing:
        parts.append(f"Not yet all seeds: {', '.join(missing)}.")
    parts += [READING, "## Asked: lose at most 1 %", table([row for row in results if row.asked == 0.01], "task")]
    chosen = [f"{task} {sum(alone[task]['pays']):.0f} of {SPLITS * len(alone[task]['pays'])}" for task in tasks]
    parts.append(f"Draws whose rows show that the lexical exit pays, so that points read it: {', '.join(chosen)}.")
    parts += ["## Without any layer", classifier_table(alone, tasks)]
    for task in tasks:
        parts += [f"## {task}", table([row for row in results if row.task == task], "asked")]
    return "\n\n".join(parts) + "\n"


def table(rows: list[Figures], first: str) -> str:
    """One line for each task, or level, and system."""
    names = f"| {first} | lexical exit | score (full) | lost | layers | cost | before layer 1 |"
    head = f"{names}\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *(line(row, first) for row in rows)])


def line(row: Figures, first: str) -> str:
    """A system's figures as a line of a table."""
    name = row.task if first == "task" else f"{row.asked:.1%}"
    low, high = row.interval
    lowest, highest = row.draws
    lost = f"{row.lost:.2%}, {low:.2%} to {high:.2%} ({lowest:.2%} to {highest:.2%})"
    shares = f"{row.cost:.1%} | {row.before_layer_1:.1%}"
    return f"| {name} | {row.system} | {row.score:.3f} ({row.full_score:.3f}) | {lost} | {row.layers:.2f} | {shares} |"


def without_layers(cell: Cell) -> dict[str, float]:
    """Return the accuracy of every classifier that reads no layer, of the first exit behind one, and of the last."""
    trace = trace_of(cell, range(7))
    scores, rows = layerwise(trace), new_rows(cell)
    found = {
        name: (logits_of(cell, name)[rows].argmax(dim=-1) == trace.labels).double().mean().item()
        for name in CLASSIFIERS
    }
    return {**found, "first": scores[1], "full": scores[-1]}


def classifier_table(alone: dict[str, dict[str, list[float]]], tasks: list[str]) -> str:
    """The accuracy of every classifier that reads no layer, and of the exits."""
    names = ("tfidf", "static", "lexical", "first", "full")
    titles = "| task | TF-IDF | static embeddings | lexical exit | exit after layer 1 | full model |"
    head = f"{titles}\n|---|---|---|---|---|---|"
    return "\n".join(
        [head, *(f"| {task} | {' | '.join(f'{mean(alone[task][name]):.3f}' for name in names)} |" for task in tasks)]
    )


READING = """**What it says.** Where words decide (intents, topics, kinds of questions) most rows leave before layer
1, at the loss that was asked for. On Banking77 and AG News the lexical exit alone is as good as these encoders, so
that a cascade of the two is as cheap. On CLINC150, SST-2 and TREC it is not, and the exits behind it answer what it
is not sure of for less than the last exit alone. On IMDb the first exits are weak and the cascade is cheaper; TF-IDF
is ahead of all, because it reads whole reviews and the model 128 tokens. Of pairs (SNLI) hardly a row leaves there;
with 5,000 rows to choose on points read that exit all the same, for a third of a percent of the cost. Single draws
are chance: with 250 to 500 rows on either side (SST-2, TREC, Banking77) they lose up to three points more or less
than asked, with the lexical exit and without it. How much the lexical exit learns from soft labels and from token
vectors was chosen on seed 0 of these rows; seeds 1 and 2 had no say in it."""


def main() -> None:
    """Train or take up, fit, record; choose, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    draws: dict[tuple[str, float, str], list[Draw]] = defaultdict(list)
    rights: dict[tuple[str, float, str], Tensor] = {}
    alone: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells(options):
        if not options.no_training:
            train(cell)
        if not cell.is_trained():
            continue
        found = without_layers(cell)
        for name, value in {**found, "pays": pays(cell)}.items():
            alone[cell.task][name].append(value)
        for system, layers in LAYERS.items():
            trace = trace_of(cell, layers)
            for asked in ASKED:
                key = cell.task, asked, system
                counts = torch.zeros(len(trace), 2, dtype=torch.float64)
                draws[key] += [draw(trace, cell.seed, split, asked, counts) for split in range(SPLITS)]
                every = rights.setdefault(key, torch.zeros(len(encoder_trace(cell)), 2, dtype=torch.float64))
                every[new_rows(cell)] += counts
        print(cell.task, cell.seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    order = [(task, asked, system) for task in TASKS for asked in ASKED for system in LAYERS]
    results = [summary(*key, draws[key], rights[key]) for key in order if key in draws]
    about = provenance()
    data = {"about": about, "splits": SPLITS, "alone": alone, "found": [asdict(row) for row in results]}
    (RESULTS / "lexical.json").write_text(json.dumps(data, indent=2) + "\n")
    (RESULTS / "lexical.md").write_text(as_markdown(results, alone, about))


if __name__ == "__main__":
    main()
