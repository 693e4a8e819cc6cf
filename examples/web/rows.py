"""Write what `run.mjs` is to be held to: 50 texts of the sample as tokens, and what Python says of them.

Writes `web.model.int8.onnx` into the folder as well: the graph with its weights inside, since onnxruntime-web does not
find those of branches in the file beside it.

    python rows.py model rows.json
    python rows.py model rows.json --engine onnx

The thresholds are those of the folder's operating point "default", with "never" at exits that it does not read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from offramp.data.batching import collate, encode, token_limit
from offramp.data.examples import read_rows
from offramp.data.readers import SAMPLE
from offramp.errors import OfframpError
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.predictor import Predictor
from offramp.types.graph_file import GRAPHS
from offramp.types.outputs import Answers

COUNT = 50
ALLOWED = {"onnx": 0, "onnx-int8": 2}  # rows that may leave elsewhere; README.md says why
ROUNDS = 5  # calls a text; the fastest counts


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write token rows, thresholds and Python's answers.")
    parser.add_argument("folder", help="the model's, with its exported file")
    parser.add_argument("output", type=Path)
    parser.add_argument("--engine", choices=ALLOWED, default="onnx-int8")
    options = parser.parse_args()
    try:
        told = answers(options.folder, options.engine)
    except OfframpError as error:
        raise SystemExit(f"rows.py: {error}") from None
    options.output.write_text(json.dumps(told), encoding="utf-8")
    graph = Path(options.folder) / GRAPHS[options.engine]
    onnx.save(onnx.load(graph), graph.with_name(f"web.{graph.name}"))


def answers(folder: str, engine: str) -> dict[str, Any]:
    """Rows, thresholds, and the answers to each row alone and to all in one batch."""
    predictor = Predictor.load(folder, engine)
    if predictor.point is None:
        raise SystemExit(f'rows.py: {folder} has no operating point "default"; `offramp calibrate` makes one')
    graph = predictor.engine
    assert isinstance(graph, OnnxEngine)
    thresholds = replace(
        predictor.point, thresholds=tuple(graph.points.limits(predictor.point)), exit_layers=tuple(graph.layers)
    )
    pad = graph.config.pad_token_id
    texts = [row.text for row in islice(read_rows(SAMPLE, split="test"), COUNT)]
    rows = encode(predictor.tokenizer, texts, token_limit(predictor.tokenizer, graph.config.backbone))
    batches = [collate([row], pad) for row in rows]
    return {
        "rows": rows,
        "pad_token_id": pad,
        "thresholds": thresholds.to_json()["thresholds"],
        "allowed": ALLOWED[engine],
        "alone": plain([predictor.answer(batch) for batch in batches]),
        "together": plain([predictor.answer(collate(rows, pad))]),
        "ms": milliseconds(predictor.answer, batches),
        "full_ms": milliseconds(graph.all_exits, batches),
    }


def plain(told: list[Answers]) -> dict[str, Any]:
    """Answers as lists."""
    return {
        "exit_layers": torch.cat([each.exit_layers for each in told]).tolist(),
        "logits": torch.cat([each.logits for each in told]).tolist(),
    }


def milliseconds(run: Callable[[dict[str, Tensor]], object], batches: list[dict[str, Tensor]]) -> float:
    """Median over the batches; of each, the fastest call."""
    fastest = [float("inf")] * len(batches)
    for _ in range(ROUNDS):
        for number, batch in enumerate(batches):
            start = time.perf_counter()
            run(batch)
            fastest[number] = min(fastest[number], time.perf_counter() - start)
    return 1000 * statistics.median(fastest)


if __name__ == "__main__":
    main()
