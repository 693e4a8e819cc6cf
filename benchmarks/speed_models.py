"""Finished model folders, traces and operating points of `speed.py`, seed 0 of six tasks, or of three with MPNet-base.

A folder `TASK-0` of the runs is an encoder of `lexical_models.py` with a lexical exit that is fitted on the rows of
training, its graphs, and one operating point for each engine. Half of the rows that nothing was trained on choose
(`choosing`), the other half reports (`reporting`); `TASK-0-ENGINE.safetensors` is an engine's trace of all of them.
What is there is taken up again; run alone, it makes all that is missing:

    python benchmarks/speed_models.py --data ../shared/data
    python benchmarks/speed_models.py --encoder mpnet          # needs the folder of mpnet_folder.py
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexical_models import DEEP_TASKS, Cell, train
from offramp.calibration.prepare import PreparedPolicy
from offramp.data.batching import token_limit
from offramp.data.examples import Examples, subsample
from offramp.errors import InvalidInput
from offramp.evaluation.measure import replay_point
from offramp.inference.export import export
from offramp.inference.export_openvino import export_openvino
from offramp.inference.load_engine import load_engine
from offramp.inference.record import record
from offramp.model.card import save_points
from offramp.model.hub import load_config, load_tokenizer
from offramp.model.loading import load_model
from offramp.model.points import load_points
from offramp.policies.fitting import fit_default_policy
from offramp.training.fit import fit_lexical_alone, remove_checkpoints, token_rows
from offramp.types.operating_point import DEFAULT, Target
from offramp.types.trace import Trace

ALLOWED = {"clinc150": 0.005, "banking77": 0.01, "trec": 0.01, "ag_news": 0.01, "sst2": 0.01, "snli": 0.01}
"""The share of the full model's right answers that a task's point may lose."""
ENCODERS = {"minilm": ALLOWED, "mpnet": dict.fromkeys(DEEP_TASKS, 0.01)}
"""The same by encoder."""
SPLITS = {"trec": ("validation", "test")}
"""Of rows that nothing was trained on; of other tasks the split of `lexical_models.py`."""
MOST = 4000
RANGE_ROWS, PRICE = 400, 0.2
"""Rows of training that int8 takes its scales from; what an exit behind a layer and its decision take, in layers."""
INT8 = "onnx-int8"
ENGINES = (INT8, "openvino")
"""That run adaptively; the point of the first one is the default one."""


@dataclass(frozen=True)
class Prepared:
    """A task's finished model, in a folder of the runs."""

    cell: Cell
    runs: Path

    @property
    def folder(self) -> Path:
        """Return the model's folder."""
        return self.runs / f"{self.cell.task}-{self.cell.seed}"

    @property
    def is_deep(self) -> bool:
        """Return whether this is MPNet-base."""
        return self.cell.task in DEEP_TASKS

    @property
    def allowed(self) -> float:
        """Return the share of the full model's right answers that may be lost."""
        return ENCODERS["mpnet" if self.is_deep else "minilm"][self.cell.task]

    @property
    def engines(self) -> tuple[str, ...]:
        """Return the engines that run adaptively; of MPNet-base the first one, which is the fastest on all tasks."""
        return ENGINES[:1] if self.is_deep else ENGINES

    @cached_property
    def held_out(self) -> Examples:
        """Return the rows that nothing was trained on, at most MOST, taken evenly."""
        first, *others = (self.cell.examples(split) for split in SPLITS.get(self.cell.task, (self.cell.setting.split,)))
        texts, labels = list(first.texts), list(first.labels)
        for more in others:
            texts, labels = [*texts, *more.texts], [*labels, *more.labels]
        count = min(MOST, len(texts))
        rows = [number * len(texts) // count for number in range(count)]
        return replace(first, texts=[texts[row] for row in rows], labels=[labels[row] for row in rows])

    def choosing(self) -> Tensor:
        """Return the numbers of the held-out rows that choose."""
        return self._halves()[0]

    def reporting(self) -> Tensor:
        """Return the numbers of the held-out rows that report, which fitted and chose nothing."""
        return self._halves()[1]

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Return two random halves of the held-out rows, without those whose tokens fitted the lexical exit."""
        fit_rows = self.trace("torch").fit_rows
        assert fit_rows is not None
        rows = (~fit_rows).nonzero().squeeze(-1)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.cell.seed))
        choosing, reporting = rows[order].tensor_split(2)
        return choosing, reporting.sort().values

    @property
    def file(self) -> Path:
        """Return the file of the results."""
        return self.runs / f"{self.folder.name}.json"

    def _trace_file(self, engine: str) -> Path:
        return self.runs / f"{self.folder.name}-{engine}.safetensors"

    def is_recorded(self, engine: str) -> bool:
        """Return whether an engine's trace is there."""
        return self._trace_file(engine).exists()

    def forget(self, engine: str) -> None:
        """Remove an engine's trace, which is of another graph."""
        self._trace_file(engine).unlink(missing_ok=True)

    def trace(self, engine: str) -> Trace:
        """Return an engine's trace of the held-out rows, at every exit."""
        file = self._trace_file(engine)
        if not file.exists():
            record(self.folder, self.held_out, engine).save(file)
        return Trace.load(file)


def fit(prepared: Prepared) -> None:
    """Fit the lexical exit onto the encoder, which is trained where it is missing; nothing else of it changes."""
    if (prepared.folder / "config.json").exists() and not (prepared.folder / "checkpoints").exists():
        return
    cell = prepared.cell
    train(cell)
    fit_lexical_alone(load_model(cell.folder), load_tokenizer(cell.folder), prepared.folder, cell.examples("train"))
    remove_checkpoints(prepared.folder)


def export_missing(folder: Path, engine: str, rows: list[dict[str, Any]]) -> bool:
    """Export a folder for an engine, unless there is a graph that runs its default point; return whether it did.

    The scales of activations come from `rows` where the folder has no ranges.
    """
    point = load_points(folder)[DEFAULT]
    try:
        load_engine(folder, engine, point).check(point)
        return False
    except InvalidInput:
        if engine == INT8:
            export(folder, int8=True, dataset=rows)
        else:
            export_openvino(folder, dataset=rows)
        return True


def training_rows(prepared: Prepared) -> list[dict[str, Any]]:
    """Return some rows of training, tokenized, with labels."""
    rows = subsample(prepared.cell.examples("train"), RANGE_ROWS)
    tokenizer = load_tokenizer(prepared.folder)
    return token_rows(rows, tokenizer, token_limit(tokenizer, load_config(prepared.folder).backbone))


def choose(prepared: Prepared, engine: str) -> PreparedPolicy:
    """Return the policy that the choosing half fits for an engine, at the exits of the default point."""
    trace = prepared.trace(engine).take(prepared.choosing())
    read = load_points(prepared.folder)[DEFAULT].layers_read(load_config(prepared.folder).layers)
    policy, rows = fit_default_policy(trace.select(read))
    return PreparedPolicy(policy, rows)


def choose_exits(prepared: Prepared) -> PreparedPolicy:
    """Return the policy for the exits that pay, on the choosing half in float32: those that save nothing go."""
    trace, target = prepared.trace("torch").take(prepared.choosing()), Target(max_drop=prepared.allowed)
    best, cost = priced(trace, target)
    while best.rows.depth > 2:
        layers = best.rows.layer_numbers
        fewer = [priced(trace.select([*layers[:exit], *layers[exit + 1 :]]), target) for exit in range(len(layers) - 1)]
        other, less = min(fewer, key=lambda pair: pair[1])
        if less > cost:
            break
        best, cost = other, less
    return best


def priced(trace: Trace, target: Target) -> tuple[PreparedPolicy, float]:
    """Return the policy for the exits of a trace, and what a row takes at its point, in layers, on these rows."""
    policy, rows = fit_default_policy(trace)
    prepared = PreparedPolicy(policy, rows)
    _, answers = replay_point(rows, prepared.calibrate(target, to_spare=True))
    behind = torch.tensor([layer for layer in trace.layer_numbers if layer])
    decisions = torch.bucketize(answers.exit_layers, behind, right=True)  # (N,) exits behind a layer that a row passes
    return prepared, (answers.exit_layers + PRICE * decisions).double().mean().item()


def point_name(engine: str) -> str:
    """Return the name of an engine's point."""
    return DEFAULT if engine == INT8 else engine


def finish(prepared: Prepared) -> None:
    """Make what is missing of a task."""
    folder, target = prepared.folder, Target(max_drop=prepared.allowed)
    fit(prepared)
    # 1) the exits, and the graphs that hold them
    if not load_points(folder):
        save_points({DEFAULT: choose_exits(prepared).calibrate(target, to_spare=True)}, folder)
    for engine in prepared.engines:
        if export_missing(folder, engine, training_rows(prepared)):
            prepared.forget(engine)
    # 2) the points, each from a trace of its engine
    engines = prepared.engines
    if all(point_name(engine) in load_points(folder) and prepared.is_recorded(engine) for engine in engines):
        return
    points = {point_name(engine): choose(prepared, engine).calibrate(target, to_spare=True) for engine in engines}
    save_points(points, folder)


def main() -> None:
    """Make what is missing, task by task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    for prepared in all_prepared(parser.parse_args()):
        finish(prepared)
        print(prepared.folder.name, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the scripts of this benchmark share."""
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/speed"), help="where the finished models go")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--encoder", choices=list(ENCODERS), default="minilm")
    parser.add_argument("--only", choices=[*ALLOWED, *DEEP_TASKS], help="one task")


def all_prepared(options: argparse.Namespace) -> list[Prepared]:
    """Return the tasks that are asked for."""
    tasks = [options.only] if options.only else list(ENCODERS[options.encoder])
    return [Prepared(Cell(task, 0, options.data, options.encoders), options.runs) for task in tasks]


if __name__ == "__main__":
    main()
