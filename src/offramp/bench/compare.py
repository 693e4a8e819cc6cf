"""Early exit against full depth: every engine at every operating point and every batch size, on the same texts.

What early exit could give at most is measured, too. Everybody made to leave at layer k takes about embed + k block; a
straight line through some depths, by least squares, tells both, whatever the engine. With a mean exit of m of L layers
the ideal speed-up is (embed + L block) / (embed + m block), and efficiency is the speed-up over the plain model, which
has no exits, as a share of it. So efficiency pays for all that early exit brings: exits, decisions, cutting the batch,
and that the rows which stay make small batches, whose layers cost more a row.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from offramp.bench.baselines import Baseline
from offramp.bench.timer import LayerCostModel, Run, SpeedupRange, Times, median, time_batches
from offramp.data.batching import collate, length_sorted
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.inference.engine import Engine
from offramp.model.config import MultiExitConfig
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from offramp.types.outputs import Answers
from offramp.types.trace import Trace

log = logging.getLogger("offramp")

FULL = "full"
"""What an engine at full depth is called among its operating points."""


@dataclass(frozen=True)
class BenchmarkRow:
    """What an engine at an operating point, or a full-depth rival, did at one batch size.

    Attributes:
        batch_size: rows at once, of similar length.
        engine: of a rival, the one that it belongs to.
        name: the operating point's, or FULL, or the rival's.
        rival: whether it is a full-depth rival, without exits.
        score: on the metric of the contest; None without labels.
        mean_exit: mean exit layer.
        p50_ms: milliseconds a sample in the median batch (see `Times.ms`).
        p99_ms: in the slowest batches.
        per_second: samples.
        speedup: over the plain model in the same engine.
        ideal: what that speed-up could be at most; None for a rival.
        efficiency: the median speed-up as a share of the ideal one; None for a rival.
        against_best: speed over that of the fastest full-depth rival, in whatever engine.
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
        """Whether it may leave early."""
        return not self.rival and self.name != FULL


@dataclass(frozen=True)
class BenchmarkResult:
    """All results on one model and one data set.

    Attributes:
        metric: of the scores; None without labels.
        depth: layers of the full model.
        rows: how many texts.
        rounds: how often each rival answered all of them.
        threads: of torch; ONNX Runtime takes one a core.
        results: by batch size, rivals first.
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
    rivals: Sequence[Baseline],
    rows: Sequence[Mapping[str, Any]],
    labels: Tensor | None,
    batch_size: int,
    rounds: int,
) -> list[BenchmarkRow]:
    """Time engines at their operating points, and at full depth, against full-depth rivals.

    Args:
        engines: by name, all of one model with two exits or more.
        points: by engine, by name.
        rivals: at least one for each engine.
        rows: tokens, unpadded; rows of similar length make a batch, as in `Predictor`.
        labels: (N,) or (N, C); None = nothing is scored.
        batch_size: rows at once.
        rounds: how often everybody answers all rows.

    Raises:
        InvalidInput: a point that its engine cannot run.
    """
    config = next(iter(engines.values())).config
    layers: list[int] = config.exit_layers
    order = length_sorted(rows, batch_size)
    batches = [collate([rows[number] for number in numbers], config.pad_token_id) for numbers in order]
    ordered = None if labels is None else labels[[number for numbers in order for number in numbers]]
    shallow = [layers[number] for number in sorted({0, (len(layers) - 1) // 3, 2 * (len(layers) - 1) // 3})]
    runs: dict[Hashable, Run] = {rival: rival.run for rival in rivals}
    for key, engine in engines.items():
        at: dict[str, OperatingPoint | None] = {FULL: None, **points.get(key, {})}
        for point in at.values():
            engine.check(point)
        runs |= {(key, name): partial(engine.answer, point=point) for name, point in at.items()}
        runs |= {(key, layer): partial(engine.answer, point=fixed_depth_point(layer, layers)) for layer in shallow}
    times, said = time_batches(runs, batches, rounds)
    told = _Told(batch_size, layers[-1], config.problem_type, ordered, rivals, times, said)
    found = [told.result(rival, rival.engine, rival.name) for rival in rivals]
    for key in engines:
        depths = {layer: (key, layer) for layer in shallow} | {layers[-1]: (key, FULL)}
        line = LayerCostModel.through({layer: median(times[timed].passes) for layer, timed in depths.items()})
        found += [told.result((key, name), key, name, line) for name in (FULL, *points.get(key, {}))]
    return found


@dataclass(frozen=True)
class _Told:
    """What all did at one batch size: what makes results of it."""

    batch_size: int
    depth: int
    problem_type: str
    labels: Tensor | None
    rivals: Sequence[Baseline]
    times: Mapping[Hashable, Times]
    said: Mapping[Hashable, Sequence[Answers | Tensor]]

    def fastest(self, engine: str | None = None) -> Times:
        """Of the rivals that belong to an engine, or of all."""
        those = [self.times[rival] for rival in self.rivals if engine in (None, rival.engine)]
        return min(those, key=lambda times: median(times.passes))

    def result(self, key: Hashable, engine: str, name: str, line: LayerCostModel | None = None) -> BenchmarkRow:
        """Of what was timed under a key; a rival has no line."""
        times = self.times[key]
        logits, exits = _together(self.said[key])
        mean_exit = float(self.depth) if exits is None else exits.double().mean().item()
        speedup = SpeedupRange.of(self.fastest(engine), times)
        ideal = None if line is None else line.ideal(self.depth, mean_exit)
        return BenchmarkRow(
            batch_size=self.batch_size,
            engine=engine,
            name=name,
            rival=line is None,
            score=None if self.labels is None else layerwise(_trace(logits, self.labels, self.problem_type))[0],
            mean_exit=mean_exit,
            p50_ms=times.ms(0.5),
            p99_ms=times.ms(0.99),
            per_second=times.per_second,
            speedup=speedup,
            ideal=ideal,
            efficiency=None if ideal is None else speedup.median / ideal,
            against_best=SpeedupRange.of(self.fastest(), times),
        )


def _together(batches: Sequence[Answers | Tensor]) -> tuple[Tensor, Tensor | None]:
    """Logits (N, C) and exit layers (N,) of all batches; no layers where only logits were given."""
    logits = torch.cat([each if isinstance(each, Tensor) else each.logits for each in batches]).float()
    exits = [each.exit_layers for each in batches if isinstance(each, Answers)]
    return logits, torch.cat(exits) if exits else None


def _metric(config: MultiExitConfig, labels: Tensor) -> str:
    """The usual metric's name."""
    return metric_for(_trace(torch.zeros(len(labels), config.num_labels), labels, config.problem_type), None)[0]


def _trace(logits: Tensor, labels: Tensor, problem_type: str) -> Trace:
    """Answers as a trace of one exit, to be scored."""
    return Trace(logits.unsqueeze(0), labels, problem_type=problem_type)
