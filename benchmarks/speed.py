"""How much faster is early exit than the best that the same encoder can do without it, from texts to answers?

    python benchmarks/speed.py --data ../shared/data
    python benchmarks/speed.py --only sst2                      # one task, measured anew
    python benchmarks/speed.py --encoder mpnet                  # twelve real layers

Six tasks, the default encoder with six layers and a lexical exit (`speed_models.py` prepares the folders). One half of
the rows that nothing was trained on chooses thresholds, from a trace of the engine that runs; the other half reports:
what is lost there is replayed on all of its rows, and ROWS of them race. The contestants are those of `offramp bench`,
each in its fastest threads and workers, and take turns. Results of a task lie under `--runs`, and a run goes on where
it was stopped. Writes `benchmarks/results/speed.json` and `speed.md`. Half an hour on two idle cores.

With MPNet-base there are three tasks, fewer rows race, and those contestants alone that were ever the fastest with six
layers, or near it: int8 in ONNX Runtime, int8 and bf16 in OpenVINO, early exit in ONNX Runtime, and the first cut that
loses no more than is allowed. Writes `speed_mpnet.json` and `speed_mpnet.md`. Twenty minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from machine import provenance
from offramp.bench.adaptive import FULL, adaptive, engine_loader
from offramp.bench.baselines import exit_layers, export_exits, in_onnx_runtime, lexical_alone
from offramp.bench.cascade import cascade, equal_threshold
from offramp.bench.compare import compare
from offramp.bench.contestant import Contestant
from offramp.bench.in_openvino import in_openvino
from offramp.bench.plain_models import PlainModels, plain_models
from offramp.bench.settings import Ready, fastest_settings
from offramp.bench.texts import TextEncoder
from offramp.data.batching import Cuts
from offramp.data.rows import Text
from offramp.evaluation.bootstrap import point_loss_interval
from offramp.evaluation.measure import replay_point
from offramp.model.hub import load_config, load_tokenizer
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.model.points import load_points
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.trace import Trace
from speed_models import ENCODERS, INT8, Prepared, add_options, all_prepared, choose, finish, point_name
from speed_profile import int8_ratios, layer_costs, profile
from speed_report import page

SIZES, ALL_SIZES = (1, 32), {"clinc150": (1, 8, 32), "sst2": (1, 8, 32)}
"""Batch sizes of a task, and of those with targets for each."""
ROWS, DEEP_ROWS, ROUNDS = 256, 128, 5
NEAR = ("int8", "bf16")
"""In the names of the full-depth models in runtimes that race at twelve layers."""
SLOW = 2.0
"""A full-depth model that takes so many times the fastest one's time in the trial does not race at that batch size."""
GRID = (1, 2)
"""Multiples of the loss that is allowed, asked for as they are; the point itself has a standard error to spare."""
RESULTS = Path(__file__).parent / "results"


def right(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return 1.0 where an answer is right, else 0.0, (N,)."""
    return (logits.argmax(dim=-1) == labels).double()


@dataclass(frozen=True)
class Race:
    """A task: its finished model, the rows that report, and the contestants without early exit."""

    prepared: Prepared
    model: MultiExitModel
    plain: PlainModels

    @cached_property
    def numbers(self) -> Tensor:
        """Return the numbers of the rows that race, evenly from those that report."""
        rows = self.prepared.reporting()
        count = min(DEEP_ROWS if self.prepared.is_deep else ROWS, len(rows))
        return rows[torch.arange(count) * len(rows) // count]

    @cached_property
    def points(self) -> dict[str, dict[str, OperatingPoint]]:
        """Return the points by engine, by name; the first is the one that the folder holds."""
        saved = load_points(self.prepared.folder)
        points = {}
        for engine in self.prepared.engines:
            policy = choose(self.prepared, engine)
            levels = [times * self.prepared.allowed for times in GRID]
            asked = {f"asked {level:.1%}": policy.calibrate(Target(max_drop=level)) for level in levels}
            points[engine] = {point_name(engine): saved[point_name(engine)], **asked}
        return points

    @cached_property
    def cuts(self) -> dict[int, float]:
        """Return the share of float32's right answers that is lost by a cut, by layer, on the rows that report."""
        trace, full = self.reported("torch"), self.full_score("torch")
        scores = {layer: right(trace.exit(exit).logits, trace.labels) for exit, layer in enumerate(trace.layer_numbers)}
        return {layer: 1 - score.mean().item() / full for layer, score in scores.items()}

    @property
    def cuts_to_race(self) -> list[int]:
        """Return the layers at which the encoder is cut; of MPNet-base the first that loses no more than is allowed."""
        kept = [layer for layer, lost in self.cuts.items() if layer and lost <= self.prepared.allowed]
        return kept[:1] if self.prepared.is_deep else list(self.cuts)

    def reported(self, engine: str) -> Trace:
        """Return an engine's trace of the rows that report."""
        return self.prepared.trace(engine).take(self.prepared.reporting())

    def full_score(self, engine: str) -> float:
        """Return an engine's accuracy at full depth on the rows that report."""
        trace = self.reported(engine)
        return right(trace.logits[-1], trace.labels).mean().item()

    def delivered(self, engine: str) -> dict[str, Any]:
        """Return what each point of an engine loses on the rows that report, against itself and against float32."""
        trace, full, float32 = self.reported(engine), self.full_score(engine), self.full_score("torch")
        figures = {}
        for name, point in self.points[engine].items():
            _, answers = replay_point(trace, point)
            score, interval = right(answers.logits, trace.labels).mean().item(), point_loss_interval(trace, point)
            figures[name] = {
                "asked": dict(point.target),
                "score": score,
                "full_score": full,
                "lost": 1 - score / full,
                "interval": None if interval is None else [end / full for end in interval],
                "float32_score": float32,
                "lost_of_float32": 1 - score / float32,
                "exit_layers": list(point.layers_read(trace.layer_numbers)),
                "mean_exit": answers.exit_layers.double().mean().item(),
                "before_layer_1": (answers.exit_layers == 0).double().mean().item(),
                "thresholds": [round(value, 6) for value in point.thresholds],
            }
        return figures

    def cascade(self, name: str, full: Contestant, point: OperatingPoint, engine: str) -> tuple[Contestant, float]:
        """Return the cascade that is right as often as a point on the rows that report, and its share of early answers.

        Its threshold is chosen on these rows, which favours it.
        """
        trace, (_, answers) = self.reported("torch"), replay_point(self.reported(engine), point)
        assert self.model.lexical_exit is not None
        certainty = self.model.lexical_exit.certainty
        sure = certainty(trace.logits[0])
        least = right(answers.logits, trace.labels).mean().item()
        both = (right(logits, trace.labels) for logits in (trace.logits[0], trace.logits[-1]))
        threshold = equal_threshold(sure, *both, least)
        assert self.plain.lexical is not None
        behind = self.plain.by_name(full.name)
        contestant = cascade(name, self.plain.lexical, behind, certainty, threshold, self.plain.encoder)
        return contestant, (sure >= threshold).double().mean().item()


def ready_to_race(race: Race, size: int, slow: set[tuple[str, ...]]) -> tuple[list[Ready], dict[str, Any]]:
    """Return the contestants of a batch size in their fastest settings, and what the trial says.

    Args:
        race: the task.
        size: of the batches.
        slow: groups of full-depth models that are not tried; those in torch that turn out slow are added.
    """
    examples = race.prepared.held_out
    texts = [examples.texts[row] for row in race.numbers.tolist()]
    encoder, folder = race.plain.encoder, race.prepared.folder
    plain = [one for one in race.plain.contestants() if one.group not in slow]
    full = sorted(fastest_settings(plain, texts, size), key=lambda one: one.seconds)
    left_out = [one for one in full if one.seconds > SLOW * full[0].seconds]
    slow |= {one.contestant.group for one in left_out if one.contestant.engine.startswith("torch")}
    loaders = {engine: engine_loader(folder, engine) for engine in race.prepared.engines}
    early, tokenizer = [], load_tokenizer(folder)
    for engine, points in race.points.items():
        first, *others = adaptive(engine, loaders[engine], tokenizer, points)
        fastest = fastest_settings([first], texts, size)
        early += [*fastest, *(same_setting(other, fastest[0]) for other in others if fastest)]
    best = min(early, key=lambda one: one.seconds).contestant.engine
    compared = fastest_settings(adaptive(best, loaders[best], tokenizer, {FULL: None}), texts, size)
    assert race.plain.lexical is not None
    alone = [race.plain.lexical.contestant(encoder)]
    for cut in next(filter(None, (race.plain.cut_in(one.contestant.name) for one in full)), []):
        if cut.layer in race.cuts_to_race:
            alone.append(cut.contestant(encoder))
    compared += fastest_settings(alone, texts, size)
    shares = {}
    for number, (name, point) in enumerate(race.points[best].items()):
        contestant, shares[name] = race.cascade(f"cascade as right as {name}", full[0].contestant, point, best)
        compared += (
            fastest_settings([contestant], texts, size) if not number else [same_setting(contestant, compared[-1])]
        )
    trial = {
        "adaptive": best,
        "before_layer_1_of_cascades": shares,
        "not_raced": {one.contestant.name: one.seconds / full[0].seconds for one in left_out},
    }
    return [*(one for one in full if one not in left_out), *early, *compared], trial


def same_setting(contestant: Contestant, other: Ready) -> Ready:
    """Return a contestant with the threads and workers of another."""
    run = contestant.load(other.threads, other.workers)
    return Ready(contestant, other.threads, other.workers, run, other.seconds)


def confirm(race: Race, ready: Sequence[Ready], size: int) -> dict[str, float]:
    """Return the share of the texts that the engines answer as the replay says, with the same exit, by point."""
    texts = [race.prepared.held_out.texts[row] for row in race.numbers.tolist()]
    same = {}
    for one in ready:
        contestant = one.contestant
        if contestant.kind == "adaptive":
            answers = one.run(texts, size)
            trace = race.prepared.trace(contestant.engine).take(race.numbers)
            _, replayed = replay_point(trace, race.points[contestant.engine][contestant.name])
            equal = answers.logits.argmax(dim=-1) == replayed.logits.argmax(dim=-1)
            equal &= answers.exit_layers == replayed.exit_layers
            same[f"{contestant.engine}, {contestant.name}"] = equal.double().mean().item()
    return same


def measure(prepared: Prepared) -> dict[str, Any]:
    """Race a task at every batch size."""
    examples, config, folder = prepared.held_out, load_config(prepared.folder), prepared.folder
    some = prepared.cell.examples("train").texts[:128]
    encoder = TextEncoder(load_tokenizer(folder), config)
    sizes: dict[str, Any] = {}
    slow: set[tuple[str, ...]] = set()
    with tempfile.TemporaryDirectory(prefix="offramp-bench-") as exports, Cuts().counted():
        model = load_model(folder)
        make = near_the_fastest if prepared.is_deep else plain_models
        plain = make(model, encoder, some, Path(exports))
        race = Race(prepared, model, plain)
        texts = [examples.texts[row] for row in race.numbers.tolist()]
        labels = torch.tensor([examples.labels[row] for row in race.numbers.tolist()])
        for size in ALL_SIZES.get(prepared.cell.task, SIZES):
            print(folder.name, size, flush=True)
            ready, trial = ready_to_race(race, size, slow)
            costs = {engine: layer_costs(folder, engine, texts, size) for engine in prepared.engines}
            rows = compare(ready, texts, labels, size, ROUNDS, config=config, encoder=encoder, costs=costs)
            point = race.points[INT8][point_name(INT8)]
            sizes[str(size)] = {
                **trial,
                "rows": [asdict(row) for row in rows],
                "as_replayed": confirm(race, ready, size),
                "profile": profile(folder, plain, point, texts, size),
            }
        ratios = int8_ratios(plain, texts)
    return {
        "allowed": prepared.allowed,
        "rows": {"choose": len(prepared.choosing()), "report": len(prepared.reporting()), "race": len(texts)},
        "full_scores": {name: race.full_score(name) for name in ("torch", *prepared.engines)},
        "delivered": {engine: race.delivered(engine) for engine in prepared.engines},
        "cuts": race.cuts,
        "sizes": sizes,
        "exact_int8_against_dynamic": ratios,
    }


def near_the_fastest(model: MultiExitModel, encoder: TextEncoder, texts: Sequence[Text], folder: Path) -> PlainModels:
    """Return what `plain_models` does, of the runtimes alone that were ever the fastest or near it."""
    graph, rows, layers = export_exits(model), encoder.encode(texts), exit_layers(model)
    every = [*in_onnx_runtime(graph, model, rows), *in_openvino(graph, folder, [encoder.batch([row]) for row in rows])]
    runtimes = [runtime for runtime in every if any(kind in runtime.name for kind in NEAR)]
    full = [runtime.at(layers[-1]) for runtime in runtimes]
    return PlainModels(full, runtimes, lexical_alone(model), layers, encoder)


def main() -> None:
    """Measure what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    for prepared in all_prepared(options):
        finish(prepared)
        if options.only or not prepared.file.exists():
            about = provenance()
            prepared.file.write_text(
                json.dumps({"about": about, "rounds": ROUNDS, **measure(prepared)}, indent=1) + "\n"
            )
        write(options.runs, "mpnet" if prepared.is_deep else "minilm")


def write(runs: Path, encoder: str) -> None:
    """Write the results of the tasks of an encoder that are there."""
    tasks = {task: runs / f"{task}-0.json" for task in ENCODERS[encoder]}
    results = {task: json.loads(file.read_text()) for task, file in tasks.items() if file.exists()}
    name = "speed_mpnet" if encoder == "mpnet" else "speed"
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page(results, encoder))


if __name__ == "__main__":
    main()
