"""Early exit against full depth: every engine at every operating point and every batch size, on the same texts.

What early exit could give at most is measured, too. Everybody made to leave at layer k takes about embed + k block; a
straight line through some depths, by least squares, tells both, whatever the engine. With a mean exit of m of L layers
the ideal speed-up is (embed + L block) / (embed + m block), and efficiency is the speed-up over the plain model, which
has no exits, as a share of it. So efficiency pays for all that early exit brings: exits, decisions, cutting the batch,
and that the rows which stay make small batches, whose layers cost more a row.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.bench import Line, Ratio, Run, Times, median, turns
from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.examples import GUESSED, Columns, Text, read_rows
from offramp.errors import InvalidInput
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.inference.engine import Engine
from offramp.inference.load_engine import load_engine
from offramp.inference.onnx.metadata import ENGINES
from offramp.inference.record import read_for
from offramp.inference.torch_engine import TorchEngine
from offramp.model.config import MultiExitConfig
from offramp.model.hub import load_config, load_points, load_tokenizer, refuse_images
from offramp.model.loading import load_model
from offramp.rivals import Rival, full_depth
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers
from offramp.types.trace import Trace

log = logging.getLogger("offramp")

FULL = "full"
"""What an engine at full depth is called among its operating points."""


@dataclass(frozen=True)
class Result:
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
    speedup: Ratio
    ideal: float | None
    efficiency: float | None
    against_best: Ratio

    @property
    def early(self) -> bool:
        """Whether it may leave early."""
        return not self.rival and self.name != FULL


@dataclass(frozen=True)
class Contest:
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
    results: tuple[Result, ...]


def leave_at(layer: int, layers: Sequence[int]) -> OperatingPoint:
    """Everybody leaves at one layer: under any policy every score reaches a threshold of -inf, and none one of inf."""
    return OperatingPoint({"name": "fixed"}, tuple(-math.inf if each >= layer else math.inf for each in layers[:-1]))


def compare(
    engines: Mapping[str, Engine],
    points: Mapping[str, Mapping[str, OperatingPoint]],
    rivals: Sequence[Rival],
    rows: Sequence[Mapping[str, Any]],
    labels: Tensor | None,
    batch_size: int,
    rounds: int,
) -> list[Result]:
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
        runs |= {(key, layer): partial(engine.answer, point=leave_at(layer, layers)) for layer in shallow}
    times, said = turns(runs, batches, rounds)
    told = _Told(batch_size, layers[-1], config.problem_type, ordered, rivals, times, said)
    found = [told.result(rival, rival.engine, rival.name) for rival in rivals]
    for key in engines:
        depths = {layer: (key, layer) for layer in shallow} | {layers[-1]: (key, FULL)}
        line = Line.through({layer: median(times[timed].passes) for layer, timed in depths.items()})
        found += [told.result((key, name), key, name, line) for name in (FULL, *points.get(key, {}))]
    return found


@dataclass(frozen=True)
class _Told:
    """What all did at one batch size: what makes results of it."""

    batch_size: int
    depth: int
    problem_type: str
    labels: Tensor | None
    rivals: Sequence[Rival]
    times: Mapping[Hashable, Times]
    said: Mapping[Hashable, Sequence[Answers | Tensor]]

    def fastest(self, engine: str | None = None) -> Times:
        """Of the rivals that belong to an engine, or of all."""
        those = [self.times[rival] for rival in self.rivals if engine in (None, rival.engine)]
        return min(those, key=lambda times: median(times.passes))

    def result(self, key: Hashable, engine: str, name: str, line: Line | None = None) -> Result:
        """Of what was timed under a key; a rival has no line."""
        times = self.times[key]
        logits, exits = _together(self.said[key])
        mean_exit = float(self.depth) if exits is None else exits.double().mean().item()
        speedup = Ratio.of(self.fastest(engine), times)
        ideal = None if line is None else line.ideal(self.depth, mean_exit)
        return Result(
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
            against_best=Ratio.of(self.fastest(), times),
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


def time_folder(
    folder: str | os.PathLike[str],
    source: str,
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    *,
    rows: int = 512,
    rounds: int = 5,
    columns: Columns = GUESSED,
    split: str = "test",
) -> Contest:
    """Time a model's folder: each engine, each of its saved points that the engine can run, each batch size.

    Args:
        folder: what `save_pretrained` wrote, with its tokenizer.
        source: texts, and labels if there are some: a file or a data set's name.
        engines: names of ENGINES; None = torch, and the graphs that are there.
        batch_sizes: rows at once.
        rows: at most so many texts, taken evenly from the source.
        rounds: how often everybody answers all of them.
        columns: which columns of a file to read.
        split: which part of a named data set to read.

    Raises:
        DataError: rows or labels that do not fit the model.
        InvalidInput: a model of images or of one exit, no such graph.
    """
    config = load_config(folder)
    refuse_images(folder, config)
    if len(config.exit_layers) == 1:
        raise InvalidInput(f"{folder}: a model of one exit has nowhere to leave early")
    running = _engines(folder, engines)
    points = {key: _points(key, engine, folder) for key, engine in running.items()}
    texts, labels = _texts(folder, source, columns, split)
    chosen = [number * len(texts) // min(rows, len(texts)) for number in range(min(rows, len(texts)))]
    tokenizer = load_tokenizer(folder)
    tokens = encode(tokenizer, [texts[number] for number in chosen], token_limit(tokenizer, config.backbone))
    labels = None if labels is None else labels[chosen]
    eager = running.get("torch")
    model = eager.model if isinstance(eager, TorchEngine) else load_model(folder)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as exports:
        rivals = full_depth(model, Path(exports), collate(tokens[:2], config.pad_token_id))
        for size in batch_sizes:
            log.info("%d texts, batches of %d", len(tokens), size)
            results += compare(running, points, rivals, tokens, labels, size, rounds)
    metric = None if labels is None else _metric(config, labels)
    return Contest(metric, config.exit_layers[-1], len(tokens), rounds, torch.get_num_threads(), tuple(results))


def _engines(folder: str | os.PathLike[str], names: Sequence[str] | None) -> dict[str, Engine]:
    """What was asked for; else torch, and every graph that can run."""
    if names is not None:
        return {name: load_engine(folder, name) for name in names}
    found: dict[str, Engine] = {}
    for name in ENGINES:
        try:
            found[name] = load_engine(folder, name)
        except InvalidInput as error:
            if name == "torch":
                raise
            log.info("without %s: %s", name, error)
    return found


def _points(key: str, engine: Engine, folder: str | os.PathLike[str]) -> dict[str, OperatingPoint]:
    """The saved points that an engine can run."""
    points = {}
    for name, point in load_points(folder).items():
        if name == FULL:  # everybody runs it anyhow
            continue
        try:
            engine.check(point)
            points[name] = point
        except InvalidInput as error:
            log.info("without %s at %r: %s", key, name, error)
    return points


def _texts(
    folder: str | os.PathLike[str], source: str, columns: Columns, split: str
) -> tuple[list[Text], Tensor | None]:
    """Texts, and their labels where the first one has one."""
    rows = list(read_rows(source, columns, split=split, labelled=False))
    if rows[0].label is None:
        return [row.text for row in rows], None
    examples = read_for(load_config(folder), source, columns, split)
    return examples.texts, torch.tensor(examples.labels)
