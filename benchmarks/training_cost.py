"""What exits cost in training: time and memory of a step with them, over a step of the plain model.

    python benchmarks/training_cost.py

The default encoder and a BERT-base with random weights; forward, backward and AdamW. Time: the rivals in turn, median
of the ratios. Memory: the peak of a process of its own for each rival, less what it had before the model. Writes
`benchmarks/results/training_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedConfig, PreTrainedModel

from machine import provenance
from offramp.bench.timer import median, time_interleaved
from offramp.model.bypass import Bypass
from offramp.model.default_encoder import default_encoder
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.training.objectives.base import Objective
from offramp.training.objectives.registry import load_objective
from offramp.types.outputs import ExitOutput

BATCH, TOKENS, ROUNDS = 32, 32, 9
RESULTS = Path(__file__).parent / "results"
FEATURES = {"bypass": Bypass(rank=16), "certainty": True, "memory": 0.9}
TOKEN_EXIT = {6: {2: 0.7, 4: 0.7}, 12: {4: 0.7, 7: 0.7, 10: 0.7}}  # by depth
RIVALS = ("plain", "exits", "every feature", "every feature, token exit")
ENCODERS: dict[str, str | PreTrainedConfig] = {"default encoder": default_encoder(), "BERT-base": BertConfig()}
SETTINGS = (
    *(("default encoder", pooling, dtype) for pooling in ("mean", "first") for dtype in ("float32", "bfloat16")),
    ("BERT-base", "mean", "float32"),
)


def model_of(rival: str, encoder: str, pooling: str) -> tuple[PreTrainedModel, Objective | None]:
    """What is trained, and by which objective; the plain model has its own loss."""
    backbone = ENCODERS[encoder]
    if rival == "plain":
        auto = AutoModelForSequenceClassification  # with two labels, if not told otherwise
        plain = auto.from_pretrained(backbone) if isinstance(backbone, str) else auto.from_config(backbone)
        return plain, None
    if rival == "exits":
        return MultiExitModel.from_backbone(backbone, 2, pooling=pooling), load_objective("weighted")
    depth = 6 if encoder == "default encoder" else 12
    token_exit = TokenExit(keep_ratio=TOKEN_EXIT[depth]) if "token exit" in rival else None
    model = MultiExitModel.from_backbone(backbone, 2, pooling=pooling, token_exit=token_exit, **FEATURES)
    return model, load_objective("ensemble-distillation")


def step_of(rival: str, encoder: str, pooling: str, dtype: str) -> Callable[[int], None]:
    """One training step on random tokens."""
    model, objective = model_of(rival, encoder, pooling)
    model.train()
    modules = torch.nn.ModuleList(objective.modules() if objective else ())
    for module in modules:
        module(torch.zeros(1, 1, 2))  # lazy layers take their shape
    optimizer = torch.optim.AdamW([*model.parameters(), *modules.parameters()])
    ids = torch.randint(1000, 20000, (BATCH, TOKENS))
    labels = torch.randint(0, 2, (BATCH,))

    def step(number: int) -> None:
        with torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if objective is None:
                loss = model(**inputs, labels=labels).loss
            else:
                out = model(**inputs)
                exits = ExitOutput(out.exit_logits, out.exit_certainty)
                loss = objective.loss(objective.stages[0], number, exits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def times(encoder: str, pooling: str, dtype: str) -> dict[str, dict[str, float]]:
    """Median seconds of each rival's step, and the median of its ratio to the plain one."""
    steps = {rival: step_of(rival, encoder, pooling, dtype) for rival in RIVALS}
    taken = time_interleaved(steps, ROUNDS)
    figures = {}
    for rival, seconds in taken.items():
        ratios = [with_exits / plain for with_exits, plain in zip(seconds, taken["plain"], strict=True)]
        low, high = min(ratios), max(ratios)
        figures[rival] = {"seconds": median(seconds), "ratio": median(ratios), "ratio_low": low, "ratio_high": high}
    return figures


def peak(rival: str, encoder: str, pooling: str, dtype: str) -> float:
    """MiB that three steps add to this process at most."""
    before = most_memory()
    step = step_of(rival, encoder, pooling, dtype)
    for number in range(3):
        step(number)
    return most_memory() - before


def most_memory() -> float:
    """MiB that this process ever held, as Linux tells it; `resource` would count its parent as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak_alone(*setting: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--peak", *setting]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peak", nargs=4, metavar="WORD", help="rival, encoder, pooling, dtype: print the memory alone"
    )
    options = parser.parse_args()
    if options.peak:
        print(peak(*options.peak))
        return
    results: dict[str, object] = {"about": provenance(), "batch": BATCH, "tokens": TOKENS, "rounds": ROUNDS}
    for setting in SETTINGS:
        figures = times(*setting)
        for rival in RIVALS:
            figures[rival]["peak_mib"] = peak_alone(rival, *setting)
            figures[rival]["peak_ratio"] = figures[rival]["peak_mib"] / figures["plain"]["peak_mib"]
        results[", ".join(setting)] = figures
    (RESULTS / "training_cost.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
