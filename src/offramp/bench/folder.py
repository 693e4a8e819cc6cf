"""Benchmark a model's folder: its engines at its operating points."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from offramp.bench.baselines import full_depth
from offramp.bench.compare import FULL, BenchmarkResult, BenchmarkRow, log, metric_name, run_benchmark
from offramp.data.batching import collate, encode, token_limit
from offramp.data.columns import GUESSED, Columns
from offramp.data.examples import Examples
from offramp.data.records import AS_NAMED, Reading
from offramp.data.rows import Text
from offramp.errors import InvalidInput
from offramp.inference.engine import ENGINES, Engine
from offramp.inference.load_engine import load_engine
from offramp.inference.onnx_engine import leave_layers
from offramp.inference.record import read_data_for
from offramp.inference.torch_engine import TorchEngine
from offramp.model.hub import load_config, load_points, load_tokenizer, refuse_images
from offramp.model.loading import load_model
from offramp.types.operating_point import OperatingPoint


def benchmark_folder(
    folder: str | os.PathLike[str],
    source: str,
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    *,
    rows: int = 512,
    rounds: int = 5,
    columns: Columns = GUESSED,
    split: str = "test",
    reading: Reading = AS_NAMED,
) -> BenchmarkResult:
    """Time a model's folder: each engine, each of its saved points that the engine can run, each batch size.

    Args:
        folder: of a saved model, with its tokenizer.
        source: texts, and labels if there are some: a file or a data set's name.
        engines: names of ENGINES; None = torch and the exported graphs.
        batch_sizes: rows at once.
        rows: the largest number of texts, taken evenly from the source.
        rounds: how often each run answers all of them.
        columns: the columns of a file to read.
        split: the part of a named data set to read.
        reading: how to read a file, where its name does not say it.

    Raises:
        DataError: rows or labels that do not fit the model.
        InvalidInput: a model of images or of one exit, no such graph.
    """
    config = load_config(folder)
    refuse_images(folder, config)
    loaded = _engines(folder, engines)
    if all(len(leave_layers(engine)) == 1 for engine in loaded.values()):
        raise InvalidInput(f"{folder}: a model of one exit has nowhere to leave early")
    points = {key: _points(key, engine, folder) for key, engine in loaded.items()}
    texts, labels = _texts(folder, source, columns, split, reading)
    indices = [number * len(texts) // min(rows, len(texts)) for number in range(min(rows, len(texts)))]
    tokenizer = load_tokenizer(folder, config.backbone)
    tokens = encode(tokenizer, [texts[number] for number in indices], token_limit(tokenizer, config.backbone))
    labels = None if labels is None else labels[indices]
    eager = loaded.get("torch")
    model = eager.model if isinstance(eager, TorchEngine) else load_model(folder)
    results: list[BenchmarkRow] = []
    with tempfile.TemporaryDirectory() as exports:
        baselines = full_depth(model, Path(exports), collate(tokens[:2], config.pad_token_id))
        for size in batch_sizes:
            log.info("%d texts, batches of %d", len(tokens), size)
            results += run_benchmark(loaded, points, baselines, tokens, labels, size, rounds)
    metric = None if labels is None else metric_name(config, labels)
    return BenchmarkResult(metric, config.exit_layers[-1], len(tokens), rounds, torch.get_num_threads(), tuple(results))


def _engines(folder: str | os.PathLike[str], names: Sequence[str] | None) -> dict[str, Engine]:
    """Load the named engines; without names torch and every graph that can run."""
    if names is not None:
        return {name: load_engine(folder, name) for name in names}
    engines: dict[str, Engine] = {}
    for name in ENGINES:
        try:
            engines[name] = load_engine(folder, name)
        except InvalidInput as error:
            if name == "torch":
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
