"""The Trainer's own arguments: each is honoured, with a fact, or refused in one line. None is forgotten."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS, HyperParamSearchBackendBase

from offramp.data.batching import collate
from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import default_arguments
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from offramp.training.trainer import ExitTrainer
from support.models import LAYERS, encoder_config, padded, tiny_classifier, tiny_tokenizer, token_rows

Rows = list[dict[str, Any]]


def rows(count: int = 16, seed: int = 0) -> Rows:
    return [{**row, "labels": number % 2} for number, row in enumerate(token_rows(count, seed=seed))]


def model_init(**exits: Any) -> MultiExitModel:
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
    model = MultiExitModel.from_backbone(encoder_config(**still), 2, **exits)
    model.config.exit_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def new_model() -> MultiExitModel:
    return model_init()


def settings(folder: Path, **changes: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    return default_arguments(folder, **usual | changes)


def trainer_of(folder: Path, model: Any = None, objective: str = "joint", **changes: Any) -> ExitTrainer:
    """A trainer with some arguments of the Trainer, and the others of `TrainingArguments`."""
    own = set(inspect.signature(ExitTrainer).parameters) | set(inspect.signature(Trainer).parameters)
    passed = {name: changes.pop(name) for name in list(changes) if name in own}
    passed.setdefault("args", settings(folder, **changes))
    passed.setdefault("train_dataset", rows())
    passed.setdefault("data_collator", partial(collate, pad_token_id=0))
    if "model_init" not in passed and model is None:
        model = model_init()
    return ExitTrainer(model, objective=load_objective(objective), **passed)


def same(first: Any, second: Any) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def trained(folder: Path, objective: str = "joint", **changes: Any) -> MultiExitModel:
    trainer = trainer_of(folder, objective=objective, **changes)
    trainer.train()
    model: MultiExitModel = trainer.model
    return model


def weights_are(folder: Path, expected: bool, objective: str = "joint", **changes: Any) -> None:
    """Assert whether an argument changes the weights that training ends with."""
    assert same(trained(folder, objective, **changes), trained(folder, objective)) is expected


# --- honoured ----------------------------------------------------------------------------------------------


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """As in transformers' example: the sum over the rows, divided by the rows of the accumulated batch."""
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def a_loss_function_is_called_for_each_exit(folder: Path) -> None:
    calls = []

    def counting(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        calls.append((outputs.logits.shape, labels.shape, int(num_items_in_batch)))
        return cross_entropy(outputs, labels, num_items_in_batch)

    trainer_of(folder, compute_loss_func=counting).train()
    assert calls == [((8, 2), (8,), 8)] * (3 * LAYERS)


def a_model_is_made_anew_for_each_training(folder: Path) -> None:
    trainer = trainer_of(folder, model_init=new_model)
    for _ in range(2):
        trainer.train()
        assert same(trainer.model, trained(folder))


def callbacks_run_in_each_stage(folder: Path) -> None:
    begun = []

    class Count(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            begun.append(state.max_steps)

    trained(folder, "two-stage", callbacks=[Count()])
    assert begun == [3, 3]


def early_stopping_stops_each_stage_by_itself(folder: Path) -> None:
    stopping = {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True, "max_steps": 9}
    each = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    stop = EarlyStoppingCallback(1, early_stopping_threshold=1e9)  # nothing is ever better by so much
    trainer = trainer_of(folder, objective="two-stage", callbacks=[stop], eval_dataset=rows(8), **stopping, **each)
    trainer.train()
    losses = [(entry["stage"], entry["step"]) for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses == [("last", 1), ("last", 2), ("early", 1), ("early", 2)]


def an_optimiser_is_used(folder: Path) -> None:
    model = model_init()
    optimizer = torch.optim.SGD(model.heads.parameters(), lr=0.1)
    before = model.backbone.embeddings.word_embeddings.weight.clone()
    trained(folder, model=model, optimizers=(optimizer, None))
    assert torch.equal(model.backbone.embeddings.word_embeddings.weight, before)
    assert not same(model.heads, model_init().heads)


def an_optimisers_class_is_used_in_each_stage(folder: Path) -> None:
    made = []

    class Plain(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            made.append(options)

    trained(folder, "two-stage", optimizer_cls_and_kwargs=(Plain, {"lr": 0.5}), exit_learning_rate=0.1)
    assert made == [{"lr": 0.5}, {"lr": 0.5}]


def metrics_get_the_last_exits_logits_after_they_were_prepared(folder: Path) -> None:
    model = model_init()
    trainer = trainer_of(
        folder,
        model,
        eval_dataset=rows(8),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        compute_metrics=lambda prediction: {"ones": float(prediction.predictions.mean())},
    )
    batch = padded(model.eval(), token_rows(8))
    ones = model(**batch).logits.argmax(dim=-1).float().mean().item()
    assert trainer.evaluate()["eval_ones"] == pytest.approx(ones)


def several_sets_are_evaluated_by_name(folder: Path) -> None:
    metrics = trainer_of(folder, eval_dataset={"near": rows(8), "far": rows(8, seed=1)}).evaluate()
    assert {"eval_near_loss_exit_1", "eval_far_loss_exit_4", "eval_near_loss"} <= set(metrics)


def a_collator_makes_the_batches(folder: Path) -> None:
    sizes = []

    def collator(batch: Rows) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return collate(batch, 0)

    trained(folder, data_collator=collator)
    assert sizes[:3] == [8, 8, 8]


def a_tokenizer_is_saved_with_the_model(folder: Path) -> None:
    trained(folder, processing_class=tiny_tokenizer(), save_strategy="steps", save_steps=3)
    assert (folder / "checkpoint-3" / "tokenizer.json").exists()


def the_best_checkpoint_is_loaded(folder: Path) -> None:
    """Of a metric of one exit, at a learning rate that makes it worse in the end."""
    each = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 6}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss_exit_2", "greater_is_better": False}
    trainer = trainer_of(folder, eval_dataset=rows(8, seed=3), learning_rate=0.3, **each, **best)
    trainer.train()
    losses = [entry["eval_loss_exit_2"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses.index(min(losses)) < 5
    assert trainer.evaluate()["eval_loss_exit_2"] == pytest.approx(min(losses))


def a_batch_that_is_too_large_is_made_smaller(folder: Path) -> None:
    sizes = []

    def collator(batch: Rows) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return collate(batch, 0)

    def full(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        if len(labels) > 7:
            raise RuntimeError("CUDA out of memory.")
        return cross_entropy(outputs, labels, num_items_in_batch)

    trained(folder, data_collator=collator, compute_loss_func=full, auto_find_batch_size=True)
    assert 7 in sizes[-3:]  # transformers tries nine tenths


def rows_of_like_length_share_a_batch(folder: Path) -> None:
    widths = []

    def collator(batch: Rows) -> dict[str, Tensor]:
        widths.append({len(row["input_ids"]) for row in batch})
        return collate(batch, 0)

    data = [{"input_ids": [7] * (1 + number % 2), "labels": 0} for number in range(128)]
    trained(folder, data_collator=collator, train_dataset=data, train_sampling_strategy="group_by_length")
    assert sum(len(width) == 1 for width in widths[:4]) >= 3  # of four batches that are sorted together


def unlabelled_rows_are_predicted(folder: Path) -> None:
    model = model_init()
    answers = trainer_of(folder, model).predict(token_rows(8)).predictions
    assert torch.allclose(torch.tensor(answers), model.eval()(**padded(model, token_rows(8))).logits, atol=1e-5)


HONOURED: dict[str, Callable[[Path], None]] = {
    "callbacks": callbacks_run_in_each_stage,
    "callbacks, early stopping": early_stopping_stops_each_stage_by_itself,
    "compute_loss_func": a_loss_function_is_called_for_each_exit,
    "compute_metrics": metrics_get_the_last_exits_logits_after_they_were_prepared,
    "data_collator": a_collator_makes_the_batches,
    "eval_dataset": several_sets_are_evaluated_by_name,
    "model_init": a_model_is_made_anew_for_each_training,
    "optimizer_cls_and_kwargs": an_optimisers_class_is_used_in_each_stage,
    "optimizers": an_optimiser_is_used,
    "preprocess_logits_for_metrics": metrics_get_the_last_exits_logits_after_they_were_prepared,
    "processing_class": a_tokenizer_is_saved_with_the_model,
    "args.auto_find_batch_size": a_batch_that_is_too_large_is_made_smaller,
    "args.load_best_model_at_end": the_best_checkpoint_is_loaded,
    "args.label_names": partial(weights_are, expected=True, label_names=["labels"]),
    "args.max_grad_norm": partial(weights_are, expected=False, max_grad_norm=1e-3, optim="sgd"),
    "args.neftune_noise_alpha": partial(weights_are, expected=False, neftune_noise_alpha=50.0),
    "args.neftune_noise_alpha, 2 stages": partial(
        weights_are, expected=False, objective="two-stage", neftune_noise_alpha=50.0
    ),
    "args.optim": partial(weights_are, expected=False, optim="sgd"),
    "args.remove_unused_columns": partial(weights_are, expected=True, remove_unused_columns=False),
    "args.torch_compile": partial(weights_are, expected=True, torch_compile=True, torch_compile_backend="eager"),
    "args.train_sampling_strategy": rows_of_like_length_share_a_batch,
    "args.weight_decay": partial(weights_are, expected=False, weight_decay=0.5),
    "rows without labels": unlabelled_rows_are_predicted,
}
ELSEWHERE = {"args", "model", "train_dataset"}  # every test passes them


FAST = ("callbacks", "compute_loss_func", "data_collator", "optimizers", "processing_class", "args.optim")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in HONOURED]
)
def test_the_trainers_argument_is_honoured(name: str, tmp_path: Path) -> None:
    HONOURED[name](tmp_path)


def test_all_arguments_of_the_trainer_are_in_the_table() -> None:
    assert set(inspect.signature(Trainer).parameters) == ELSEWHERE | {name for name in HONOURED if name.isidentifier()}


# --- refused -----------------------------------------------------------------------------------------------


def sgd(model: MultiExitModel) -> tuple[Any, None]:
    return torch.optim.SGD(model.parameters(), lr=0.1), None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported by ExitTrainer"),
    ({"label_names": ["target"]}, "label_names must be ['labels'], under which the loss reads them; got ['target']"),
    ({"use_liger_kernel": True}, "use_liger_kernel is not supported"),
    ({"objective": "two-stage", "optimizers": sgd}, "TwoStage has 2 stages, each with an optimiser of its own"),
    ({"exit_learning_rate": 0.1, "optimizers": sgd}, "exit_learning_rate is for an optimiser that the Trainer makes"),
    ({"class_weights": "balanced", "compute_loss_func": cross_entropy}, "class_weights and compute_loss_func both set"),
    (
        {"objective": "ensemble-distillation", "ddp_find_unused_parameters": True},
        "ddp_find_unused_parameters does not go with EnsembleDistillation",
    ),
    ({"objective": "two-stage", "model": {"memory": 0.9}}, "TwoStage freezes the last exit, and memory"),
    ({"model": tiny_classifier}, "ExitTrainer trains a MultiExitModel, got a BertForSequenceClassification"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_the_trainers_argument_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = changes.get("model", {})
    model = source() if callable(source) else model_init(**source)
    changes = {name: value for name, value in changes.items() if name != "model"}
    if "optimizers" in changes:
        changes["optimizers"] = changes["optimizers"](model)
    with pytest.raises(InvalidInput) as error:
        trainer_of(tmp_path / "run", model, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_models_of_model_init_are_checked_alike(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="TwoStage freezes the last exit"):
        trainer_of(tmp_path / "run", objective="two-stage", model_init=partial(model_init, memory=0.9))
    assert not (tmp_path / "run").exists()


def test_training_rows_without_labels_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="training needs labels: a batch has input_ids, attention_mask"):
        trained(tmp_path, train_dataset=token_rows(16))


@pytest.mark.parametrize("value", [lambda o, y, n: o.logits.mean(dim=0), lambda o, y, n: 1.0])
def test_a_loss_function_that_returns_no_number_is_one_line(value: Any, tmp_path: Path) -> None:
    def function(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Any:
        return value(outputs, labels, num_items_in_batch)

    with pytest.raises(InvalidInput, match="compute_loss_func must return one number as a tensor, for each exit; got"):
        trained(tmp_path, compute_loss_func=function)


# --- more of loss functions, new models and searches ----------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[] if name == "weighted" else pytest.mark.slow) for name in sorted(OBJECTIVES)],
)
def test_a_loss_function_takes_the_place_of_each_exits_own_loss(objective: str, tmp_path: Path) -> None:
    """Cross-entropy as a function trains what cross-entropy trains, in every objective, with accumulated gradients."""
    accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2, "optim": "sgd"}
    torch.manual_seed(1)  # of the teacher
    own = trained(tmp_path, objective, model=model_init(certainty=True), **accumulated)
    torch.manual_seed(1)
    model = model_init(certainty=True)
    assert same(trained(tmp_path, objective, model=model, compute_loss_func=cross_entropy, **accumulated), own)
    assert not same(own, model_init(certainty=True))


def test_a_loss_function_is_logged_and_evaluated_for_each_exit(tmp_path: Path) -> None:
    def tenth(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        return cross_entropy(outputs, labels, num_items_in_batch) / 10

    logs = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 1, "eval_dataset": rows(8)}
    first, second = (trainer_of(tmp_path, compute_loss_func=function, **logs) for function in (None, tenth))
    for name, value in first.evaluate().items():
        if "loss" in name:
            assert second.evaluate()[name] == pytest.approx(value / 10, abs=1e-4)
    for trainer in (first, second):
        trainer.train()
    (one,), (other,) = ([x for x in t.state.log_history if "loss_exit_1" in x] for t in (first, second))
    assert [other[f"loss_exit_{n}"] for n in range(1, 5)] == pytest.approx(
        [one[f"loss_exit_{n}"] / 10 for n in range(1, 5)], abs=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["two-stage", "ensemble-distillation"])
def test_new_models_go_through_all_stages_and_each_training_starts_alike(objective: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, objective=objective, model_init=new_model)
    trainer.train()
    first = trainer.model
    assert not same(first, model_init())
    trainer.train()
    assert trainer.model is not first
    assert same(trainer.model, first)
    if objective == "two-stage":
        assert same(first, trained(tmp_path, objective))


class Search(HyperParamSearchBackendBase):
    """A search over learning rates, as transformers' backends do it."""

    name = "optuna"
    scores: dict[float, float]

    @staticmethod
    def is_available() -> bool:
        return True

    def run(self, trainer: Any, n_trials: int, direction: str, **options: Any) -> Any:
        scores = {}
        for number, rate in enumerate(options["rates"]):
            trainer.objective = None
            trainer.train(trial=SimpleNamespace(number=number, params={"learning_rate": rate}))
            scores[rate] = trainer.compute_objective(trainer.evaluate())
            trainer.objective = scores[rate]
        return scores


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["two-stage", "ensemble-distillation"])
def test_a_search_trains_a_new_model_for_each_trial(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, "optuna", Search)
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_dataset": rows(8)}
    scores = []
    for rates in [(1e-2, 1e-4), (1e-4, 1e-2)]:
        trainer = trainer_of(tmp_path / str(rates), objective=objective, model_init=new_model, **saving)
        space = {"hp_space": lambda trial: trial.params, "backend": "optuna", "rates": rates}
        scores.append(trainer.hyperparameter_search(n_trials=2, **space))
    assert scores[0] == pytest.approx(scores[1])  # whatever came before
    assert scores[0][1e-2] != pytest.approx(scores[0][1e-4], abs=1e-4)
    stage = "early/" if objective == "two-stage" else ""
    assert (tmp_path / "(0.01, 0.0001)" / f"run-1/{stage}checkpoint-3").is_dir()

    # the score is the evaluation loss, without the losses of the exits
    alone = trainer_of(tmp_path / "alone", objective=objective, model_init=new_model, **saving)
    alone.train()
    assert scores[0][1e-2] == pytest.approx(alone.evaluate()["eval_loss"])


@pytest.mark.slow
def test_a_second_training_goes_through_the_stages_from_the_first(tmp_path: Path) -> None:
    """No optimiser of the stage before is left, which would train other parameters."""
    trainer = trainer_of(tmp_path, objective="two-stage")
    trainer.train()
    before = trainer.model.backbone.embeddings.word_embeddings.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.model.backbone.embeddings.word_embeddings.weight, before)
