"""Where the time of early exit goes, and exact int8 against dynamic int8, for `speed.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from offramp.bench.adaptive import adaptive, engine_loader
from offramp.bench.contestant import TextAnswers
from offramp.bench.cost_table import measure_costs
from offramp.bench.plain_models import PlainModels
from offramp.bench.settings import trial_texts
from offramp.bench.timer import Inputs, LayerCostModel, SpeedupRange, time_batches, time_texts
from offramp.data.batching import collate, length_sorted
from offramp.data.rows import Text
from offramp.inference.load_engine import load_engine
from offramp.types.operating_point import OperatingPoint, fixed_depth_point

ROUNDS, ROWS = 5, 256
THREADS, SIZES = (1, 2), (1, 8, 32)
INT8, EXACT, DYNAMIC = "onnx-int8", "plain exact int8", "plain dynamic int8"


def layer_costs(folder: Path, engine: str, texts: Sequence[Text], size: int) -> LayerCostModel:
    """Measure what the lexical exit, the embedding and a layer take in an engine, in seconds a text."""
    table = measure_costs(folder, trial_texts(texts, size, 1), engine, batch_size=size, rounds=3)
    return LayerCostModel.through({layer: ms / 1000 for layer, ms in zip(table.layers, table.ms, strict=True)})


def profile(
    folder: Path, models: PlainModels, point: OperatingPoint, texts: Sequence[Text], size: int
) -> dict[str, float]:
    """Return where the time of a text goes at a point of the int8 graph, in milliseconds, with one thread.

    Measured are the tokenizer, the graph where all texts leave at the lexical exit, the graph at the point and at full
    depth, the same model without exits, and `Predictor` as a whole. `layers` is what the model without exits takes for
    the layers that run, in full batches; `exits` what its exits and decisions add at full depth, for the layers that
    run; `small_batches` is what remains of the graph's time at the point.
    """
    encoder, engine = models.encoder, load_engine(folder, INT8, threads=1)
    tokens = encoder.encode(texts)
    pad = engine.config.pad_token_id
    batches = [collate([tokens[row] for row in rows], pad) for rows in length_sorted(tokens, size)]
    read = point.layers_read(engine.config.layers)
    plain = models.by_name(EXACT).load(1, 1)

    def without_exits(inputs: Inputs) -> Tensor:
        return torch.from_numpy(plain({name: values.numpy() for name, values in inputs.items()}))

    first = replace(fixed_depth_point(read[0], read), policy=point.policy)
    points = {"first": first, "point": point, "never": None}
    graph_runs = {name: partial(engine.answer, point=one) for name, one in points.items()}
    times, answers = time_batches({**graph_runs, "plain": without_exits}, batches, ROUNDS)
    ms = {name: 1000 / one.per_second for name, one in times.items()}
    exits = torch.cat([batch.exit_layers for batch in answers["point"]])  # type: ignore[union-attr]

    def tokenize(texts: Sequence[Text], batch_size: int) -> TextAnswers:
        rows = encoder.encode(texts)
        for start in range(0, len(rows), batch_size):
            encoder.batch(rows[start : start + batch_size])
        return TextAnswers(torch.empty(0), torch.empty(0))

    (whole,) = adaptive(INT8, engine_loader(folder, INT8), encoder.tokenizer, {"point": point})
    text_times, _ = time_texts({"tokenizer": tokenize, "whole": whole.load(1, 1)}, texts, size, ROUNDS)
    tokenizer_ms, whole_ms = (1000 / text_times[name].per_second for name in ("tokenizer", "whole"))
    depth = engine.config.exit_layers[-1]
    before = ms["first"] if read[0] == 0 else 0.0
    share = exits.double().mean().item() / depth
    layers, decided = share * ms["plain"], share * max(ms["never"] - before - ms["plain"], 0.0)
    return {
        "whole": whole_ms,
        "tokenizer": tokenizer_ms,
        "lexical": before,
        "layers": layers,
        "exits": decided,
        "small_batches": ms["point"] - before - layers - decided,
        "python": whole_ms - tokenizer_ms - ms["point"],
        "full_depth_graph": ms["never"],
        "without_exits": ms["plain"],
    }


def int8_ratios(models: PlainModels, texts: Sequence[Text]) -> dict[str, dict[str, float]]:
    """Return the speed of exact over dynamic int8 at full depth, each the faster of two, by "threads, batch size"."""
    some, ratios = trial_texts(texts, ROWS // 4, 1), {}
    both = {one.name: one for one in models.full if one.name.startswith((EXACT, DYNAMIC))}
    for threads in THREADS:
        runs = {name: one.contestant(models.encoder).load(threads, 1) for name, one in both.items()}
        for size in SIZES:
            times, _ = time_texts(runs, some, size, ROUNDS)
            exact, dynamic = (
                max((times[name] for name in both if name.startswith(kind)), key=lambda one: one.per_second)
                for kind in (EXACT, DYNAMIC)
            )
            ratios[f"{threads}, {size}"] = asdict(SpeedupRange.of(dynamic, exact))
    return ratios
