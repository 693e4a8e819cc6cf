"""Do two processes train as one does?

    python benchmarks/processes.py --data ../shared/data

The default encoder without dropout, with the gate, on 80 rows of SST-2 with class weights: two epochs of ten steps in
one process, and in two processes with half of the rows of a step each, which torchrun starts; of objectives in stages
so many a stage. The figure is the largest difference of the losses of a step. Writes `processes.json` and `.md` in
`benchmarks/results`; losses stay in `--runs`, and a run that was killed goes on after the last objective. About
equality, not time; a few minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

import offramp
from machine import as_lines, provenance
from offramp.data.batching import collate
from offramp.data.examples import Examples, read_examples, subsample
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_encoder, load_tokenizer
from offramp.training.fit import default_arguments, token_rows
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from resumable import load_state, save_state

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, ROWS = 20, 8, 80
WEIGHTS = [1.0, 3.0]


def trained(rows: Examples, objective: str, folder: Path, processes: int) -> list[float]:
    """Train in this process, one of some, and return the losses by step."""
    set_seed(0)
    encoder, tokenizer = load_encoder(default_encoder()), load_tokenizer(default_encoder())
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = 0.0
    settings = {"max_steps": STEPS, "per_device_train_batch_size": BATCH // processes, "save_strategy": "no"}
    settings |= {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "no", "seed": 0}
    trainer = offramp.ExitTrainer(
        offramp.MultiExitModel.from_backbone(encoder, 2, pooling="mean", certainty=True),
        default_arguments(folder, **settings),
        objective=load_objective(objective),
        class_weights=WEIGHTS,
        exit_learning_rate=1e-3,
        train_dataset=token_rows(rows, tokenizer, 64),
        data_collator=partial(collate, pad_token_id=0),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def work(options: argparse.Namespace) -> None:
    """Train every objective that is not there yet; the first process writes the losses."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    rows = read_examples(str(options.data / "sst2" / "validation.jsonl.gz"), split="validation")
    file = options.runs / f"{processes}.json"
    losses = load_state(file, {})
    for objective in [name for name in options.only if name not in losses]:
        losses[objective] = trained(subsample(rows, ROWS), objective, options.runs / "trainer", processes)
        if os.environ.get("RANK", "0") == "0":
            save_state(file, losses)
            print(f"{processes} process(es): {objective}", flush=True)


def compared(one: Sequence[float], two: Sequence[float]) -> dict[str, float]:
    """Return the largest difference between the losses of one process and of two, with the first and the last loss."""
    largest = max(abs(first - second) for first, second in zip(one, two, strict=True))
    return {"steps": len(one), "largest_difference": largest, "first_loss": one[0], "last_loss": one[-1]}


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# One process and two", "", as_lines(results["about"]), ""]
    lines += [
        f"The default encoder without dropout, with the gate, on SST-2 with class weights {WEIGHTS}, seed 0; {BATCH}"
        f" rows a step in one process, {BATCH // 2} in each of two. The largest difference of the losses of a step:",
        "",
        "| objective | steps | first loss | last loss | largest difference |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(results["objectives"].items()):
        losses = f"{row['first_loss']:.4f} | {row['last_loss']:.4f}"
        lines.append(f"| {name} | {row['steps']} | {losses} | {row['largest_difference']:.1e} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Train in one process and in two, and compare the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/processes"))
    parser.add_argument("--only", nargs="+", default=sorted(OBJECTIVES), choices=sorted(OBJECTIVES))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start in ([], launcher):
        subprocess.run([sys.executable, *start, *sys.argv, "--worker"], check=True)
    one, two = (load_state(options.runs / f"{processes}.json", {}) for processes in (1, 2))
    objectives = {name: compared(losses, two[name]) for name, losses in one.items() if name in two}
    results = {"about": provenance(), "objectives": objectives}
    (RESULTS / "processes.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "processes.md").write_text(page(results))


if __name__ == "__main__":
    main()
