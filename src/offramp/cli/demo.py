"""The main job on the built-in sample: train, trace, calibrate, answer early, and measure the gain."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from offramp.bench.baselines import plain
from offramp.bench.timer import Inputs, Run, time_batches
from offramp.calibration.prepare import prepare_policy
from offramp.data.batching import collate, encode, token_limit
from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_examples
from offramp.data.readers import SAMPLE
from offramp.evaluation.measure import measure_all
from offramp.evaluation.metrics import layerwise
from offramp.inference.predictor import Predictor
from offramp.inference.record import read_for, record
from offramp.model.card import save_points
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_tokenizer
from offramp.model.lexical.config import LexicalExit
from offramp.model.loading import load_folder
from offramp.model.modeling import MultiExitModel
from offramp.report.plots import draw_curves, usual_curves
from offramp.report.tables import before_first_layer, point_table, scores_text
from offramp.training.fit import WITHOUT_LEXICAL, fit
from offramp.types.operating_point import DEFAULT, Measured, OperatingPoint, Target, fixed_depth_point
from offramp.types.outputs import Answers
from offramp.types.trace import Trace

COLUMNS = Columns(text="text", label="intent")
FULL, FAST = "full", "twice-as-fast"
TARGETS = {DEFAULT: Target(max_drop=0.01), FAST: Target(speedup=2.0)}
NAMES_WITHOUT = {
    DEFAULT: WITHOUT_LEXICAL,
    FAST: f"{FAST}-{WITHOUT_LEXICAL}",
}  # of the points that do not read the lexical exit
TITLES = {
    FULL: "full depth",
    DEFAULT: "lose at most 1 %",
    NAMES_WITHOUT[DEFAULT]: "lose at most 1 %, no lexical exit",
    FAST: "twice as fast",
    NAMES_WITHOUT[FAST]: "twice as fast, no lexical exit",
}
CALLS = {1: 100, 32: 13}  # batch size -> how many batches are timed
ROUNDS = 3  # over all of them


def main_job(folder: Path, seed: int, epochs: float) -> dict[str, Any]:
    """Run the main job, printing its progress, and return the figures.

    Args:
        folder: gets the model and a picture, `curve.png`.
        seed: of training.
        epochs: over the train split.
    """
    began = time.perf_counter()
    exits = "an exit before the first layer (lexical) and one after every layer"
    print(f"Training a 6-layer encoder, {exits}, on the sample {SAMPLE!r} ...", flush=True)
    model = train(folder, seed, epochs)
    validation, test = (read_for(model.config, SAMPLE, COLUMNS, split) for split in ("validation", "test"))
    points = choose(record(folder, validation))
    save_points(points, folder)
    trace = record(folder, test)
    measured = measure_all(trace, points)
    ms = {size: milliseconds(folder, test, size, calls) for size, calls in CALLS.items()}
    scores = layerwise(trace)
    draw_curves(trace, usual_curves(trace), points, folder / "curve.png", f"{SAMPLE}, test split")
    print("\n" + scores_text(trace, {}))
    chosen = f"chosen on {len(validation)} validation messages, with a standard error to spare"
    print(f"\nOperating points: {chosen}; measured on the test messages")
    print("ms: milliseconds a message, one by one and in batches of 32; the lexical exit answers before layer 1")
    columns = {
        **before_first_layer(trace, points),
        **{f"ms, batch {size}": {name: f"{value:.2f}" for name, value in by.items()} for size, by in ms.items()},
    }
    titled = {title: {TITLES[name]: cell for name, cell in cells.items()} for title, cells in columns.items()}
    print(point_table({TITLES[name]: value for name, value in measured.items()}, titled))
    print(f"\n{loss_text(measured, len(validation))}")
    print(f"\nSix test messages, and where they left ({TITLES[DEFAULT]!r})")
    print(six_messages(folder, test))
    print(f"\nModel and picture: {folder}/ and {folder / 'curve.png'} ({time.perf_counter() - began:.0f} s)")
    return {
        "layerwise": scores,
        "layers": trace.layer_numbers,
        "points": {name: {"score": value.score, "mean_exit": value.mean_exit} for name, value in measured.items()},
        "milliseconds": ms,
    }


def train(folder: Path, seed: int, epochs: float) -> MultiExitModel:
    """Train the default encoder on the sample's train split."""
    set_seed(seed)
    data = read_examples(SAMPLE, COLUMNS, split="train")
    held_out = read_examples(SAMPLE, COLUMNS, split="validation", label_names=data.label_names)
    names = dict(enumerate(data.label_names))
    model = MultiExitModel.from_backbone(default_encoder(), id2label=names, pooling="mean", lexical=LexicalExit())
    tokenizer = load_tokenizer(default_encoder())
    fit(model, tokenizer, folder, data, held_out, num_train_epochs=epochs, seed=seed)
    return model


def choose(trace: Trace) -> dict[str, OperatingPoint]:
    """Return the points of full depth and of the targets, with and without the lexical exit, chosen on a trace.

    They are chosen as `offramp train` chooses its default point; where the lexical exit does not pay, that is printed.
    """
    whole = prepare_policy(trace)
    if whole.report:
        print(whole.report)
    behind = [layer for layer in trace.layer_numbers if layer > 0]
    without = prepare_policy(trace.select(behind))
    points = {FULL: fixed_depth_point(behind[-1], behind)}
    for name, target in TARGETS.items():
        points[name] = whole.calibrate(target, to_spare=True)
        points[NAMES_WITHOUT[name]] = without.calibrate(target, to_spare=True)
    return points


def loss_text(measured: Mapping[str, Measured], rows: int) -> str:
    """Return in a sentence whether the default point lost more than its target, with and without the lexical exit."""
    target = TARGETS[DEFAULT].value
    losses = [1 - (m.score or 0) / (m.full_score or 1) for m in (measured[DEFAULT], measured[NAMES_WITHOUT[DEFAULT]])]
    lost = [f"{100 * max(loss, 0):.1f} %" + (" (more than asked)" if loss > target + 1e-12 else "") for loss in losses]
    return (
        f"On the test messages {TITLES[DEFAULT]!r} lost {lost[0]} of the full score, and without the lexical exit "
        f"{lost[1]}.\n{rows} validation messages cannot promise that others lose no more than {100 * target:g} %."
    )


def milliseconds(folder: Path, examples: Examples, batch_size: int, calls: int) -> dict[str, float]:
    """Return the mean milliseconds a message, by operating point; full depth is the plain encoder, without exits.

    It is a mean over messages, of which some leave at once, in the median of the rounds.

    Args:
        folder: the model's, with its operating points.
        examples: their texts are answered in order, padded to the longest of a batch.
        batch_size: messages at once.
        calls: number of batches; each system answers every one in every round.
    """
    predictors = {name: Predictor.load(folder, operating_point=name) for name in TITLES if name != FULL}
    model, tokenizer = load_folder(folder)
    rows = encode(tokenizer, examples.texts, token_limit(tokenizer, model.config.backbone))
    starts = range(0, len(rows) - batch_size + 1, batch_size)
    batches = [collate(rows[start : start + batch_size], model.config.pad_token_id) for start in starts][:calls]

    def on_device(answer: Run, batch: Inputs) -> Answers | Tensor:
        return answer({name: value.to(model.device) for name, value in batch.items()})

    systems: dict[str, Run] = {FULL: partial(on_device, partial(plain, model))}
    systems |= {name: partial(on_device, predictor.answer) for name, predictor in predictors.items()}
    times, _ = time_batches(systems, batches, ROUNDS)
    return {name: 1000 / run.per_second for name, run in times.items()}


def six_messages(folder: Path, examples: Examples) -> str:
    """Return six messages of different depth, from the first exits to the last."""
    answers = Predictor.load(folder)(examples.texts)
    order = sorted(range(len(answers)), key=lambda number: answers[number]["exit_layer"])
    lines = []
    for number in (order[rank * (len(order) - 1) // 5] for rank in range(6)):
        answer, text = answers[number], str(examples.texts[number])
        shown = text if len(text) <= 84 else text[:81] + "..."
        lines.append(f"  layer {answer['exit_layer']}  {answer['label']:<17} {answer['score']:.2f}  {shown}")
    return "\n".join(lines)
