"""Class weights: counted on the training rows, applied to the loss of every exit and to nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from offramp.data.batching import collate
from offramp.errors import InvalidInput
from offramp.model.losses import depth_weighted, gate_losses
from offramp.model.modeling import MultiExitModel
from offramp.training.class_weights import balanced, batch_weight, weights_text
from offramp.training.fit import default_arguments
from offramp.training.objectives.distillation import distances
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from offramp.training.trainer import ExitTrainer
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.models import padded, tiny_model, token_rows

NAMES = {0: "bad", 1: "fine", 2: "good"}
LABELS = [0, 0, 0, 0, 1, 2, 2, 0]  # 5, 1 and 2 rows
WEIGHTS = [8 / 15, 8 / 3, 8 / 6]


def trainer_of(
    model: MultiExitModel, labels: list[Any], folder: Path, objective: str = "weighted", **changes: Any
) -> ExitTrainer:
    weights = changes.pop("class_weights", "balanced")
    rows = [{**row, "labels": label} for row, label in zip(token_rows(len(labels)), labels, strict=True)]
    usual = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 1}
    return ExitTrainer(
        model,
        default_arguments(folder, **usual | changes),
        objective=load_objective(objective),
        class_weights=weights,
        train_dataset=rows,
        data_collator=partial(collate, pad_token_id=0),
    )


def test_balanced_weights_are_rows_over_classes_times_rows_of_the_class() -> None:
    assert balanced(LABELS, NAMES, SINGLE_LABEL).tolist() == pytest.approx(WEIGHTS)
    assert balanced([*LABELS, -100], NAMES, SINGLE_LABEL).tolist() == pytest.approx(WEIGHTS)


def test_of_several_labels_each_weighs_negatives_over_positives() -> None:
    hot = [[1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert balanced(hot, NAMES, MULTI_LABEL).tolist() == pytest.approx([3, 3, 1 / 3])


def test_a_batch_weighs_as_its_rows_or_as_the_classes_of_its_labels() -> None:
    weights, labels = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2, -100])
    assert batch_weight(labels, None, SINGLE_LABEL) == 4
    assert batch_weight(labels, weights, SINGLE_LABEL) == 9
    assert batch_weight(torch.ones(5, 3), weights, MULTI_LABEL) == 5
    halves = (
        F.cross_entropy(torch.eye(3)[[0, 1]], labels[:2], weights),
        F.cross_entropy(torch.eye(3)[[2, 0]], labels[2:], weights),
    )
    shares = [batch_weight(half, weights, SINGLE_LABEL) / 4.5 for half in (labels[:2], labels[2:])]
    whole = F.cross_entropy(torch.eye(3)[[0, 1, 2, 0]], labels, weights)
    assert (shares[0] * halves[0] + shares[1] * halves[1]) / 2 == pytest.approx(whole)


def test_weights_are_printed_by_name_and_of_many_classes_the_smallest_and_the_largest() -> None:
    assert weights_text(torch.tensor(WEIGHTS), NAMES) == "bad 0.5333, fine 2.667, good 1.333"
    many = {number: f"c{number}" for number in range(20)}
    assert weights_text(torch.arange(20) + 0.5, many) == "20 classes, from c0 0.5 to c19 19.5"


@pytest.mark.parametrize(
    ("labels", "weights", "changes", "message"),
    [
        ([0, 0, 2, 2], "balanced", {}, "no row is of the class 'fine'"),
        ([0, 1, 2, 3], "balanced", {}, "a label is not one of the 3 classes, 0 to 2"),
        ([0, 1, 2, None], "balanced", {}, "need a label in every training row"),
        (LABELS, "even", {}, "must be 'balanced' or a number for each class, got 'even'"),
        (LABELS, [1.0, 2.0], {}, "must be 3 numbers above 0, one a class, got [1.0, 2.0]"),
        (LABELS, {1: 0.5, 2: 1.0, 3: 2.0}, {}, "must be 3 numbers above 0, one a class, got {1: 0.5"),
        (LABELS, ["a", "b", "c"], {}, "must be 'balanced' or a number for each class, got ['a', 'b', 'c']"),
        (LABELS, [1.0, None, 2.0], {}, "must be 'balanced' or a number for each class"),
        (LABELS, 2.0, {}, "must be 'balanced' or a number for each class, got 2.0"),
        (LABELS, [1.0, 2.0, 0.0], {}, "must be 3 numbers above 0"),
        (LABELS, "balanced", {"per_device_train_batch_size": 1}, "in batches of one row they change nothing"),
        ([[1.0, 0.0, 1.0]] * 2, "balanced", {"problem_type": MULTI_LABEL}, "no row has the label 'fine'"),
        ([[1, 1, 0], [1, 0, 1]], "balanced", {"problem_type": MULTI_LABEL}, "every row has the label 'bad'"),
        ([[0.5, 1.0, 2.0]], "balanced", {"problem_type": REGRESSION}, "class weights are for classes"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_are_refused_before_anything_is_written(
    labels: list[Any], weights: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    kind = changes.pop("problem_type", SINGLE_LABEL)
    model = tiny_model(id2label=NAMES, problem_type=kind)
    with pytest.raises(InvalidInput) as error:
        trainer_of(model, labels, tmp_path / "run", class_weights=weights, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def loss_by_hand(name: str, stage: int, exits: ExitOutput, labels: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The objectives written out, with torch's weighted cross entropy as L_i and all else unweighted."""
    weights = torch.tensor(WEIGHTS)
    losses = torch.stack([F.cross_entropy(logits, labels, weight=weights) for logits in exits.logits])
    gates = gate_losses(exits, labels)
    each = losses + gates
    if name == "weighted":
        return depth_weighted(each)
    if name in ("joint", "gradient-equilibrium"):
        return each.sum()
    if name == "self-distillation" and stage == 1:
        students = ExitOutput(exits.logits[:-1], problem_type=SINGLE_LABEL)
        return (distances(students, exits.logits[-1], 1.0) + gates[:-1]).sum()
    if name == "two-stage" and stage == 1:
        return each[:-1].sum()
    if name == "ensemble-distillation":
        apart = distances(exits, teacher, 3.0)
        own = F.cross_entropy(teacher, labels, weight=weights)
        return (0.9 * losses + 0.1 * apart).sum() + 0.1 * own + gates.sum()
    return each[-1]  # last, alternating at step 0, the first stage of the others


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_weighs_the_losses_of_labels_and_nothing_else(name: str, tmp_path: Path) -> None:
    model = tiny_model(id2label=NAMES, certainty=True)
    trainer = trainer_of(model, LABELS, tmp_path, name)
    objective = trainer.exit_objective
    torch.manual_seed(0)
    objective.build(len(model.layers), 3)
    labels = torch.tensor(LABELS)
    batch = padded(model, token_rows(8))
    out = model(**batch)
    exits = ExitOutput(out.exit_logits, out.exit_certainty, problem_type=SINGLE_LABEL)
    teacher = objective.modules()[0](exits.logits) if objective.modules() else exits.logits[-1]
    for number, stage in enumerate(objective.stages):
        trainer.stage = stage
        actual = trainer.compute_loss(model, {**batch, "labels": labels})
        assert actual.item() == pytest.approx(loss_by_hand(name, number, exits, labels, teacher).item(), rel=1e-5)


def test_of_several_labels_positives_count_so_many_times(tmp_path: Path) -> None:
    hot = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    model = tiny_model(id2label=NAMES, problem_type=MULTI_LABEL)
    trainer = trainer_of(model, hot, tmp_path, "joint")
    batch, labels = padded(model, token_rows(4)), torch.tensor(hot)
    weights = torch.tensor([3, 3, 1 / 3])
    each = [F.binary_cross_entropy_with_logits(x, labels, pos_weight=weights) for x in model(**batch).exit_logits]
    assert trainer.compute_loss(model, {**batch, "labels": labels}).item() == pytest.approx(sum(each).item())


def test_a_rare_class_is_answered_more_often_with_balanced_weights(tmp_path: Path) -> None:
    """The texts say nothing of the class, so that the losses alone decide what is answered."""
    labels = [0] * 28 + [1] * 2 + [2] * 2
    rates = {}
    for weights in (None, "balanced"):
        model = tiny_model(id2label=NAMES)
        settings = {"max_steps": 30, "learning_rate": 1e-2, "train_sampling_strategy": "random"}
        trainer = trainer_of(model, labels, tmp_path, class_weights=weights, **settings)
        trainer.train()
        batch = padded(model.eval(), token_rows(32, seed=9))
        rates[weights] = model(**batch).logits.softmax(dim=-1).mean(dim=0)[0].item()
    assert rates["balanced"] < 0.7 * rates[None]
