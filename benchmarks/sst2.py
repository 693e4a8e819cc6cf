"""SST-2: what early exit keeps, what it saves, and how fast it is on the clock.

    python benchmarks/sst2.py --data ../shared/data/sst2

Trains the default encoder on the whole of SST-2's train split with mean and with first-token pooling (resumes after a
kill), records traces of `validation_sentences`, and writes `benchmarks/results/sst2.json` and `sst2.md`. Thresholds are
chosen on one random half of the sentences and reported on the other, 50 times; nothing is chosen on what is reported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from machine import as_lines, provenance
from offramp.bench.baselines import plain
from offramp.bench.timer import median, time_interleaved
from offramp.calibration.calibrate import calibrate
from offramp.data.batching import collate, encode, length_sorted
from offramp.data.columns import Columns
from offramp.data.examples import read_examples
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import layerwise
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import load_policy
from offramp.training.fit import fit
from offramp.types.operating_point import Target
from offramp.types.trace import Trace

NAMES = ("negative", "positive")
COLUMNS = Columns(text="sentence1", label="label")
MAX_LENGTH = 128
POOLINGS = ("mean", "first")
POLICIES = {
    "entropy": load_policy("entropy"),
    "margin": load_policy("margin"),
    "pcee, patience 2": load_policy("pcee", patience=2),
    "patience": load_policy("patience"),
}
SPLITS = 50


@dataclass(frozen=True)
class Setting:
    """How texts arrive, and how often all of them are answered."""

    batch_size: int
    sorted_by_length: bool
    rounds: int


SETTINGS = {
    "1": Setting(1, False, 5),
    "32, as they come": Setting(32, False, 8),
    "32, sorted by length": Setting(32, True, 8),
}
TARGETS = {
    "lose at most 1 %": Target(max_drop=0.01),
    "25 % saved": Target(speedup=4 / 3),
    "50 % saved": Target(speedup=2),
    "75 % saved": Target(speedup=4),
}
CLOCK_COLUMNS = (
    *("batch", "operating point", "mean exit", "speed-up"),
    *("layers ratio", "share", "ideal", "share", "plain, ms/text", "early"),
)
RESULTS = Path(__file__).parent / "results"


def train(data: Path, folder: Path, pooling: str, epochs: int, seed: int) -> None:
    """Train one model, or go on where a run was stopped."""
    if (folder / "model.safetensors").exists():
        return
    tokenizer = load_tokenizer(default_encoder())
    tokenizer.model_max_length = MAX_LENGTH
    examples = read_examples(str(data / "train.jsonl.gz"), COLUMNS, split="train", label_names=NAMES)
    set_seed(seed)
    model = MultiExitModel.from_backbone(default_encoder(), id2label=dict(enumerate(NAMES)), pooling=pooling)
    schedule = {"save_strategy": "steps", "save_steps": 500, "logging_strategy": "steps", "logging_steps": 200}
    recipe = {"num_train_epochs": epochs, "learning_rate": 5e-5, "bf16": True, "seed": seed}
    log = fit(model, tokenizer, folder, examples, resume=True, **recipe, **schedule)
    (folder / "log.json").write_text(json.dumps(log))


def halves(trace: Trace, policy: str) -> dict[str, float]:
    """Choose "lose at most 1 %" on a random half, report on the other; mean and spread over SPLITS draws."""
    losses, savings = [], []
    for seed in range(SPLITS):
        order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
        chosen_on, reported_on = (trace.take(rows) for rows in order.chunk(2))
        point = calibrate(chosen_on, POLICIES[policy], Target(max_drop=0.01))
        figures = measure(reported_on, point.policy, point.thresholds)
        losses.append(1 - figures.score / figures.full_score)
        savings.append(figures.saving)
    loss, saving = torch.tensor(losses), torch.tensor(savings)
    return {
        "relative_loss": loss.mean().item(),
        "relative_loss_sd": loss.std().item(),
        "saving": saving.mean().item(),
        "saving_sd": saving.std().item(),
    }


def clock(folder: Path, data: Path, trace: Trace, setting: Setting) -> dict[str, dict[str, float]]:
    """Speed-up over the plain model at full depth, torch on this machine; the rivals take turns, a whole pass each."""
    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    texts = read_examples(str(data), COLUMNS, split="validation", label_names=NAMES).texts
    rows = encode(tokenizer, texts, MAX_LENGTH)
    order = length_sorted(rows, setting.batch_size)
    if not setting.sorted_by_length:
        order = [list(range(start, len(rows), len(order))) for start in range(len(order))]
    batches = [collate([rows[number] for number in numbers], model.config.pad_token_id) for numbers in order]
    points = {name: calibrate(trace, POLICIES["entropy"], target) for name, target in TARGETS.items()}
    rivals: dict[str, Any] = {"plain": partial(plain, model)}
    rivals |= {name: Predictor(TorchEngine(model), tokenizer, point).answer for name, point in points.items()}
    calls = {name: partial(whole_pass, run, batches) for name, run in rivals.items()}
    taken = time_interleaved(calls, setting.rounds)
    parts = ideal_parts(model, batches)
    depth = trace.layer_numbers[-1]
    figures = {}
    for name, point in points.items():
        mean_exit = measure(trace, point.policy, point.thresholds).mean_exit
        by_round = [full / early for full, early in zip(taken["plain"], taken[name], strict=True)]
        speedup = median(by_round)
        ideal = (parts["embed"] + depth * parts["block"]) / (parts["embed"] + mean_exit * parts["block"])
        figures[name] = {
            "mean_exit": mean_exit,
            "speedup": speedup,
            "speedup_low": min(by_round),
            "speedup_high": max(by_round),
            "layers_ratio": depth / mean_exit,
            "share_of_layers_ratio": speedup * mean_exit / depth,
            "ideal": ideal,
            "efficiency": speedup / ideal,
            "plain_ms": 1000 * median(taken["plain"]) / len(rows),
            "ms": 1000 * median(taken[name]) / len(rows),
        }
    return figures


def whole_pass(run: Callable[[Any], object], batches: list[dict[str, torch.Tensor]], number: int) -> None:
    """All texts by one rival: a rival that ran between two batches would push its weights out of the cache."""
    for batch in batches:
        run(batch)


@torch.inference_mode()
def ideal_parts(model: MultiExitModel, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Seconds of embedding and of one block, summed over two passes through the batches."""
    carries = [model.embed(batch) for batch in batches]
    count = len(batches)
    taken = time_interleaved(
        {
            "embed": lambda number: model.embed(batches[number % count]),
            "block": lambda number: model.block(0, carries[number % count]),
        },
        2 * count,
    )
    return {name: sum(seconds) for name, seconds in taken.items()}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# SST-2",
        "",
        f"The default encoder (6 layers, width 384), `weighted` objective, {results['epochs']} epochs over the whole",
        f"train split in bfloat16, seed {results['seed']}; all figures on the {results['rows']} rows of",
        "`validation_sentences`.",
        as_lines(results["about"]),
        "",
        "## Accuracy of every exit",
        "",
        "| pooling | " + " | ".join(f"layer {layer}" for layer in range(1, 7)) + " |",
        "|---|" + "---|" * 6,
    ]
    for pooling, figures in results["poolings"].items():
        lines.append(f"| {pooling} | " + " | ".join(f"{score:.3f}" for score in figures["layerwise"]) + " |")
    lines += [
        "",
        '## "Lose at most 1 %": chosen on one half, reported on the other',
        "",
        f"Mean and standard deviation over {SPLITS} random halves.",
        "",
        "| pooling | policy | relative loss | layers saved |",
        "|---|---|---|---|",
    ]
    for pooling, figures in results["poolings"].items():
        for policy, half in figures["halves"].items():
            loss = f"{half['relative_loss']:.2%} ± {half['relative_loss_sd']:.2%}"
            lines.append(f"| {pooling} | {policy} | {loss} | {half['saving']:.1%} ± {half['saving_sd']:.1%} |")
    lines += [
        "",
        "## On the clock (mean pooling, entropy, torch float32)",
        "",
        "Speed-up over the plain model (transformers' forward and one head, no exits) at full depth. The rivals take",
        "turns, each with a whole pass over the sentences; median of the rounds, lowest and highest in brackets.",
        "*Layers ratio* is depth / mean exit; *ideal* also counts the embedding, which no exit saves. Both get the",
        "same batches: as they come and padded to the longest, or sorted by length, where those who stay leave small",
        "batches to the deep layers.",
        "",
        "| " + " | ".join(CLOCK_COLUMNS) + " |",
        "|" + "---|" * len(CLOCK_COLUMNS),
    ]
    for size, points in results["clock"].items():
        for name, figures in points.items():
            spread = f"{figures['speedup']:.2f} ({figures['speedup_low']:.2f}-{figures['speedup_high']:.2f})"
            layers = f"{figures['layers_ratio']:.2f} | {figures['share_of_layers_ratio']:.2f}"
            ideal = f"{figures['ideal']:.2f} | {figures['efficiency']:.2f}"
            times = f"{figures['plain_ms']:.2f} | {figures['ms']:.2f}"
            lines.append(f"| {size} | {name} | {figures['mean_exit']:.2f} | {spread} | {layers} | {ideal} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--runs", type=Path, default=Path("runs/sst2"), help="where the weights go")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sentences = options.data / "validation_sentences.jsonl.gz"
    poolings, traces = {}, {}
    for pooling in POOLINGS:
        folder = options.runs / pooling
        train(options.data, folder, pooling, options.epochs, options.seed)
        traces[pooling] = record(folder, sentences, columns=COLUMNS)
        figures = {policy: halves(traces[pooling], policy) for policy in POLICIES}
        poolings[pooling] = {"layerwise": layerwise(traces[pooling]), "halves": figures}
    results = {
        "about": provenance(),
        "epochs": options.epochs,
        "seed": options.seed,
        "rows": len(traces["mean"]),
        "poolings": poolings,
        "clock": {
            name: clock(options.runs / "mean", sentences, traces["mean"], setting) for name, setting in SETTINGS.items()
        },
    }
    (RESULTS / "sst2.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "sst2.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
