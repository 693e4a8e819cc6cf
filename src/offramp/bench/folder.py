"""Benchmark a model's folder: early exit in its engines against all that the same model can do without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from offramp.bench.adaptive import FULL, adaptive, engine_loader
from offramp.bench.baselines import log
from offramp.bench.compare import BenchmarkResult, BenchmarkRow, compare, metric_name
from offramp.bench.contestant import Contestant
from offramp.bench.cost_table import measure_costs
from offramp.bench.entry import Entry
from offramp.bench.plain_models import plain_models
from offramp.bench.settings import Ready, trial_texts
from offramp.bench.texts import TextEncoder
from offramp.bench.timer import LayerCostModel
from offramp.data.batching import Cuts
from offramp.data.columns import GUESSED, Columns
from offramp.data.examples import Examples
from offramp.data.records import AS_NAMED, Reading
from offramp.data.rows import Text
from offramp.errors import InvalidInput
from offramp.inference.engine import ENGINES, Engine
from offramp.inference.onnx_engine import leave_layers
from offramp.inference.record import read_data_for
from offramp.inference.workers import cores
from offramp.model.hub import load_config, load_tokenizer, refuse_images
from offramp.model.loading import load_model
from offramp.model.points import load_points
from offramp.types.cost_table import CostTable
from offramp.types.costs_file import save_costs
from offramp.types.operating_point import OperatingPoint

EXAMPLES = 128  # texts that int8 takes the ranges of activations from


def benchmark_folder(
    folder: str | os.PathLike[str],
    source: str,
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    *,
    rows: int = 256,
    rounds: int = 5,
    columns: Columns = GUESSED,
    split: str = "test",
    reading: Reading = AS_NAMED,
) -> BenchmarkResult:
    """Race a model's folder: each engine at each of its saved points that it can run, at each batch size.

    Args:
        folder: of a saved model, with its tokenizer.
        source: texts, and labels if there are some: a file or a data set's name.
        engines: names of ENGINES; None = torch and what was exported.
        batch_sizes: texts at once.
        rows: the largest number of texts, taken evenly from the source.
        rounds: how often each contestant answers all of them.
        columns: the columns of a file to read.
        split: the part of a named data set to read.
        reading: how to read a file, where its name does not say it.

    Raises:
        DataError: rows or labels that do not fit the model.
        InvalidInput: a model of images or of one exit, no such graph.
    """
    # 1) the model, its engines and points, the texts
    config = load_config(folder)
    refuse_images(folder, config)
    model = load_model(folder)
    loaders = {name: engine_loader(folder, name, model) for name in engines or ENGINES}
    loaded = _load(loaders, required=engines or ("torch",))
    if all(len(leave_layers(engine)) == 1 for engine in loaded.values()):
        raise InvalidInput(f"{folder}: a model of one exit has nowhere to leave early")
    texts, labels = _texts(folder, source, columns, split, reading)
    indices = [number * len(texts) // min(rows, len(texts)) for number in range(min(rows, len(texts)))]
    texts, labels = [texts[number] for number in indices], None if labels is None else labels[indices]
    # 2) the contestants
    tokenizer = load_tokenizer(folder, config.backbone)
    encoder = TextEncoder(tokenizer, config)
    encoder.encode(texts)  # logs once how many are cut
    early: list[Contestant] = []
    for name, engine in loaded.items():
        early += adaptive(name, loaders[name], tokenizer, {FULL: None, **_points(name, engine, folder)})
    results: list[BenchmarkRow] = []
    with TemporaryDirectory(prefix="offramp-bench-") as exports, Cuts().counted():
        entry = Entry(plain_models(model, encoder, texts[:EXAMPLES], Path(exports)), early, model, texts, labels)
        # 3) a race for each batch size
        for size in batch_sizes:
            log.info("%d texts, batches of %d: choosing threads and workers", len(texts), size)
            ready = entry.in_settings(size)
            tables = {name: _costs(name, loaders[name], ready, encoder, texts, size) for name in loaded}
            _keep(folder, tables.values())
            lines = {name: dict(zip(table.layers, table.ms, strict=True)) for name, table in tables.items()}
            costs = {name: LayerCostModel.through(line) for name, line in lines.items()}
            log.info("%d texts, batches of %d: %d contestants", len(texts), size, len(ready))
            results += compare(ready, texts, labels, size, rounds, config=config, encoder=encoder, costs=costs)
    metric = None if labels is None else metric_name(config, labels)
    return BenchmarkResult(metric, config.exit_layers[-1], len(texts), rounds, cores(), tuple(results))


def _load(loaders: Mapping[str, Callable[[int], Engine]], required: Collection[str]) -> dict[str, Engine]:
    """Load engines with one thread; those that are not required may fail, with a log line."""
    engines: dict[str, Engine] = {}
    for name, load in loaders.items():
        try:
            engines[name] = load(1)
        except InvalidInput as error:
            if name in required:
                raise
            log.info("without %s: %s", name, error)
    return engines


def _points(key: str, engine: Engine, folder: str | os.PathLike[str]) -> dict[str, OperatingPoint]:
    """Return the saved points that an engine can run."""
    points = {}
    for name, point in load_points(folder).items():
        if name == FULL:  # every engine runs it anyhow
            continue
        try:
            engine.check(point)
            points[name] = point
        except InvalidInput as error:
            log.info("without %s at %r: %s", key, name, error)
    return points


def _texts(
    folder: str | os.PathLike[str], source: str, columns: Columns, split: str, reading: Reading
) -> tuple[list[Text], Tensor | None]:
    """Read texts, and their labels where every text has one."""
    data = read_data_for(load_config(folder), source, columns, split, reading)
    return (data.texts, torch.tensor(data.labels)) if isinstance(data, Examples) else (data, None)


def _costs(
    name: str,
    load: Callable[[int], Engine],
    ready: Sequence[Ready],
    encoder: TextEncoder,
    texts: Sequence[Text],
    batch_size: int,
) -> CostTable:
    """Measure what the layers of an engine take, on some of the texts, with its threads and workers at full depth."""
    wanted = ("full-depth", name, FULL)
    own = (one for one in ready if (one.contestant.kind, one.contestant.engine, one.contestant.name) == wanted)
    threads, workers = next(((one.threads, one.workers) for one in own), (1, 1))
    engine = load(threads)
    torch.set_num_threads(threads)  # of the whole process
    rows = encoder.encode(trial_texts(texts, batch_size, 1))
    return measure_costs(engine, rows, batch_size=batch_size, rounds=3, workers=workers)


def _keep(folder: str | os.PathLike[str], tables: Collection[CostTable]) -> None:
    """Keep cost tables with a local folder's model, where they tell "auto" the fastest engine."""
    if not Path(folder).is_dir():
        return
    try:
        save_costs(folder, tuple(tables))
    except InvalidInput as error:  # a folder that cannot be written can be raced all the same
        log.info("the cost tables are not kept: %s", error)
