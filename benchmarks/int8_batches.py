"""Do int8 answers depend on the rest of the batch?

    make demo && .venv/bin/pip install -e ".[onnx]"
    .venv/bin/offramp export offramp-demo && .venv/bin/offramp export offramp-demo --int8
    python benchmarks/int8_batches.py offramp-demo

Answers the test messages of the built-in sample at the model's operating point "default" one by one, and compares
batches of 8 and of 32, shuffled batches, and batches padded to 64 and 128 tokens with that: the labels and exit layers
that differ, and the largest difference of a logit. Likewise dynamic int8, at full depth, whose scales of activations
are each batch's own. Writes `benchmarks/results/int8_batches.json` and `.md`. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from machine import as_lines, provenance
from offramp.bench.baselines import export_exits, in_onnx_runtime, output_at
from offramp.data.batching import collate, encode, token_limit
from offramp.data.columns import Columns
from offramp.data.examples import read_examples
from offramp.inference.predictor import Predictor
from offramp.model.loading import load_model
from offramp.types.graph_file import GRAPHS

RESULTS = Path(__file__).parent / "results"
Rows = Sequence[dict[str, Any]]
Answer = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
"""A batch of tokens -> logits (B, C), exit layers (B,)."""
BATCHES = {"8 at a time": (8, 0), "32 at a time": (32, 0), "32, shuffled": (32, 0)} | {
    f"32, padded to {tokens}": (32, tokens) for tokens in (64, 128)
}
"""Name -> rows at once, tokens to pad to."""


def adaptive(folder: Path, engine: str) -> Answer:
    """A graph of the folder at its default point."""
    predictor = Predictor.load(folder, engine)

    def answer(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        answers = predictor.answer(batch)
        return answers.logits, answers.exit_layers

    return answer


def dynamic(folder: Path) -> Answer:
    """The plain model in ONNX Runtime's dynamic int8."""
    model = load_model(folder)
    depth = model.layers[-1]
    runtimes = in_onnx_runtime(export_exits(model), model, [])  # exact int8 alone reads rows, when it is loaded
    runtime = next(runtime for runtime in runtimes if "dynamic" in runtime.name)
    run = runtime.load(output_at(depth), 1, 1)

    def answer(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = torch.from_numpy(run({name: value.numpy() for name, value in batch.items()}))
        return logits, torch.full((len(logits),), depth)

    return answer


def in_batches(answer: Answer, rows: Rows, size: int, tokens: int, order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Answers of all rows, in their order, asked in another one."""
    parts = []
    for start in range(0, len(rows), size):
        batch = collate([rows[number] for number in order[start : start + size]], 0)
        extra = max(0, tokens - batch["input_ids"].shape[1])
        parts.append(answer({name: F.pad(value, (0, extra)) for name, value in batch.items()}))
    back = torch.tensor(order).argsort()
    logits, layers = (torch.cat(values)[back] for values in zip(*parts, strict=True))
    return logits, layers


def compared(answer: Answer, rows: Rows) -> dict[str, dict[str, float]]:
    """By kind of batch: the shares of labels and exit layers that differ from one by one, the largest difference."""
    own = list(range(len(rows)))
    shuffled = random.Random(0).sample(own, len(own))
    logits, layers = in_batches(answer, rows, 1, 0, own)
    result = {}
    for name, (size, tokens) in BATCHES.items():
        others, left = in_batches(answer, rows, size, tokens, shuffled if "shuffled" in name else own)
        result[name] = {
            "label": (others.argmax(dim=1) != logits.argmax(dim=1)).float().mean().item(),
            "exit_layer": (left != layers).float().mean().item(),
            "logit": (others - logits).abs().max().item(),
        }
    return result


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    texts = read_examples("helpdesk", Columns(text="text", label="intent"), split="test").texts
    tokenizer = Predictor.load(folder, "torch").tokenizer
    rows = encode(tokenizer, texts, token_limit(tokenizer, load_model(folder).config.backbone))
    answers = {engine: adaptive(folder, engine) for engine, file in GRAPHS.items() if (folder / file).exists()}
    answers["dynamic int8, full depth"] = dynamic(folder)
    results = {engine: compared(answer, rows) for engine, answer in answers.items()}
    lines = [
        f"| {engine} | {batches} | {v['label']:.1%} | {v['exit_layer']:.1%} | {v['logit']:.2g} |"
        for engine, by_batches in results.items()
        for batches, v in by_batches.items()
    ]
    head = "| engine | batches | labels that differ | exit layers that differ | largest difference of a logit |"
    table = "\n".join([head, "|---|---|---|---|---|", *lines])
    about = provenance()
    title = f"# Answers one by one and in batches\n\n{len(rows)} messages, the demo's model at its default point.\n"
    (RESULTS / "int8_batches.md").write_text(f"{title}{as_lines(about)}\n\n{table}\n")
    data = {"about": about, "rows": len(rows), "results": results}
    (RESULTS / "int8_batches.json").write_text(json.dumps(data, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    main()
