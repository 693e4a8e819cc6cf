"""Training and recording in one process or in several; as a script, one of the processes that torchrun starts.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/support/processes.py FOLDER JSON

JSON lists cases: an objective and the name of a variant. Each process trains each case and records the result.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from offramp.data.batching import collate
from offramp.inference.record import record
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import default_arguments
from offramp.training.objectives.registry import load_objective
from offramp.training.trainer import ExitTrainer
from support.models import encoder_config, token_rows

STEPS, GLOBAL_BATCH = 20, 8
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "certainty": {"certainty": True},
    "class weights": {"class_weights": [1.0, 3.0]},
    "accumulation": {"gradient_accumulation_steps": 2},
    "all": {"certainty": True, "class_weights": [1.0, 3.0], "gradient_accumulation_steps": 2},
}


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose label is whether the first token is of the upper half."""
    return [{**row, "labels": int(row["input_ids"][0] > 22)} for row in token_rows(count, seed=seed)]


def trainer_of(objective: str, variant: str, folder: Path, processes: int, **changes: Any) -> ExitTrainer:
    """Return a trainer without dropout, whose processes share GLOBAL_BATCH rows; 80 rows are ten batches of all."""
    options = dict(VARIANTS[variant])
    weights, gate = options.pop("class_weights", None), options.pop("certainty", False)
    torch.manual_seed(0)
    config = encoder_config(initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = MultiExitModel.from_backbone(config, 2, certainty=gate)
    settings = {
        "per_device_train_batch_size": GLOBAL_BATCH // processes,
        "per_device_eval_batch_size": GLOBAL_BATCH // processes,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return ExitTrainer(
        model,
        default_arguments(folder, **settings | options | changes),
        objective=load_objective(objective),
        class_weights=weights,
        train_dataset=labelled(80),
        eval_dataset=labelled(11, seed=1),  # fill no batch of all processes
        data_collator=partial(collate, pad_token_id=0),
    )


def losses_of(trainer: ExitTrainer, name: str = "loss") -> list[float]:
    """Return a loss by step, of all stages."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def torchrun(*command: str, folder: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script or a module in several processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(run, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=900)


def main(folder: Path, cases: list[list[str]]) -> None:
    """Train and record each case in this process and its fellows; the first writes."""
    processes = int(os.environ["WORLD_SIZE"])
    for number, (objective, variant) in enumerate(cases):
        trainer = trainer_of(objective, variant, folder / "run", processes)
        trainer.train()
        trace = record(trainer.model.eval(), labelled(7, seed=2), batch_size=3, group=distributed.group.WORLD)
        if distributed.get_rank() == 0:
            trace.save(folder / f"{number}.safetensors")
            (folder / f"{number}.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
