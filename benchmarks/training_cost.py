"""What all the exits cost in training: time of a step with them, over a step of the plain model.

    python benchmarks/training_cost.py

The default encoder and a BERT-base with random weights; forward, backward and AdamW, the two in turn; writes
`benchmarks/results/training_cost.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from machine import provenance
from offramp.bench import interleaved, median
from offramp.encoder import default_encoder
from offramp.model import MultiExitModel

BATCH, TOKENS, ROUNDS = 32, 32, 15
RESULTS = Path(__file__).parent / "results"


def step_of(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[int], None]:
    """One training step on random tokens."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(1000, 20000, (BATCH, TOKENS))
    labels = torch.randint(0, 2, (BATCH,))

    def step(number: int) -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def cost(backbone: str | BertConfig, pooling: str, dtype: torch.dtype) -> dict[str, float]:
    """Median seconds of both steps, and the median of their ratio."""
    auto = AutoModelForSequenceClassification  # with two labels, if not told otherwise
    plain = auto.from_pretrained(backbone) if isinstance(backbone, str) else auto.from_config(backbone)
    rivals = {"plain": plain, "exits": MultiExitModel.from_backbone(backbone, 2, pooling=pooling)}
    taken = interleaved({name: step_of(model, dtype) for name, model in rivals.items()}, ROUNDS)
    ratios = [exits / plain for exits, plain in zip(taken["exits"], taken["plain"], strict=True)]
    return {
        "plain_s": median(taken["plain"]),
        "exits_s": median(taken["exits"]),
        "ratio": median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def main() -> None:
    """Measure and write."""
    found: dict[str, object] = {"about": provenance(), "batch": BATCH, "tokens": TOKENS, "rounds": ROUNDS}
    for pooling in ("mean", "first"):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"default encoder, {pooling} pooling, {str(dtype).removeprefix('torch.')}"
            found[name] = cost(default_encoder(), pooling, dtype)
    found["BERT-base, mean pooling, float32"] = cost(BertConfig(), "mean", torch.float32)
    (RESULTS / "training_cost.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
