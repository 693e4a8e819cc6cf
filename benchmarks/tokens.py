"""Token exit, layer exit and both: what they keep, and what they save in multiply-accumulates and on the clock.

    OMP_NUM_THREADS=1 python benchmarks/tokens.py --data ../shared/data

Trains the default encoder (mean pooling, an exit after every layer) on long texts (IMDB, 256 tokens) and on short ones
(SST-2), without token exit, with a mild schedule and with a hard one; trained models are not trained again, so a killed
run goes on. Writes `benchmarks/results/tokens.json` and `tokens.md`. Thresholds are chosen on other rows than those
reported.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from machine import as_lines, provenance
from offramp.bench.baselines import plain
from offramp.bench.timer import median, time_interleaved
from offramp.calibration.calibrate import calibrate
from offramp.data.batching import collate, encode, length_sorted
from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_examples
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import layerwise
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.model.default_encoder import default_encoder
from offramp.model.flops import macs_ratio
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_folder
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay
from offramp.training.fit import fit
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.trace import Trace

NAMES = ("negative", "positive")
COLUMNS = Columns(text="sentence1", label="label")
PLAIN, FULL = "all stay", "all"
SCHEDULES = {
    PLAIN: None,
    "mild": TokenExit(keep_ratio={2: 0.7, 4: 0.7}),
    "hard": TokenExit(keep_ratio={2: 0.3, 4: 0.5}),
}
POLICY = load_policy("entropy")
TARGETS = {"lose at most 1 %": Target(max_drop=0.01), "half of them": Target(speedup=2)}
SIZES = ("1", "32")
CLOCK = ("batch 1, ms", "speed-up", "batch 32, ms", "speed-up")
READING = """
## Reading

- **Where tokens are few, token exit loses.** SST-2's sentences have 27 tokens; even the mild schedule costs eight
  points of accuracy, and one by one it is hardly faster: picking tokens out costs what they would. Layer exit alone
  keeps the accuracy and is faster.
- **Where tokens are many, the mild schedule is free.** On IMDB it keeps the score, within its error, and saves a third
  of the multiply-accumulates. With layer exit on top ("half of them") it takes a fifth less than layer exit alone, and
  a sixth less on the clock. The hard schedule loses two to three points.
- **The clock follows the count** at batch 32; one by one it falls behind, the more so the shorter the text.
- **"Lose at most 1 %" did not hold** where it let nearly everybody leave at the first two exits (IMDB, mild and hard):
  400 rows chose a threshold that lost five points, or two, on the 800 reported.
- One seed, few rows, one epoch on IMDB; MPEE trains to the end and has 12 layers: its figures are no measure for these.
"""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Task:
    """A data set, and how much of it is used.

    Attributes:
        folder: of the data set.
        tokens: each text is cut to so many.
        train: rows to learn from.
        epochs: passes through them.
        chosen_on: file, first and last row of those that thresholds are chosen on.
        reported_on: the same for those reported.
        timed: how many of those reported are timed.
        rounds: how often.
        start: folder of the data set whose model with the same schedule is trained on; None = the default encoder.
    """

    folder: str
    tokens: int
    train: int
    epochs: int
    chosen_on: tuple[str, int, int]
    reported_on: tuple[str, int, int]
    timed: int
    rounds: int
    start: str | None = None


TASKS = {
    "SST-2": Task("sst2", 128, 6000, 2, ("validation_sentences", 0, 300), ("validation_sentences", 300, 600), 128, 5),
    "IMDB": Task("imdb", 256, 1000, 1, ("validation", 0, 400), ("test", 0, 800), 32, 4, start="sst2"),
}


def read(data: Path, task: Task, part: str, first: int, last: int) -> Examples:
    """Rows `first` to `last` of a part of a data set."""
    results = read_examples(str(data / task.folder / f"{part}.jsonl.gz"), COLUMNS, split=part, label_names=NAMES)
    return replace(results, texts=results.texts[first:last], labels=results.labels[first:last])


def train(data: Path, runs: Path, task: Task, schedule: str, seed: int) -> Path:
    """The folder of a trained model; trained if it is not there yet."""
    folder = runs / task.folder / schedule.replace(" ", "-")
    if (folder / "model.safetensors").exists():
        return folder
    tokenizer = load_tokenizer(default_encoder())
    tokenizer.model_max_length = task.tokens
    set_seed(seed)
    if task.start is None:
        model = MultiExitModel.from_backbone(
            default_encoder(), id2label=dict(enumerate(NAMES)), pooling="mean", token_exit=SCHEDULES[schedule]
        )
    else:
        model = MultiExitModel.from_pretrained(runs / task.start / folder.name)
    rows = read(data, task, "train", 0, task.train)
    recipe = {"num_train_epochs": task.epochs, "seed": seed, "bf16": True, "logging_strategy": "steps"}
    log = fit(model, tokenizer, folder, rows, resume=True, logging_steps=20, **recipe)
    (folder / "log.json").write_text(json.dumps(log))
    return folder


def traces(data: Path, folder: Path, task: Task) -> dict[str, Trace]:
    """Of the rows that thresholds are chosen on, and of those reported; recorded if they are not there yet."""
    results = {}
    for name, part in (("chosen", task.chosen_on), ("reported", task.reported_on)):
        file = folder / f"{name}.safetensors"
        if not file.exists():
            model, tokenizer = load_folder(folder)
            examples = read(data, task, *part)
            tokens = encode(tokenizer, examples.texts, task.tokens)
            record(model, [{**row, "labels": label} for row, label in zip(tokens, examples.labels, strict=True)]).save(
                file
            )
        results[name] = Trace.load(file)
    return results


def last_exit_alone(model: MultiExitModel) -> MultiExitModel:
    """The same model with no exit but the last one."""
    config = copy.deepcopy(model.config)
    config.exit_layers = model.layers[-1:]
    alone = MultiExitModel(config).eval()
    alone.backbone.load_state_dict(model.backbone.state_dict())
    alone.heads.classifiers[0].load_state_dict(model.heads.classifiers[-1].state_dict())
    return alone


@torch.inference_mode()
def full_depth(model: MultiExitModel, inputs: dict[str, Tensor]) -> object:
    """Token exit without layer exit: every layer, one head."""
    return model.all_exits(inputs)


def points(splits: dict[str, Trace]) -> dict[str, OperatingPoint]:
    """Layer exit by entropy, thresholds from the rows that they are chosen on."""
    return {name: calibrate(splits["chosen"], POLICY, target) for name, target in TARGETS.items()}


def measured(model: MultiExitModel, splits: dict[str, Trace]) -> dict[str, dict[str, float]]:
    """Score and cost on the rows reported: at full depth, and at each point."""
    trace, depth = splits["reported"], model.layers[-1]
    assert trace.tokens is not None
    results = {}
    for name, point in points(splits).items():
        measured = measure(trace, point.policy, point.thresholds)
        ratio = macs_ratio(model.config, trace.tokens, replay(trace, point.policy, point.thresholds).exit_layers)
        results[name] = {"score": measured.score, "mean_exit": measured.mean_exit, "macs_ratio": ratio}
    alone = last_exit_alone(model).config
    ratio = macs_ratio(alone, trace.tokens, torch.full((len(trace),), depth))
    return {FULL: {"score": layerwise(trace)[-1], "mean_exit": depth, "macs_ratio": ratio}, **results}


def rivals(folder: Path, splits: dict[str, Trace]) -> dict[str, Callable[[dict[str, Tensor]], object]]:
    """What is timed of one model: full depth, and every point."""
    model, tokenizer = load_folder(folder)
    whole = plain if model.config.token_exit is None else full_depth
    alone = model if model.config.token_exit is None else last_exit_alone(model)
    early = {name: Predictor(TorchEngine(model), tokenizer, point).answer for name, point in points(splits).items()}
    return {FULL: partial(whole, alone), **early}


def clock(
    data: Path, task: Task, folders: dict[str, Path], splits: dict[str, dict[str, Trace]], size: int
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds a text of every round, by schedule and point; all rivals take turns, a whole pass each."""
    model, tokenizer = load_folder(folders[PLAIN])
    part, first, _ = task.reported_on
    rows = encode(tokenizer, read(data, task, part, first, first + task.timed).texts, task.tokens)
    batches = [
        collate([rows[number] for number in numbers], model.config.pad_token_id)
        for numbers in length_sorted(rows, size)
    ]
    runs = {
        (schedule, name): run
        for schedule, folder in folders.items()
        for name, run in rivals(folder, splits[schedule]).items()
    }
    taken = time_interleaved({pair: partial(whole_pass, run, batches) for pair, run in runs.items()}, task.rounds)
    results: dict[str, dict[str, list[float]]] = {schedule: {} for schedule in folders}
    for (schedule, name), seconds in taken.items():
        results[schedule][name] = [1000 * entry / len(rows) for entry in seconds]
    return results


def whole_pass(run: Callable[[dict[str, Tensor]], object], batches: list[dict[str, Tensor]], number: int) -> None:
    """All texts by one rival."""
    for batch in batches:
        run(batch)


def company(folder: Path, data: Path, task: Task) -> dict[str, float]:
    """How far the last exit's logits are between one by one and batches of 32: noise, or another choice of tokens."""
    model, tokenizer = load_folder(folder)
    part, first, _ = task.reported_on
    rows = encode(tokenizer, read(data, task, part, first, first + task.timed).texts, task.tokens)
    one, many = (record(model, rows, batch_size=size).logits[-1] for size in (1, 32))
    apart = (one - many).abs().amax(dim=-1)  # (N,)
    return {"median": median(apart.tolist()), "largest": apart.max().item()}


def examine(data: Path, runs: Path, task: Task, seed: int) -> dict[str, Any]:
    """Everything about one data set."""
    folders = {schedule: train(data, runs, task, schedule, seed) for schedule in SCHEDULES}
    splits = {schedule: traces(data, folder, task) for schedule, folder in folders.items()}
    tokens = splits[PLAIN]["reported"].tokens
    assert tokens is not None
    return {
        "train_rows": task.train,
        "epochs": task.epochs,
        "start": task.start,
        "cut_to": task.tokens,
        "chosen_on": task.chosen_on,
        "reported_on": task.reported_on,
        "timed": task.timed,
        "mean_tokens": tokens.double().mean().item(),
        "layerwise": {schedule: layerwise(both["reported"]) for schedule, both in splits.items()},
        "told": {schedule: measured(load_folder(folders[schedule])[0], both) for schedule, both in splits.items()},
        "ms": {size: clock(data, task, folders, splits, int(size)) for size in SIZES},
        "company": {schedule: company(folder, data, task) for schedule, folder in folders.items()},
    }


def page(results: dict[str, Any]) -> str:
    """The results as Markdown, but for what is to be made of them."""
    lines = ["# Token exit, layer exit and both", "", as_lines(results["about"]), ""]
    for name, task in results["tasks"].items():
        lines += [f"## {name}: {task['mean_tokens']:.0f} tokens on average", "", *tables(task), ""]
    return "\n".join(lines)


def tables(task: dict[str, Any]) -> list[str]:
    """Of one data set: every exit, then every point."""
    rows = task["reported_on"][2] - task["reported_on"][1]
    base = task["told"][PLAIN][FULL]["score"]
    error = (base * (1 - base) / rows) ** 0.5
    start = "the SST-2 model of the same schedule" if task["start"] else "the default encoder"
    lines = [
        f"{task['train_rows']} rows to learn from, {task['epochs']} epochs from {start}, texts cut to",
        f"{task['cut_to']} tokens. Thresholds from {' '.join(map(str, task['chosen_on']))}; reported on",
        f"{' '.join(map(str, task['reported_on']))}: a score's standard error is {error:.3f}.",
        f"Timed on {task['timed']}.",
        "",
        "| tokens | " + " | ".join(f"layer {layer}" for layer in range(1, 7)) + " |",
        "|---|" + "---|" * 6,
    ]
    for schedule, scores in task["layerwise"].items():
        lines.append(f"| {schedule} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")
    lines += [
        "",
        "| tokens | layers | score | mean exit | MACs ratio | " + " | ".join(CLOCK) + " |",
        "|---|---|---|---|---|" + "---|" * len(CLOCK),
    ]
    for schedule, points in task["told"].items():
        for point, measured in points.items():
            times = [time_of(task["ms"][size], schedule, point) for size in SIZES]
            figures = f"{measured['score']:.3f} | {measured['mean_exit']:.2f} | {measured['macs_ratio']:.2f}"
            lines.append(f"| {schedule} | {point} | {figures} | {' | '.join(times)} |")
    return lines


def time_of(ms: dict[str, dict[str, list[float]]], schedule: str, point: str) -> str:
    """Median milliseconds, and the speed-up over full depth with all tokens, median and range of the rounds."""
    mine = ms[schedule][point]
    ratios = [full / early for full, early in zip(ms[PLAIN][FULL], mine, strict=True)]
    return f"{median(mine):.2f} | {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/tokens"), help="where the weights go")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tasks = {}
    for name, task in TASKS.items():
        file = options.runs / f"{task.folder}.json"
        if not file.exists():
            file.write_text(json.dumps(examine(options.data, options.runs, task, options.seed)))
        tasks[name] = json.loads(file.read_text())
    results = {"about": provenance(), "seed": options.seed, "tasks": tasks}
    (RESULTS / "tokens.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "tokens.md").write_text(page(results) + READING)
    print(page(results))


if __name__ == "__main__":
    main()
