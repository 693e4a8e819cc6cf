"""Resuming: from the newest whole checkpoint of the same run, to the weights of a run that was never stopped."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel
from offramp.training.checkpoints import fault_of
from offramp.training.fit import checkpoints_of, fit, remove_checkpoints
from offramp.training.objectives.registry import load_objective
from offramp.types.problem_types import SINGLE_LABEL
from offramp.types.whole_file import alone_in
from support.files import file_limit
from support.models import encoder_config, texts, tiny_tokenizer

NAMES = ("cat", "dog")
RECIPE = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "save_total_limit": None}


def rows(count: int = 16) -> Examples:
    return Examples(texts(count), [number % 2 for number in range(count)], NAMES, SINGLE_LABEL)


def new_model(labels: tuple[str, ...] = NAMES, vocabulary: int = 40, **exits: Any) -> MultiExitModel:
    torch.manual_seed(0)
    return MultiExitModel.from_backbone(
        encoder_config(vocab_size=vocabulary), id2label=dict(enumerate(labels)), **exits
    )


def run(folder: Path, model: MultiExitModel | None = None, objective: str = "joint", **changes: Any) -> MultiExitModel:
    model = new_model() if model is None else model
    count = changes.pop("count", 16)
    torch.manual_seed(0)
    fit(model, tiny_tokenizer(), folder, rows(count), objective=load_objective(objective), **RECIPE | changes)
    return model


def cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, MultiExitModel]]:
    """Folders of finished runs with all their checkpoints, and the models, by objective."""
    runs = {}
    for objective in ("joint", "two-stage"):
        folder = tmp_path_factory.mktemp(objective)
        runs[objective] = folder, run(folder, objective=objective, keep_checkpoints=True)
    return runs


@pytest.fixture
def stopped(finished: dict[str, tuple[Path, MultiExitModel]], tmp_path: Path) -> Callable[[str], Path]:
    """Copy the folder of a run as it is before the final files are written, with all checkpoints."""

    def copy(objective: str = "joint") -> Path:
        shutil.copytree(finished[objective][0] / "checkpoints", tmp_path / "run" / "checkpoints")
        return tmp_path / "run"

    return copy


def same(first: MultiExitModel, second: MultiExitModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def drop_state(checkpoint: Path) -> None:
    """What a kill between the weights and the optimiser leaves."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (checkpoint / name).unlink()


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (lambda c: cut(c / "model.safetensors"), "model.safetensors is cut short or damaged"),
    "weights of no length": (lambda c: cut(c / "model.safetensors", 0), "model.safetensors is cut short or damaged"),
    "weights of zeros": (lambda c: zeros(c / "model.safetensors"), "model.safetensors is cut short or damaged"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no config": (lambda c: (c / "config.json").unlink(), "config.json is missing"),
    "config cut": (lambda c: cut(c / "config.json"), "config.json is cut short or damaged"),
    "killed after the weights": (drop_state, "optimizer.pt is missing"),
    "optimiser cut": (lambda c: cut(c / "optimizer.pt"), "optimizer.pt is cut short or damaged"),
    "optimiser of zeros": (lambda c: zeros(c / "optimizer.pt"), "optimizer.pt is cut short or damaged"),
    "schedule of no length": (lambda c: cut(c / "scheduler.pt", 0), "scheduler.pt is cut short or damaged"),
    "random numbers cut": (lambda c: cut(c / "rng_state.pth"), "rng_state.pth is cut short or damaged"),
    "no state": (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "state cut": (lambda c: cut(c / "trainer_state.json"), "trainer_state.json is cut short or damaged"),
    "state of nothing": (lambda c: (c / "trainer_state.json").write_text("{}"), "trainer_state.json is cut short"),
    "empty folder": (lambda c: [path.unlink() for path in c.iterdir()], "there is nothing in it"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_checkpoint_that_is_not_whole_is_left_out_and_the_reason_is_logged(
    damage: str, stopped: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = stopped()
    newest = folder / "checkpoints" / "checkpoint-6"
    assert fault_of(newest) is None
    change, reason = DAMAGES[damage]
    change(newest)
    with caplog.at_level(logging.INFO, "offramp"), pytest.raises(Enough):
        resume_and_stop(folder)
    (line,) = [record.getMessage() for record in caplog.records if "resuming" in record.getMessage()]
    before, _, skipped = line.partition("; cannot be used: ")
    assert before.endswith("checkpoints/checkpoint-4")
    assert skipped.startswith(f"checkpoint-6: {reason}")


class Enough(Exception):
    """The first step of a resumed run is enough."""


class StopAtOnce(TrainerCallback):
    def __init__(self) -> None:
        self.bar = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise Enough


def resume_and_stop(folder: Path, **changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.training.fit.Progress", StopAtOnce)
        run(folder, resume=True, **changes)


@pytest.mark.parametrize(("objective", "damaged"), [("joint", ["checkpoint-6"]), ("two-stage", ["early/checkpoint-2"])])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped(
    objective: str, damaged: list[str], finished: Any, stopped: Callable[..., Path]
) -> None:
    """In two stages nothing whole is left of the second one, so that it starts from the end of the first."""
    folder = stopped(objective)
    for name in damaged:
        drop_state(folder / "checkpoints" / name)
    for later in (folder / "checkpoints" / "early").glob("checkpoint-[46]"):
        shutil.rmtree(later)
    resumed = run(folder, objective=objective, resume=True)
    assert same(resumed, finished[objective][1])
    assert same(MultiExitModel.from_pretrained(folder), resumed)
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("left", ["all", "first stage alone", "no final files", "half of the final files"])
def test_a_run_that_was_killed_after_its_last_step_is_finished(
    left: str, finished: Any, stopped: Callable[..., Path]
) -> None:
    folder = stopped("two-stage")
    if left == "first stage alone":
        shutil.rmtree(folder / "checkpoints" / "early")
    elif left != "no final files":
        for path in (path for path in finished["two-stage"][0].iterdir() if path.is_file()):
            shutil.copy(path, folder)
    if left == "half of the final files":
        cut(folder / "model.safetensors")
        (folder / "tokenizer.json").unlink()
    assert same(run(folder, objective="two-stage", resume=True), finished["two-stage"][1])
    assert same(MultiExitModel.from_pretrained(folder), finished["two-stage"][1])
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished["two-stage"][0].iterdir()} - {
        "checkpoints"
    }


@pytest.mark.parametrize("resume", [True, False])
def test_where_no_checkpoint_is_whole_training_starts_anew_and_says_so(
    resume: bool, finished: Any, stopped: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = stopped()
    for checkpoint in (folder / "checkpoints").iterdir():
        drop_state(checkpoint)
    with caplog.at_level(logging.INFO, "offramp"):
        model = run(folder, resume=resume)
    assert "training starts from the beginning" in caplog.text
    assert ("checkpoint-2: optimizer.pt is missing" in caplog.text) is resume
    assert same(model, finished["joint"][1])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": {"exit_layers": [2, 4]}}, "exit layers: [1, 2, 3, 4] there, [2, 4] here"),
        ({"model": {"labels": ("cat", "cow")}}, "labels: ['cat', 'dog'] there, ['cat', 'cow'] here"),
        ({"model": {"head": "pooler"}}, "head: 'linear' there, 'pooler' here"),
        ({"model": {"certainty": True}}, "certainty: False there, True here"),
        ({"model": {"vocabulary": 50}}, "word_embeddings.weight: [40, 16] there, [50, 16] here"),
        ({"objective": "weighted"}, "objective: 'Joint()' there, 'Weighted()' here"),
        ({"objective": "two-stage"}, "its objective has other stages than TwoStage(freeze=False)"),
        ({"count": 24}, "training rows: 16 there, 24 here"),
        ({"per_device_train_batch_size": 4}, "rows a step: 8 there, 4 here"),
        ({"learning_rate": 1e-3}, "learning rate: 0.005 there, 0.001 here"),
        ({"seed": 7}, "seed: 42 there, 7 here"),
        ({"class_weights": "balanced"}, "class weights: None there, [1.0, 1.0] here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_in_one_line(
    changes: dict[str, Any], difference: str, stopped: Callable[..., Path]
) -> None:
    folder = stopped()
    before = sorted(folder.rglob("*"))
    model = new_model(**changes.pop("model", {}))
    with pytest.raises(InvalidInput) as error:
        run(folder, model, resume=True, **changes)
    assert "is of another run" in str(error.value)
    assert difference in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_without_facts_of_its_run_is_resumed(finished: Any, stopped: Callable[..., Path]) -> None:
    """Those of versions before, which have no run.json."""
    folder = stopped()
    for path in folder.rglob("run.json"):
        path.unlink()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    assert same(run(folder, resume=True), finished["joint"][1])


def test_of_several_processes_each_has_its_random_numbers_in_a_whole_checkpoint(stopped: Callable[..., Path]) -> None:
    checkpoint = stopped() / "checkpoints" / "checkpoint-6"
    facts = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps(facts | {"processes": 2}))
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert fault_of(checkpoint) == "rng_state_1.pth is missing"
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert fault_of(checkpoint) is None


def test_the_checkpoint_before_is_kept_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Any, folder: str) -> None:
        if folder.endswith("checkpoint-4"):
            raise KeyboardInterrupt
        return real(self, folder)

    real = Trainer._save_optimizer_and_scheduler
    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, save_total_limit=1)
    faults = {path.name: fault_of(path) for path in checkpoints_of(tmp_path).iterdir()}
    assert faults == {"checkpoint-2": None, "checkpoint-4": "optimizer.pt is missing"}


def test_of_two_runs_into_one_folder_the_second_is_refused(stopped: Callable[..., Path]) -> None:
    folder = stopped()
    before = sorted(folder.rglob("*"))
    with alone_in(folder), pytest.raises(InvalidInput, match="another process is writing there"):
        run(folder)
    assert sorted(folder.rglob("*")) == before
    run(folder)


@pytest.mark.parametrize("size", [10_000, 60_000], ids=["weights", "optimiser"])
def test_a_full_disk_is_one_line(size: int, tmp_path: Path) -> None:
    with file_limit(size), pytest.raises(InvalidInput) as error:
        run(tmp_path / "run")
    assert "cannot be written" in str(error.value)
    assert "\n" not in str(error.value)


def test_checkpoints_go_at_once_so_that_a_kill_meanwhile_does_not_leave_half_of_them(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()

    def dying(path: Path, **options: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoints(folder)
    monkeypatch.undo()
    assert not checkpoints_of(folder).exists()
    remove_checkpoints(folder)
    assert list(folder.iterdir()) == []
