"""Training in several processes under torchrun: the losses and traces of one process, and one process writes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertModel

import support.processes
from offramp.inference.record import record
from offramp.model.modeling import MultiExitModel
from offramp.training.checkpoints import fault_of
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from offramp.types.trace import Trace
from support.models import encoder_config, save_folder, texts, tiny_model, tiny_tokenizer
from support.processes import STEPS, labelled, losses_of, torchrun, trainer_of

SCRIPT = str(Path(support.processes.__file__))
CASES = [(name, gate) for name in sorted(OBJECTIVES) for gate in (False, True)]


def two_processes(*command: str, folder: Path) -> str:
    result = torchrun(*command, folder=folder)
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


@pytest.mark.slow
def test_two_processes_train_each_objective_and_end_with_equal_weights(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    two_processes("worker.py", json.dumps(CASES), folder=tmp_path)
    for objective, certainty in CASES:
        run = tmp_path / "run" / f"{objective}-{certainty}"
        (first, moved), (second, _) = (torch.load(run / f"weights-{rank}.pt") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first), objective
        assert {"heads.classifiers.3.weight", "backbone.embeddings.word_embeddings.weight"} <= set(moved)
        assert ("heads.classifiers.0.weight" in moved) is (objective != "last")
        checkpoints = list(run.rglob("checkpoint-3"))
        assert len(checkpoints) == len(load_objective(objective).stages)
        assert [fault_of(checkpoint) for checkpoint in checkpoints] == [None] * len(checkpoints), objective


PARITY = [(name, variant) for name in sorted(OBJECTIVES) for variant in ("plain", "certainty", "all")]


@pytest.mark.parametrize(
    "cases",
    [[("ensemble-distillation", "all")], pytest.param(PARITY, marks=pytest.mark.slow)],
    ids=["one", "every objective"],
)
def test_the_losses_and_the_trace_of_two_processes_are_those_of_one(
    cases: list[tuple[str, str]], tmp_path: Path
) -> None:
    two_processes(SCRIPT, str(tmp_path), json.dumps(cases), folder=tmp_path)
    for number, (objective, variant) in enumerate(cases):
        trainer = trainer_of(objective, variant, tmp_path / "alone", processes=1)
        trainer.train()
        history = json.loads((tmp_path / f"{number}.json").read_text())
        assert len(losses_of(trainer)) == STEPS * len(load_objective(objective).stages)
        for name, tolerance in (
            ("loss", 1e-5),
            ("loss_exit_4", 1.1e-4),
            ("eval_loss", 1e-5),
            ("eval_loss_exit_4", 1.1e-4),
        ):
            expected = losses_of(trainer, name)
            actual = [entry[name] for entry in history if name in entry]
            assert actual == pytest.approx(expected, abs=tolerance, rel=0), (objective, variant, name)
        alone, shared = record(trainer.model.eval(), labelled(7, seed=2), batch_size=3), load(tmp_path, number)
        assert torch.allclose(alone.logits, shared.logits, atol=1e-4)  # of two trainings
        assert (alone.labels.tolist(), alone.tokens.tolist()) == (shared.labels.tolist(), shared.tokens.tolist())


def load(folder: Path, number: int) -> Trace:
    return Trace.load(folder / f"{number}.safetensors")


RESUMED = """
import json, os, sys
from pathlib import Path
from support.processes import losses_of, trainer_of

processes = int(os.environ["WORLD_SIZE"])
trainer = trainer_of("two-stage", "all", Path(sys.argv[1]), processes, eval_strategy="no", save_strategy="steps",
                     save_steps=5, save_total_limit=None)
trainer.train(resume_from_checkpoint=sys.argv[2] if len(sys.argv) > 2 else None)
if trainer.is_world_process_zero():
    Path("losses.json").write_text(json.dumps(losses_of(trainer)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
def test_a_run_goes_on_with_other_processes_where_it_was_stopped(before: int, after: int, tmp_path: Path) -> None:
    """Of two stages of four epochs the second stage is resumed after its second epoch."""
    (tmp_path / "worker.py").write_text(RESUMED)
    losses = {}
    for processes, start in ((before, []), (after, ["run/early/checkpoint-10"])):
        result = torchrun("worker.py", "run", *start, folder=tmp_path, processes=processes)
        assert result.returncode == 0, result.stderr[-3000:]
        losses[bool(start)] = json.loads((tmp_path / "losses.json").read_text())
    assert losses[True][-10:] == pytest.approx(losses[False][-10:], abs=1e-5, rel=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder without dropout, and data."""
    folder = tmp_path_factory.mktemp("data")
    BertModel(encoder_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).save_pretrained(
        folder / "encoder"
    )
    tiny_tokenizer().save_pretrained(folder / "encoder")
    for name, count in (("train", 64), ("validation", 33), ("one", 1)):
        rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts(count))]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


DATA = ("--train", "train.jsonl", "--validation", "validation.jsonl", "--backbone", "encoder", "--epochs", "2")


@pytest.mark.slow
def test_the_command_trains_in_two_processes_and_the_first_writes(data: Path) -> None:
    options = ("--objective", "ensemble-distillation", "--batch-size")
    log = two_processes("-m", "offramp", "train", *DATA, "-o", "model", *options, "8", folder=data)
    folder = data / "model"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".safetensors"}
    assert MultiExitModel.from_pretrained(folder).operating_points.keys() == {"default"}
    assert log.count("validation.jsonl: text from") == 1
    result = torchrun("-m", "offramp", "train", *DATA, "-o", "alone", *options, "16", folder=data, processes=1)
    epochs = [[line for line in text.splitlines() if line.startswith("epoch")] for text in (log, result.stderr)]
    assert len(epochs[0]) == 4
    assert epochs[0] == epochs[1]


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["validation", "one"])
def test_the_command_records_the_trace_of_one_process(rows: str, data: Path) -> None:
    save_folder(data / "tiny", tiny_model(num_labels=2))
    traces = []
    for processes in (1, 2):
        name = f"{rows}-{processes}.safetensors"
        command = ("-m", "offramp", "record", "tiny", "--data", f"{rows}.jsonl", "-o", name, "--batch-size", "4")
        result = torchrun(*command, folder=data, processes=processes)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("\n") == 1
        traces.append(Trace.load(data / name))
    for field in ("logits", "labels", "layers", "tokens", "macs"):
        assert torch.equal(*(getattr(trace, field) for trace in traces)), field
    assert traces[0].provenance == traces[1].provenance


@pytest.mark.slow
def test_an_error_is_printed_once_and_ends_all_processes(data: Path) -> None:
    result = torchrun("-m", "offramp", "train", *DATA, "-o", "model/none/such", "--max-drop", "2", folder=data)
    assert result.returncode != 0
    assert result.stderr.count("Invalid value for '--max-drop'") == 1
