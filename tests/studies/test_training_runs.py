"""Training runs: as they are asked for, kept, and not run again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertModel, ModernBertModel

from offramp.data.examples import Examples
from offramp.errors import InvalidInput, OfframpError
from offramp.model.hub import load_encoder
from offramp.studies import training_runs as runs
from offramp.studies.registry import STUDIES, load_study
from offramp.studies.spec import TrainingSpec
from offramp.studies.training_runs import ExperimentConfig, Trained, build_model, load_or_train_all, of_depth
from support.models import LAYERS, encoder_config, texts, tiny_tokenizer


def labelled(count: int, seed: int) -> Examples:
    rows = texts(count, seed=seed)
    return Examples(list(rows), [int("good" in text) for text in rows], ("bad", "good"), "single_label_classification")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "encoder"
    torch.manual_seed(0)
    BertModel(encoder_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def setting(encoder: Path) -> ExperimentConfig:
    recipe = {"num_train_epochs": 1, "per_device_train_batch_size": 16}
    return ExperimentConfig(str(encoder), labelled(32, 1), {"validation": labelled(20, 2)}, recipe=recipe)


def test_a_model_is_built_as_the_training_says(setting: ExperimentConfig) -> None:
    half = build_model(TrainingSpec("half", "last", {"head": "pooler"}, kept=0.5, alone=True), setting)
    assert (half.layers, half.config.head, half.config.backbone.num_hidden_layers) == ([2], "pooler", 2)
    tokens = build_model(TrainingSpec("tokens", exits={"memory": 0.9}, tokens={0.5: 0.7}), setting)
    assert tokens.config.token_exit["keep_ratio"] == {2: 0.7}
    assert (tokens.layers, tokens.config.memory) == ([1, 2, 3, 4], 0.9)
    assert build_model(TrainingSpec("bypass", exits={"bypass": {"rank": 3}}), setting).config.bypass["rank"] == 3


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_training_of_a_study_can_be_built(name: str, setting: ExperimentConfig) -> None:
    for training in load_study(name).all_trainings(False):
        model = build_model(training, setting)
        assert model.layers[-1] == model.config.backbone.num_hidden_layers == max(1, round(training.kept * LAYERS))


def test_an_encoder_of_another_depth(setting: ExperimentConfig) -> None:
    encoder = load_encoder(setting.backbone)
    assert of_depth(encoder, 3).config.num_hidden_layers == 3
    deep = of_depth(encoder, 2 * LAYERS)
    first, second, third = (deep.encoder.layer[place].attention.self.query.weight for place in range(3))
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


TRAININGS = (TrainingSpec("weighted"), TrainingSpec("last", "last", alone=True))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Training and seed of every run that is not a kept one."""
    trained: list[tuple[str, int]] = []

    def counted(folder: Path, training: TrainingSpec, seed: int, setting: ExperimentConfig) -> Trained:
        trained.append((training.name, seed))
        return run(folder, training, seed, setting)

    run = runs._run
    monkeypatch.setattr(runs, "_run", counted)
    return trained


@pytest.fixture
def first(trained: list[tuple[str, int]], setting: ExperimentConfig, tmp_path: Path) -> dict[tuple[str, int], Trained]:
    return dict(load_or_train_all(tmp_path, TRAININGS, [0], setting))


@pytest.fixture
def again(
    first: dict[tuple[str, int], Trained], setting: ExperimentConfig, tmp_path: Path
) -> dict[tuple[str, int], Trained]:
    """What is found in the same folder with one seed more."""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-0", "setting.json", "weighted-0"]
    assert not list(tmp_path.rglob("model.safetensors"))
    (tmp_path / "weighted-1.unfinished").mkdir()  # what a kill leaves
    return dict(load_or_train_all(tmp_path, TRAININGS, [0, 1], setting))


def test_a_run_that_is_kept_is_not_run_again(
    trained: list[tuple[str, int]], first: dict[tuple[str, int], Trained], again: dict[tuple[str, int], Trained]
) -> None:
    assert trained == [("weighted", 0), ("last", 0), ("weighted", 1), ("last", 1)]
    kept = (first["weighted", 0], again["weighted", 0], again["weighted", 1])
    one, same, other = (found.traces["validation"].logits for found in kept)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert again["weighted", 0].cpu_seconds == first["weighted", 0].cpu_seconds
    assert again["last", 0].config.exit_layers == [LAYERS]


def test_runs_of_another_setting_are_refused(setting: ExperimentConfig, encoder: Path, tmp_path: Path) -> None:
    load_or_train_all(tmp_path, (), [0], setting)
    other = ExperimentConfig(str(encoder), setting.train, setting.held_out, pooling="first", recipe=setting.recipe)
    with pytest.raises(InvalidInput, match="other pooling; choose another folder"):
        load_or_train_all(tmp_path, (), [0], other)


def test_what_cannot_be_built_is_refused_before_anything_is_trained(setting: ExperimentConfig, tmp_path: Path) -> None:
    ModernBertModel(encoder_config("modernbert")).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    other = replace(setting, backbone=str(tmp_path / "encoder"))
    trainings = (TrainingSpec("weighted"), TrainingSpec("tokens", tokens={0.5: 0.7}))
    with pytest.raises(OfframpError, match="token"):
        load_or_train_all(tmp_path / "runs", trainings, [0], other)
    assert not (tmp_path / "runs").exists()
