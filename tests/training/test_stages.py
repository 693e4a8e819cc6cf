"""Training in stages: frozen means frozen, and a stopped run ends as an uninterrupted one."""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from offramp.data.batching import collate
from offramp.errors import InvalidInput
from offramp.model.bypass import Bypass
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import default_arguments
from offramp.training.freezing import parameter_group
from offramp.training.objectives.base import FREEZING, Objective, Stage
from offramp.training.objectives.registry import load_objective
from offramp.training.trainer import ExitTrainer
from offramp.types.outputs import ExitOutput
from support.models import CLASSIFIED, IMAGES, LAYERS, encoder_config, image_rows, padded, rows_for, tiny_classifier
from support.models import token_rows as random_rows
from support.traces import crossed

Weights = dict[str, Tensor]
KEEPS_HEAD = [family for family in CLASSIFIED if family != "modernbert"]  # whose head has a norm


def toy(model: MultiExitModel) -> list[dict[str, Any]]:
    """The label says whether the first token comes from the upper half of the vocabulary, or an image is bright."""
    if model.main_input_name == "pixel_values":
        return [{**row, "labels": int(row["pixel_values"].mean() > 0)} for row in image_rows(48)]
    return [{**row, "labels": int(row["input_ids"][0] >= 22)} for row in random_rows(48, longest=6)]


def toy_model(seed: int = 0, **exits: Any) -> MultiExitModel:
    torch.manual_seed(seed)
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    return MultiExitModel.from_backbone(encoder_config(initializer_range=0.1, **dropout), 2, **exits)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.3,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    return default_arguments(folder, **usual | changes)


def trainer_of(model: MultiExitModel, objective: Objective | str, folder: Path, **changes: Any) -> ExitTrainer:
    objective = load_objective(objective) if isinstance(objective, str) else objective
    return ExitTrainer(
        model,
        arguments(folder, **changes),
        objective=objective,
        exit_learning_rate=2e-2,
        train_dataset=toy(model),
        data_collator=partial(collate, pad_token_id=0),
    )


def weights(model: MultiExitModel) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(model: MultiExitModel, before: Weights) -> set[str]:
    """Which of the objective's parts have changed."""
    return {
        parameter_group(name, model) for name, value in weights(model).items() if not torch.equal(value, before[name])
    }


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("linear", "two-stage"),
        ("shared_pooler", "self-distillation"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("linear", "self-distillation"),
                ("pooler", "two-stage"),
                ("pooler", "self-distillation"),
                ("shared_pooler", "two-stage"),
            ]
        ),
    ],
)
def test_the_first_stage_is_plain_fine_tuning_and_the_second_moves_early_exits_and_gate_alone(
    head: str, name: str, tmp_path: Path
) -> None:
    plain, model = (toy_model(head=head, certainty=True) for _ in range(2))
    trainer_of(plain, "last", tmp_path / "plain").train()
    before = weights(plain)
    trainer_of(model, name, tmp_path / "staged").train()
    assert moved(model, before) == {"early_exits", "gate"}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("family", "name"), crossed(KEEPS_HEAD, ("two-stage", "self-distillation"), few=("two-stage",))
)
def test_a_fine_tuned_model_gets_exits_and_keeps_its_answers_bit_for_bit(
    family: str, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    classifier = tiny_classifier(family)
    model = MultiExitModel.from_backbone(classifier, pooling="mean")
    batch = padded(model, rows_for(model, 9), extra=2)
    expected = classifier(**batch).logits
    early = model.eval()(**batch).exit_logits[:-1]

    order = {"train_sampling_strategy": "random"} if family in IMAGES else {}
    trainer_of(model, load_objective(name, freeze=True), tmp_path, **order).train()

    out = model.eval()(**batch)
    assert torch.equal(out.logits, expected)
    assert not torch.isclose(out.exit_logits[:-1], early).any(dim=-1).all()


@pytest.mark.parametrize("head", ["linear", "pooler", "shared_pooler", "attention"])
def test_a_fine_tuned_models_head_is_the_last_exit_whatever_the_early_ones_are(head: str) -> None:
    torch.manual_seed(1)
    classifier = AutoModelForSequenceClassification.from_config(encoder_config("electra")).eval()
    model = MultiExitModel.from_backbone(classifier, head=head, pooling="mean").eval()
    batch = padded(model, random_rows(9), extra=2)
    assert torch.equal(model(**batch).logits, classifier(**batch).logits)
    if head in ("pooler", "shared_pooler"):  # the early exits start from its pooler, and with its activation
        hidden = model.block(0, model.embed(batch)).hidden
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        read = torch.nn.functional.gelu(classifier.classifier.dense(mean))
        assert torch.allclose(model(**batch).exit_logits[0], model.heads.classifiers[0](read), atol=1e-5)


def test_a_fine_tuned_model_keeps_its_head_in_a_folder_and_after_saving(tmp_path: Path) -> None:
    config = encoder_config("roberta")
    config.id2label = {0: "bad", 1: "fine", 2: "good"}
    torch.manual_seed(1)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    model = MultiExitModel.from_backbone(tmp_path / "classifier").eval()
    assert model.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    batch = padded(model, random_rows(5))
    assert torch.equal(model(**batch).logits, classifier(**batch).logits)
    model.save_pretrained(tmp_path / "exits")
    back = MultiExitModel.from_pretrained(tmp_path / "exits")
    assert torch.equal(back(**batch).logits_by_exit, model(**batch).logits_by_exit)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, True),
        ({"num_labels": 2}, True),
        ({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, True),
        ({"num_labels": 3}, False),
        ({"id2label": {0: "no", 1: "yes"}}, False),
        ({"problem_type": "multi_label_classification"}, False),
    ],
)
def test_the_head_is_kept_if_it_answers_the_question(asked: dict[str, Any], kept: bool) -> None:
    classifier = AutoModelForSequenceClassification.from_config(encoder_config())
    model = MultiExitModel.from_backbone(classifier, **asked)
    assert (model.config.own_head == "tanh") == kept
    assert torch.equal(model.heads.classifiers[-1].weight, classifier.classifier.weight) == kept


class PowerCut(TrainerCallback):
    """Stops a run in the stage and at the step given."""

    def __init__(self, trainer: ExitTrainer, stage: str, step: int) -> None:
        self.trainer, self.stage, self.step = trainer, stage, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stage.name == self.stage and state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Weights]:
    """An objective's name, and the weights after its uninterrupted run."""
    model = toy_model(certainty=True)
    trainer_of(model, request.param, tmp_path_factory.mktemp("whole"), **SAVING).train()
    return request.param, weights(model)


@pytest.fixture
def interrupted(request: pytest.FixtureRequest, whole: tuple[str, Weights], tmp_path: Path) -> Path:
    """The folder of a run of the same objective that was cut off in this stage behind this step."""
    trainer = trainer_of(toy_model(certainty=True), whole[0], tmp_path, **SAVING)
    trainer.add_callback(PowerCut(trainer, *request.param))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return tmp_path


SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}


@pytest.mark.parametrize(
    ("whole", "interrupted"),
    [
        pytest.param("two-stage", ("last", 5), marks=pytest.mark.slow),
        ("two-stage", ("early", 1)),  # before the stage's first checkpoint
        pytest.param("two-stage", ("early", 5), marks=pytest.mark.slow),
        pytest.param("self-distillation", ("early", 3), marks=pytest.mark.slow),
        ("alternating", ("all", 4)),  # resumes at step 3, a joint one
        ("ensemble-distillation", ("all", 4)),
        pytest.param("gradient-equilibrium", ("all", 5), marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_a_run_that_is_resumed_in_the_middle_ends_like_an_uninterrupted_one(
    whole: tuple[str, Weights], interrupted: Path
) -> None:
    name, expected = whole
    resumed = toy_model(certainty=True)
    trainer_of(resumed, name, interrupted, **SAVING).train(resume_from_checkpoint=True)

    for place, value in expected.items():
        assert torch.equal(resumed.state_dict()[place], value), place


def test_a_checkpoint_may_be_named(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}
    whole, resumed = toy_model(), toy_model()
    trainer_of(whole, "two-stage", tmp_path, **saving).train()
    shutil.rmtree(tmp_path / "early" / "checkpoint-6")
    assert {path.name for path in tmp_path.iterdir()} == {"last", "early"}
    again = trainer_of(resumed, "two-stage", tmp_path, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "early" / "checkpoint-3"))
    for place, value in weights(whole).items():
        assert torch.equal(resumed.state_dict()[place], value), place
    with pytest.raises(InvalidInput, match="no checkpoint to resume from"):
        trainer_of(resumed, "two-stage", tmp_path / "empty").train(resume_from_checkpoint=True)


def test_logs_say_which_stage_they_are_of(tmp_path: Path) -> None:
    trainer = trainer_of(toy_model(), "two-stage", tmp_path, logging_strategy="steps", logging_steps=3)
    trainer.train()
    actual = [(entry["stage"], entry["step"]) for entry in trainer.state.log_history if "loss" in entry]
    assert actual == [("last", 3), ("last", 6), ("early", 3), ("early", 6)]


def test_alternating_trains_the_last_exit_at_even_steps_and_all_at_odd_ones(tmp_path: Path) -> None:
    model = toy_model()
    before = weights(model)
    trainer_of(model, "alternating", tmp_path / "one", max_steps=1, weight_decay=0.0).train()
    assert moved(model, before) == {"backbone", "final_exit"}
    model = toy_model()
    trainer_of(model, "alternating", tmp_path / "two", max_steps=2, weight_decay=0.0).train()
    assert moved(model, before) == {"backbone", "final_exit", "early_exits"}


def test_the_teacher_learns_and_is_gone_afterwards(tmp_path: Path) -> None:
    model = toy_model()
    names = set(model.state_dict())
    objective = load_objective("ensemble-distillation", gamma=0.5)
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9}
    trainer = trainer_of(model, objective, tmp_path, **saving)
    trainer.train()
    (teacher,) = objective.modules()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert all(id(parameter) in rates for parameter in teacher.parameters())
    saved = [torch.load(tmp_path / f"checkpoint-{step}" / "optimizer.pt")["state"] for step in (2, 6)]
    assert len(saved[0]) == len(saved[1]) == len(names) + 3
    assert set(model.state_dict()) == names
    assert set(MultiExitModel.from_backbone(model).state_dict()) == names


@final
@dataclass(frozen=True)
class WithOffsets(Objective):
    """An objective with a number for each exit and output, made when the model is known."""

    offsets: nn.ParameterList = field(default_factory=nn.ParameterList)

    def build(self, exits: int, outputs: int) -> None:
        self.offsets.append(nn.Parameter(torch.zeros(exits, 1, outputs)))

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.offsets,)

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        return (exits.logits + self.offsets[0]).logsumexp(dim=-1).sum()


def test_the_trainer_builds_what_an_objective_trains_along(tmp_path: Path) -> None:
    model, objective = toy_model(), WithOffsets()
    trainer_of(model, objective, tmp_path, max_steps=1).train()
    (offsets,) = objective.offsets
    assert offsets.shape == (len(model.layers), 1, 2)
    assert (offsets != 0).all()


def test_one_optimiser_does_not_serve_two_stages(tmp_path: Path) -> None:
    model = toy_model()
    with pytest.raises(InvalidInput, match="TwoStage has 2 stages, each with an optimiser of its own"):
        ExitTrainer(
            model,
            arguments(tmp_path),
            objective=load_objective("two-stage"),
            optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
        )


def test_bypasses_belong_to_their_exits() -> None:
    model = toy_model(bypass=Bypass(rank=2), certainty=True)
    names = [name for name, _ in model.named_parameters() if name.startswith("bypasses.")]
    assert {parameter_group(name, model) for name in names if name.startswith("bypasses.3.")} == {"final_exit"}
    assert {parameter_group(name, model) for name in names if not name.startswith("bypasses.3.")} == {"early_exits"}
    assert parameter_group("gate.linear.weight", model) == "gate"
    assert FREEZING[1].learns == {"early_exits", "gate"}


def test_of_the_gradient_each_exit_sends_a_layer_gets_the_same_share() -> None:
    """At the embedding each of L exits counts 1 / L: (L-1)/L (L-2)/(L-1) ... 1/(L-i+1) = 1/L. Heads count whole."""
    scales = load_objective("gradient-equilibrium").branch_scales(LAYERS)
    assert scales == (1 / 4, 1 / 3, 1 / 2, 1)
    model = toy_model().eval()
    batch = padded(model, random_rows(5))
    table, heads = model.backbone.embeddings.word_embeddings.weight, model.heads.classifiers
    for exit in range(LAYERS):
        plain = torch.autograd.grad(model(**batch).exit_logits[exit].square().sum(), (table, heads[exit].weight))
        out = model(**batch, branch_scales=scales)
        scaled = torch.autograd.grad(out.exit_logits[exit].square().sum(), (table, heads[exit].weight))
        assert torch.allclose(scaled[0], plain[0] / LAYERS, atol=1e-5)
        assert torch.allclose(scaled[1], plain[1], atol=1e-5)
    assert torch.allclose(model(**batch, branch_scales=scales).exit_logits, model(**batch).exit_logits, atol=1e-6)


@pytest.mark.parametrize("name", ["joint", "two-stage"])
def test_the_gate_learns_whether_an_exit_is_right(name: str, tmp_path: Path) -> None:
    model = toy_model(certainty=True)
    settings = {"max_steps": 40, "weight_decay": 0.0, "learning_rate": 5e-3}
    trainer_of(model, name, tmp_path, **settings).train()
    rows = toy(model)
    labels = torch.tensor([row.pop("labels") for row in rows])
    out = model.eval()(**padded(model, rows))
    right = (out.exit_logits.argmax(dim=-1) == labels).float()
    assert (out.exit_certainty - right).square().mean() < 0.15
