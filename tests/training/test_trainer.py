from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from offramp.data.batching import collate
from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.model.bypass import Bypass
from offramp.model.lexical.config import LexicalExit
from offramp.model.losses import exit_losses
from offramp.model.modeling import MultiExitModel
from offramp.training.exit_losses import own_rows
from offramp.training.fit import default_arguments, fit, token_rows
from offramp.training.freezing import parameter_group
from offramp.training.objectives.base import Objective
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from offramp.training.trainer import ExitTrainer
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.models import (
    FAMILIES,
    IMAGES,
    LAYERS,
    LIKE_BERT,
    encoder_config,
    image_rows,
    padded,
    texts,
    tiny_model,
    tiny_tokenizer,
)
from support.models import token_rows as random_rows

Rows = list[dict[str, Any]]
Trained = dict[str, Tensor]


def toy(count: int = 48, *, seed: int = 0, family: str = "bert") -> Rows:
    """Rows whose label says whether the first token comes from the upper half of the vocabulary, or one is bright."""
    if family in IMAGES:
        return [{**row, "labels": int(row["pixel_values"].mean() > 0)} for row in image_rows(count, seed=seed)]
    rows = random_rows(count, longest=6, seed=seed)
    return [{**row, "labels": int(row["input_ids"][0] >= 22)} for row in rows]


def toy_model(family: str = "bert", dropout: float = 0.0, **exits: Any) -> MultiExitModel:
    torch.manual_seed(0)
    names = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"}
    changes = {names[name] if family == "distilbert" else name: dropout for name in names}
    model = MultiExitModel.from_backbone(encoder_config(family, initializer_range=0.1, **changes), 2, **exits)
    for module in model.heads.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    usual = {
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-2,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return default_arguments(str(folder), **(usual | changes))


def exit_trainer(
    model: MultiExitModel,
    settings: TrainingArguments,
    train: Any = None,
    validation: Any = None,
    objective: Objective | None = None,
    rate: float | None = None,
) -> ExitTrainer:
    return ExitTrainer(
        model,
        settings,
        objective=objective,
        exit_learning_rate=rate,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=partial(collate, pad_token_id=model.config.pad_token_id),
    )


def weights(model: MultiExitModel) -> Trained:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def mean_losses(model: MultiExitModel, rows: Rows) -> Tensor:
    """(L,) of all rows, in eval mode."""
    tokens = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    model.eval()
    with torch.no_grad():
        exits = ExitOutput(model(**padded(model, tokens)).exit_logits, problem_type=SINGLE_LABEL)
    return exit_losses(exits, torch.tensor([row["labels"] for row in rows]))


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., ExitTrainer]:
    def run(
        model: MultiExitModel, objective: str = "weighted", rate: float | None = None, **changes: Any
    ) -> ExitTrainer:
        rows = toy(family=model.config.backbone.model_type)
        trainer = exit_trainer(model, arguments(tmp_path, **changes), rows, None, load_objective(objective), rate)
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("self-distillation", "two-stage") else [])
        for name in sorted(OBJECTIVES)
    ],
)
def test_every_objective_lowers_the_last_exits_loss(objective: str, train: Callable[..., ExitTrainer]) -> None:
    model = toy_model()
    before = mean_losses(model, toy())
    train(model, objective, max_steps=30)
    assert mean_losses(model, toy())[-1] < 0.2 * before[-1]


@pytest.mark.parametrize(
    ("objective", "exits"),
    [
        ("joint", {"certainty": True, "memory": 0.5}),
        ("two-stage", {"bypass": Bypass(rank=2)}),
        ("gradient-equilibrium", {"exit_layers": [2, 4]}),
        ("ensemble-distillation", {}),
    ],
)
def test_training_is_the_same_with_an_exit_before_the_first_layer(
    objective: str, exits: dict[str, Any], tmp_path: Path
) -> None:
    ends, logs = [], []
    for lexical in (None, LexicalExit(buckets=61)):
        model = toy_model(dropout=0.1, lexical=lexical, **exits)
        settings = arguments(tmp_path, max_steps=2, logging_strategy="steps", logging_steps=1)
        trainer = exit_trainer(model, settings, toy(), toy(8), load_objective(objective))
        trainer.train()
        logs.append([{**entry, "train_runtime": 0} for entry in trainer.state.log_history if "loss" in entry])
        logs[-1].append({name: value for name, value in trainer.evaluate().items() if "loss" in name})
        ends.append({name: value for name, value in weights(model).items() if not name.startswith("lexical_exit.")})
    assert logs[0] == logs[1]
    assert [name for name in logs[0][-1] if "exit" in name] == [
        f"eval_loss_exit_{layer}" for layer in exits.get("exit_layers", range(1, LAYERS + 1))
    ]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("objective", ["joint", "weighted"])
def test_joint_objectives_lower_every_exits_loss(objective: str, train: Callable[..., ExitTrainer]) -> None:
    model = toy_model()
    before = mean_losses(model, toy())
    train(model, objective, max_steps=30)
    assert (mean_losses(model, toy()) < 0.2 * before).all()


@pytest.mark.parametrize("head", ["linear", "pooler", "shared_pooler"])
def test_last_leaves_the_early_exits_bit_for_bit(head: str, train: Callable[..., ExitTrainer]) -> None:
    model = toy_model(head=head)
    before = weights(model)
    trainer = train(model, "last", rate=1e-2, weight_decay=0.5, max_steps=5)

    early = {name for name, _ in model.named_parameters() if parameter_group(name, model) == "early_exits"}
    assert early == {name for name in early if name.startswith("heads.")}
    assert len(early) == {"linear": 6, "pooler": 12, "shared_pooler": 6}[head]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed & early
    assert {"heads.classifiers.3.weight", "heads.classifiers.3.bias"} <= changed
    assert any(name.startswith("backbone.") for name in changed)
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    frozen = {id(parameter) for name, parameter in model.named_parameters() if name in early}
    assert not trained & frozen


def test_after_last_another_objective_trains_all_exits_again(train: Callable[..., ExitTrainer]) -> None:
    model = toy_model()
    train(model, "last", max_steps=1)
    before = weights(model)
    train(model, "joint", max_steps=1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(model.heads.classifiers[0].weight, before["heads.classifiers.0.weight"])


@pytest.mark.parametrize(
    ("head", "parts"),
    [
        ("linear", {"early_exits": 6, "final_exit": 2}),
        ("pooler", {"early_exits": 12, "final_exit": 4}),
        ("shared_pooler", {"early_exits": 6, "final_exit": 4}),
    ],
)
def test_a_shared_pooler_belongs_to_the_last_exit(head: str, parts: dict[str, int]) -> None:
    model = toy_model(head=head)
    actual = [parameter_group(name, model) for name, _ in model.named_parameters()]
    assert {part: actual.count(part) for part in parts} == parts
    assert actual.count("backbone") == len(list(model.backbone.parameters()))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(family: str, tmp_path: Path) -> None:
    def trainer(model: MultiExitModel) -> ExitTrainer:
        settings = arguments(tmp_path, max_steps=8, save_strategy="steps", save_steps=5, save_total_limit=9)
        return exit_trainer(model, settings, toy(), rate=1e-2)

    whole = toy_model(family, dropout=0.2)
    trainer(whole).train()
    resumed = toy_model(family, dropout=0.2)
    trainer(resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))

    for name, value in weights(whole).items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_two_runs_with_one_seed_end_the_same(train: Callable[..., ExitTrainer]) -> None:
    first, second, other = (toy_model(dropout=0.2) for _ in range(3))
    train(first, max_steps=4)
    train(second, max_steps=4)
    train(other, max_steps=4, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.heads.classifiers[0].weight, other.heads.classifiers[0].weight)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=[] if name in ("ensemble-distillation", "joint") else [pytest.mark.slow])
        for name in sorted(OBJECTIVES)
    ],
)
def test_accumulated_gradients_are_those_of_the_larger_batch(objective: str, train: Callable[..., ExitTrainer]) -> None:
    whole, halves = toy_model(), toy_model()
    # plain gradient descent, so that weights say what gradients were
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "weight_decay": 0.0}
    settings |= {"train_sampling_strategy": "sequential"}
    train(whole, objective, **settings, per_device_train_batch_size=8)
    train(halves, objective, **settings, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    start = toy_model().state_dict()
    for name, value in weights(whole).items():
        assert torch.allclose(halves.state_dict()[name], value, atol=1e-6), name
    assert not torch.allclose(whole.heads.classifiers[-1].weight, start["heads.classifiers.3.weight"], atol=1e-4)


def test_transformers_own_trainer_accumulates_the_models_loss_alike(tmp_path: Path) -> None:
    whole, halves = toy_model(), toy_model()
    for model, size, times in [(whole, 8, 1), (halves, 4, 2)]:
        settings = arguments(
            tmp_path,
            max_steps=2,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
        )
        Trainer(model, settings, partial(collate, pad_token_id=0), toy()).train()
    for (name, expected), actual in zip(whole.named_parameters(), halves.parameters(), strict=True):
        assert torch.allclose(actual, expected, atol=1e-6), name


def test_logs_tell_the_loss_of_every_exit(tmp_path: Path) -> None:
    """An evaluation between two logs neither takes nor loses what training has gathered."""
    model, rows = toy_model(), toy(20, seed=3)
    steps = {"max_steps": 8, "logging_strategy": "steps", "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 4}
    trainer = exit_trainer(model, arguments(tmp_path, **steps), toy(), rows, load_objective("joint"))
    trainer.train()

    names = [f"loss_exit_{layer}" for layer in range(1, LAYERS + 1)]
    training = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluation = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in training] == [3, 6]
    assert [entry["step"] for entry in evaluation] == [4, 8]
    for entry in training:
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in names), abs=2e-3)
    for entry in evaluation:
        assert entry["eval_loss"] == pytest.approx(sum(entry[f"eval_{name}"] for name in names), abs=2e-3)
    by_hand = mean_losses(model, rows).tolist()
    assert [evaluation[-1][f"eval_{name}"] for name in names] == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize(
    ("left", "process", "expected"), [(9, 0, 8), (9, 1, 1), (5, 0, 5), (5, 1, 0), (0, 0, 8), (0, 1, 8), (-1, 1, 8)]
)
def test_rows_that_fill_up_the_last_batches_of_an_evaluation_do_not_count(
    left: int, process: int, expected: int
) -> None:
    """Of two processes with 8 rows a batch `left` rows remain, the first 8 of them in the first process."""
    assert own_rows(8, process, SimpleNamespace(end_of_dataloader=True, remainder=left)) == expected  # type: ignore[arg-type]
    assert own_rows(8, process, SimpleNamespace(end_of_dataloader=False, remainder=left)) == 8  # type: ignore[arg-type]


def test_evaluation_returns_the_loss_of_every_exit_by_layer_number(tmp_path: Path) -> None:
    model = toy_model(exit_layers=[2, 4])
    metrics = exit_trainer(model, arguments(tmp_path), None, toy()).evaluate()
    assert {name for name in metrics if "exit" in name} == {"eval_loss_exit_2", "eval_loss_exit_4"}


def test_predictions_are_the_last_exits_logits(tmp_path: Path) -> None:
    model, rows = toy_model(), toy(10)
    shapes = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = exit_trainer(model, arguments(tmp_path), None, rows)
    trainer.compute_metrics = metrics
    actual = trainer.evaluate()
    assert shapes == [((10, 2), (10,))]
    tokens = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    right = model(**padded(model, tokens)).logits.argmax(dim=-1) == torch.tensor([row["labels"] for row in rows])
    assert actual["eval_accuracy"] == pytest.approx(right.float().mean().item())


def test_exits_may_learn_at_their_own_rate(tmp_path: Path) -> None:
    model = toy_model(head="pooler")
    settings = arguments(tmp_path, learning_rate=1e-4, weight_decay=0.1)
    optimizer = exit_trainer(model, settings, toy(), rate=1e-2).create_optimizer()
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["lr"] == (1e-2 if name.startswith("heads.") else 1e-4), name
        decayed = not name.endswith("bias") and "LayerNorm" not in name
        assert group["weight_decay"] == (0.1 if decayed else 0.0), name


def test_without_a_rate_of_their_own_exits_learn_at_the_backbones(tmp_path: Path) -> None:
    trainer = exit_trainer(toy_model(), arguments(tmp_path, learning_rate=1e-4), toy(), rate=None)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-4}


def test_the_schedule_lowers_both_rates_alike(train: Callable[..., ExitTrainer]) -> None:
    trainer = train(toy_model(), rate=1e-2, learning_rate=1e-3, max_steps=4, warmup_steps=0)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 1e-3}
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0}


def test_label_smoothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="label_smoothing_factor is not supported"):
        exit_trainer(toy_model(), arguments(tmp_path, label_smoothing_factor=0.1), toy())


@pytest.fixture
def exact(train: Callable[..., ExitTrainer]) -> MultiExitModel:
    """Trained without autocast."""
    model = toy_model()
    train(model, bf16=False, max_steps=30)
    return model


def test_bfloat16_autocast_trains_float32_weights(exact: MultiExitModel, train: Callable[..., ExitTrainer]) -> None:
    rough = toy_model()
    before = mean_losses(rough, toy())
    train(rough, bf16=True, max_steps=30)
    assert {parameter.dtype for parameter in rough.parameters()} == {torch.float32}
    assert mean_losses(rough, toy())[-1] < 0.2 * before[-1]
    assert not torch.equal(rough.heads.classifiers[0].weight, exact.heads.classifiers[0].weight)


def test_activation_checkpointing_ends_with_the_same_weights(train: Callable[..., ExitTrainer]) -> None:
    plain, saving = toy_model(), toy_model()
    train(plain, max_steps=4)
    train(saving, max_steps=4, activation_checkpointing=True)
    for (name, expected), actual in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(actual, expected, atol=1e-6), name


@pytest.mark.parametrize(
    ("problem", "outputs", "labels"),
    [(MULTI_LABEL, 3, [1.0, 0.0, 1.0]), (REGRESSION, 1, 0.5), (REGRESSION, 2, [0.5, 1.0])],
)
def test_other_problems_train_as_well(problem: str, outputs: int, labels: Any, tmp_path: Path) -> None:
    model = tiny_model(num_labels=outputs, problem_type=problem)
    rows = [{**row, "labels": labels} for row in random_rows(16)]
    settings = arguments(tmp_path, max_steps=20, logging_strategy="steps", logging_steps=5)
    trainer = exit_trainer(model, settings, rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[pytest.mark.slow] if family in LIKE_BERT else []) for family in FAMILIES],
)
def test_every_encoder_trains_all_that_it_has(family: str, train: Callable[..., ExitTrainer]) -> None:
    """Except what no row reaches: pretrained type embeddings of a kind that did not occur keep their place."""
    model = toy_model(family)
    before = weights(model)
    order = {"train_sampling_strategy": "random"} if family in IMAGES else {}
    train(model, max_steps=2, weight_decay=0.0, **order)
    same = [name for name, _ in model.named_parameters() if torch.equal(model.state_dict()[name], before[name])]
    assert same == []


def test_a_checkpoint_is_a_model_folder(tmp_path: Path) -> None:
    model = toy_model()
    exit_trainer(model, arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2), toy()).train()
    back = MultiExitModel.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


def test_the_objective_is_told_the_step(tmp_path: Path) -> None:
    actual = []

    class Counting(type(load_objective("joint"))):  # type: ignore[misc]
        def loss(self, stage: Any, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
            actual.append(step)
            return super().loss(stage, step, exits, labels)

    settings = arguments(tmp_path, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    exit_trainer(toy_model(), settings, toy(), objective=Counting()).train()
    assert actual == [0, 0, 1, 1, 2, 2]


def test_examples_become_rows_with_labels() -> None:
    examples = Examples(["the cat sat", ("a dog", "the mat")], [1, 0], ("bad", "good"), SINGLE_LABEL)
    single, pair = token_rows(examples, tiny_tokenizer(), max_length=6)
    assert single == {
        "input_ids": [2, 5, 7, 9, 3],
        "token_type_ids": [0] * 5,
        "attention_mask": [1] * 5,
        "labels": 1,
    }
    assert pair["labels"] == 0
    assert len(pair["input_ids"]) == 6


def test_weighted_is_the_objective_unless_told_otherwise(tmp_path: Path) -> None:
    silent, logging = toy_model(), toy_model()
    exit_trainer(silent, arguments(tmp_path, max_steps=2), toy()).train()
    exit_trainer(logging, arguments(tmp_path, max_steps=2), toy(), objective=load_objective("weighted")).train()
    assert all(torch.equal(a, b) for a, b in zip(silent.parameters(), logging.parameters(), strict=True))


LABELS = ("cat", "dog")


def labelled_texts(count: int, seed: int = 0) -> Examples:
    """The label is the text's second word."""
    numbers = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    sentences = [f"the {LABELS[number]} {tail}" for number, tail in zip(numbers, texts(count, seed=seed), strict=True)]
    return Examples(sentences, numbers, LABELS, SINGLE_LABEL)


def test_fit_leaves_a_model_folder_that_answers(tmp_path: Path) -> None:
    model = toy_model(id2label=dict(enumerate(LABELS)))
    log = fit(
        model,
        tiny_tokenizer(),
        tmp_path / "model",
        labelled_texts(64),
        labelled_texts(16, seed=1),
        num_train_epochs=6,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
    )
    assert not model.training
    assert {file.suffix for file in (tmp_path / "model").iterdir()} == {".safetensors", ".json", ".md"}
    answers = Predictor.load(tmp_path / "model")(["the cat sat", "the dog sat"])
    assert [answer["label"] for answer in answers] == ["cat", "dog"]
    assert sum("eval_loss_exit_1" in entry for entry in log) == 6


def test_exits_of_a_regression_start_at_the_mean_of_the_labels(tmp_path: Path) -> None:
    rows = Examples(texts(16), [[3.0, -1.0]] * 8 + [[5.0, 0.0]] * 8, (), REGRESSION)
    model = tiny_model(num_labels=2, problem_type=REGRESSION)
    fit(model, tiny_tokenizer(), tmp_path, rows, num_train_epochs=1, learning_rate=1e-9, weight_decay=0.0)
    for classifier in model.heads.classifiers:
        assert classifier.bias.tolist() == pytest.approx([4.0, -0.5], abs=0.01)  # one step of the exits' own rate


def test_fit_without_validation_data_trains_and_does_not_evaluate(tmp_path: Path) -> None:
    log = fit(toy_model(), tiny_tokenizer(), tmp_path, labelled_texts(16), num_train_epochs=1)
    assert any("loss" in entry for entry in log)
    assert not any("eval_loss" in entry for entry in log)


class Stop(TrainerCallback):
    """The power goes after the first epoch."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.epoch >= 2:
            raise KeyboardInterrupt


FITTING = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 5e-3}


@pytest.fixture
def whole(tmp_path: Path) -> MultiExitModel:
    """Fitted without an interruption."""
    model = toy_model(dropout=0.2)
    fit(model, tiny_tokenizer(), tmp_path / "whole", labelled_texts(32), **FITTING)
    return model


def test_fit_goes_on_where_it_was_interrupted(
    whole: MultiExitModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, resumed = (toy_model(dropout=0.2) for _ in range(2))
    monkeypatch.setattr("offramp.training.fit.Progress", Stop)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, tiny_tokenizer(), tmp_path / "other", labelled_texts(32), **FITTING)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "other" / "checkpoints").iterdir()] == ["checkpoint-4"]
    fit(resumed, tiny_tokenizer(), tmp_path / "other", labelled_texts(32), resume=True, **FITTING)

    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_training_forgets_the_points_that_were_chosen_for_other_weights(tmp_path: Path) -> None:
    model = toy_model()
    model.operating_points["default"] = point = OperatingPoint({"name": "entropy"}, (0.5,) * (LAYERS - 1))
    model.set_operating_point(point)
    trainer = exit_trainer(model, arguments(tmp_path), toy(), toy(8))
    assert trainer.evaluate()["eval_loss"] > 0  # of all exits
    assert model.operating_points == {"default": point}
    trainer.train()
    assert model.operating_points == {}


def test_what_a_user_froze_stays_frozen(train: Callable[..., ExitTrainer]) -> None:
    model = toy_model()
    model.backbone.embeddings.requires_grad_(False)
    before = weights(model)
    train(model)
    after = weights(model)
    frozen = [name for name in before if ".embeddings." in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not all(torch.equal(before[name], after[name]) for name in before)
