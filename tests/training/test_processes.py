"""Training in several processes under torchrun: it runs, all end with one set of weights, and one process writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from offramp.model.modeling import MultiExitModel
from offramp.training.checkpoints import fault_of
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from support.models import encoder_config, texts, tiny_tokenizer

ENSEMBLE = ("ensemble-distillation", False)
OTHERS = [(name, gate) for name in sorted(OBJECTIVES) for gate in (False, True) if (name, gate) != ENSEMBLE]


def two_processes(*command: str, folder: Path) -> str:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(run, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


WORKER = """
import json, sys
from functools import partial
import torch
from offramp.data.batching import collate
from offramp.model.lexical.config import LexicalExit
from offramp.training.fit import default_arguments
from offramp.training.objectives.registry import load_objective
from offramp.training.trainer import ExitTrainer
from support.models import tiny_model, token_rows

rows = [{**row, "labels": number % 2} for number, row in enumerate(token_rows(24))]
settings = {"max_steps": 3, "per_device_train_batch_size": 4, "save_steps": 3, "save_strategy": "steps",
            "logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3,
            "learning_rate": 1e-2, "gradient_accumulation_steps": 2}
for name, certainty in json.loads(sys.argv[1]):
    folder = f"run/{name}-{certainty}"
    model = tiny_model(num_labels=2, certainty=certainty, lexical=LexicalExit(buckets=61))  # no process exchanges int16
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = ExitTrainer(model, default_arguments(folder, **settings), objective=load_objective(name),
                          train_dataset=rows, eval_dataset=rows[:7], class_weights=[1.0, 2.0],
                          data_collator=partial(collate, pad_token_id=0))
    for _ in range(2):  # once more, with what is left of the first time
        trainer.train()
    for entry in trainer.state.log_history:  # both are means over the processes
        if name == "joint" and not certainty and "loss" in entry:
            assert abs(entry["loss"] - sum(entry[f"loss_exit_{layer}"] for layer in range(1, 5))) < 1e-3, entry
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, start[name])]
    torch.save((model.state_dict(), moved), f"{folder}/weights-{trainer.args.process_index}.pt")
"""


@pytest.mark.parametrize(
    "cases", [[ENSEMBLE], pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["ensemble", "others"]
)
def test_two_processes_train_each_objective_and_end_with_equal_weights(
    cases: list[tuple[str, bool]], tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    two_processes("worker.py", json.dumps(cases), folder=tmp_path)
    for objective, certainty in cases:
        run = tmp_path / "run" / f"{objective}-{certainty}"
        (first, moved), (second, _) = (torch.load(run / f"weights-{rank}.pt") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first), objective
        assert {"heads.classifiers.3.weight", "backbone.embeddings.word_embeddings.weight"} <= set(moved)
        assert ("heads.classifiers.0.weight" in moved) is (objective != "last")
        checkpoints = list(run.rglob("checkpoint-3"))
        assert len(checkpoints) == len(load_objective(objective).stages)
        assert [fault_of(checkpoint) for checkpoint in checkpoints] == [None] * len(checkpoints), objective


@pytest.mark.slow
def test_the_command_trains_in_two_processes_and_the_first_writes(tmp_path: Path) -> None:
    BertModel(encoder_config()).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    for name, count in (("train", 64), ("validation", 32)):
        rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts(count))]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--train", "train.jsonl", "--validation", "validation.jsonl", "--backbone", "encoder", "--epochs", "2")
    command = ("-m", "offramp", "train", *data, "-o", "model", "--objective", "ensemble-distillation")
    log = two_processes(*command, folder=tmp_path)
    assert log.count("epoch 1.0: training loss") == 1
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".md", ".safetensors"}
    assert MultiExitModel.from_pretrained(tmp_path / "model").operating_points.keys() == {"default"}
