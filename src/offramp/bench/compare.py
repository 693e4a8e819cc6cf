"""Early exit against full depth: every engine at every operating point and every batch size, on the same texts.

The upper limit of early exit is measured, too. A batch that leaves at layer k as a whole takes about embed + k block;
a least-squares line through some depths gives both numbers, for any engine. With a mean exit of m of L layers the
ideal speed-up is (embed + L block) / (embed + m block). Where an exit before the first layer is read, all rows take
its time, and the rows that leave there nothing else. Efficiency is the speed-up over the plain model, which has no
exits, as a share of the ideal one. So efficiency counts all costs of early exit: exits, decisions, cutting the batch,
and the small batches of the rows that stay, whose layers cost more a row.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from offramp.bench.baselines import Baseline
from offramp.bench.timer import LayerCostModel, Run, SpeedupRange, Times, median, time_batches
from offramp.data.batching import collate, length_sorted
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.inference.engine import Engine
from offramp.inference.onnx_engine import leave_layers
from offramp.model.config import MultiExitConfig
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from offramp.types.outputs import Answers, at_label_thresholds
from offramp.types.trace import Trace

log = logging.getLogger("offramp")

FULL = "full"
"""The name of an engine's full depth among its operating points."""


@dataclass(frozen=True)
class RunKey:
    """A timed run.

    Attributes:
        engine: the one that runs, or that the baseline belongs to.
        kind: a full-depth baseline, an operating point (or FULL), or a fixed depth for the cost of a layer.
        name: the baseline's or the point's, or the layer number.
    """

    engine: str
    kind: Literal["baseline", "point", "depth"]
    name: str


@dataclass(frozen=True)
class BenchmarkRow:
    """Figures of an engine at an operating point, or of a full-depth baseline, at one batch size.

    Attributes:
        batch_size: rows at once, of similar length.
        engine: of a baseline, the one that it belongs to.
        name: the operating point's, or FULL, or the baseline's.
        rival: True for a full-depth baseline, without exits.
        score: on the benchmark's metric; None without labels.
        mean_exit: mean exit layer.
        p50_ms: milliseconds a sample in the median batch (see `Times.ms`).
        p99_ms: in the slowest batches.
        per_second: samples.
        speedup: over the plain model in the same engine.
        ideal: the upper limit of that speed-up; None for a baseline.
        efficiency: the median speed-up as a share of the ideal one; None for a baseline.
        against_best: speed over that of the fastest full-depth baseline, in any engine.
    """

    batch_size: int
    engine: str
    name: str
    rival: bool
    score: float | None
    mean_exit: float
    p50_ms: float
    p99_ms: float
    per_second: float
    speedup: SpeedupRange
    ideal: float | None
    efficiency: float | None
    against_best: SpeedupRange

    @property
    def early(self) -> bool:
        """Return True for an operating point, False for a baseline or full depth."""
        return not self.rival and self.name != FULL


@dataclass(frozen=True)
class BenchmarkResult:
    """All results on one model and one data set.

    Attributes:
        metric: of the scores; None without labels.
        depth: layers of the full model.
        rows: number of texts.
        rounds: how often each run answered all of them.
        threads: of torch; ONNX Runtime takes OMP_NUM_THREADS, else one a core.
        results: by batch size, baselines first.
    """

    metric: str | None
    depth: int
    rows: int
    rounds: int
    threads: int
    results: tuple[BenchmarkRow, ...]


def run_benchmark(
    engines: Mapping[str, Engine],
    points: Mapping[str, Mapping[str, OperatingPoint]],
    baselines: Sequence[Baseline],
    rows: Sequence[Mapping[str, Any]],
    labels: Tensor | None,
    batch_size: int,
    rounds: int,
) -> list[BenchmarkRow]:
    """Time engines at their operating points, and at full depth, against full-depth baselines.

    Args:
        engines: by name, all of one model with two exits or more.
        points: by engine, by name.
        baselines: at least one for each engine.
        rows: tokens, unpadded; rows of similar length make a batch, as in `Predictor`.
        labels: (N,) or (N, C); None = nothing is scored.
        batch_size: rows at once.
        rounds: how often each run answers all rows.

    Raises:
        InvalidInput: a point that its engine cannot run.
    """
    # 1) batches
    config = next(iter(engines.values())).config
    order = length_sorted(rows, batch_size)
    batches = [collate([rows[number] for number in numbers], config.pad_token_id) for numbers in order]
    ordered = None if labels is None else labels[[number for numbers in order for number in numbers]]
    # 2) every run, timed in turn
    runs = {RunKey(baseline.engine, "baseline", baseline.name): baseline.run for baseline in baselines}
    for name, engine in engines.items():
        runs |= _engine_runs(name, engine, points.get(name, {}))
    times, answers = time_batches(runs, batches, rounds)
    # 3) a row for each baseline and each point
    depth: int = config.exit_layers[-1]
    measurements = _Measurements(batch_size, depth, config.problem_type, ordered, times, answers, points)
    results = [measurements.row(key) for key in runs if key.kind == "baseline"]
    for name, engine in engines.items():
        depths = {layer: RunKey(name, "depth", str(layer)) for layer in _timed_depths(engine)}
        depths[depth] = RunKey(name, "point", FULL)
        costs = LayerCostModel.through({layer: median(times[key].passes) for layer, key in depths.items()})
        for label, point in {FULL: None, **points.get(name, {})}.items():
            reads_lexical = point is not None and point.layers_read(engine.layers)[0] == 0
            results.append(measurements.row(RunKey(name, "point", label), costs, reads_lexical))
    return results


def _timed_depths(engine: Engine) -> list[int]:
    """Return the layers, but the last, after which an engine's rows leave together for the cost of a layer."""
    *before, _ = leave_layers(engine)
    behind = [layer for layer in before if layer]
    chosen = [behind[share * len(behind) // 3] for share in range(3)] if behind else []
    return sorted({0} & {*before} | {*chosen})


def _engine_runs(name: str, engine: Engine, points: Mapping[str, OperatingPoint]) -> dict[RunKey, Run]:
    """Return an engine's runs at full depth, at its points and at fixed depths.

    Raises:
        InvalidInput: a point that the engine cannot run.
    """
    all_points: dict[str, OperatingPoint | None] = {FULL: None, **points}
    for point in all_points.values():
        engine.check(point)
    runs: dict[RunKey, Run] = {
        RunKey(name, "point", label): partial(engine.answer, point=point) for label, point in all_points.items()
    }
    for layer in _timed_depths(engine):
        point = fixed_depth_point(layer, leave_layers(engine))
        runs[RunKey(name, "depth", str(layer))] = partial(engine.answer, point=point)
    return runs


@dataclass(frozen=True)
class _Measurements:
    """Times and answers of all runs at one batch size."""

    batch_size: int
    depth: int
    problem_type: str
    labels: Tensor | None
    times: Mapping[RunKey, Times]
    answers: Mapping[RunKey, Sequence[Answers | Tensor]]
    points: Mapping[str, Mapping[str, OperatingPoint]]

    def fastest_baseline(self, engine: str | None = None) -> Times:
        """Return the times of the fastest baseline of an engine, or of all."""
        times = [self.times[key] for key in self.times if key.kind == "baseline" and engine in (None, key.engine)]
        return min(times, key=lambda run: median(run.passes))

    def row(self, key: RunKey, costs: LayerCostModel | None = None, reads_lexical: bool = False) -> BenchmarkRow:
        """Return the row of a run; a baseline has no costs of layers, and reads no exit before the first layer."""
        times = self.times[key]
        logits, exits = _concatenate(self.answers[key])
        if key.kind == "point" and (point := self.points.get(key.engine, {}).get(key.name)):
            logits = at_label_thresholds(logits, point.label_thresholds)
        mean_exit = float(self.depth) if exits is None else exits.double().mean().item()
        speedup = SpeedupRange.of(self.fastest_baseline(key.engine), times)
        ideal = None if costs is None or exits is None else costs.ideal(self.depth, exits, reads_lexical)
        return BenchmarkRow(
            batch_size=self.batch_size,
            engine=key.engine,
            name=key.name,
            rival=key.kind == "baseline",
            score=None if self.labels is None else layerwise(_trace(logits, self.labels, self.problem_type))[0],
            mean_exit=mean_exit,
            p50_ms=times.ms(0.5),
            p99_ms=times.ms(0.99),
            per_second=times.per_second,
            speedup=speedup,
            ideal=ideal,
            efficiency=None if ideal is None else speedup.median / ideal,
            against_best=SpeedupRange.of(self.fastest_baseline(), times),
        )


def _concatenate(batches: Sequence[Answers | Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return logits (N, C) and exit layers (N,) of all batches; no layers where the run returns logits alone."""
    logits = torch.cat([batch if isinstance(batch, Tensor) else batch.logits for batch in batches]).float()
    exits = [batch.exit_layers for batch in batches if isinstance(batch, Answers)]
    return logits, torch.cat(exits) if exits else None


def metric_name(config: MultiExitConfig, labels: Tensor) -> str:
    """Return the name of the default metric for labels."""
    return metric_for(_trace(torch.zeros(len(labels), config.num_labels), labels, config.problem_type), None)[0]


def _trace(logits: Tensor, labels: Tensor, problem_type: str) -> Trace:
    """Wrap answers as a trace of one exit."""
    return Trace(logits.unsqueeze(0), labels, problem_type=problem_type)
