import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import InvalidInput, UnknownName
from offramp.objectives.base import PARTS, Objective, depth_weighted, exit_losses
from offramp.objectives.joint import Joint, Last, Weighted
from offramp.registry import OBJECTIVES, load_objective
from offramp.values import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ExitOutput

# three exits, two samples; each exit's loss, by hand
P = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], [[0.9, 0.05, 0.05]] * 2])
CLASSES = (
    ExitOutput(P.log() + 1.5),
    torch.tensor([0, 2]),
    [-(math.log(0.5) + math.log(0.6)) / 2, -math.log(0.8), -(math.log(0.9) + math.log(0.05)) / 2],
)
VALUES = (  # off by 1 and 2, 0 and 1, 0 and 0
    ExitOutput(torch.tensor([[[1.0], [5.0]], [[2.0], [4.0]], [[2.0], [3.0]]])),
    torch.tensor([2.0, 3.0]),
    [2.5, 0.5, 0.0],
)
SEVERAL_VALUES = (  # off by 1 and 3, 2 and 0; half of that; nothing
    ExitOutput(
        torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[0.5, 1.5], [2.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]]),
        problem_type=REGRESSION,
    ),
    torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    [(1 + 9 + 4 + 0) / 4, (0.25 + 2.25 + 1 + 0) / 4, 0.0],
)
Q = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.2], [0.6, 0.7]], [[0.99, 0.01], [0.01, 0.99]]])
SEVERAL_LABELS = (
    ExitOutput((Q / (1 - Q)).log(), problem_type=MULTI_LABEL),
    torch.tensor([[1, 0], [0, 1]]),
    [math.log(2), -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.7)) / 4, -math.log(0.99)],
)
KINDS = pytest.mark.parametrize(
    ("exits", "labels", "each"),
    [CLASSES, VALUES, SEVERAL_VALUES, SEVERAL_LABELS],
    ids=["classes", "values", "several-values", "several-labels"],
)


def loss_of(objective: Objective, exits: ExitOutput, labels: Tensor) -> float:
    loss = objective.loss(objective.stages[0], 0, exits, labels)
    assert loss.shape == ()
    return loss.item()


@KINDS
def test_the_loss_of_each_exit_is_the_mean_over_the_batch(exits: ExitOutput, labels: Tensor, each: list[float]) -> None:
    assert exit_losses(exits, labels).tolist() == pytest.approx(each, abs=1e-6)


@KINDS
def test_joint_sums_the_exits(exits: ExitOutput, labels: Tensor, each: list[float]) -> None:
    assert loss_of(Joint(), exits, labels) == pytest.approx(sum(each), abs=1e-6)


@KINDS
def test_weighted_counts_exit_i_i_times(exits: ExitOutput, labels: Tensor, each: list[float]) -> None:
    wanted = (1 * each[0] + 2 * each[1] + 3 * each[2]) / 6
    assert loss_of(Weighted(), exits, labels) == pytest.approx(wanted, abs=1e-6)


@KINDS
def test_last_is_the_last_exit_alone(exits: ExitOutput, labels: Tensor, each: list[float]) -> None:
    assert loss_of(Last(), exits, labels) == pytest.approx(each[-1], abs=1e-6)


def test_weights_run_from_1_to_the_number_of_exits() -> None:
    assert depth_weighted(torch.tensor([60.0, 0, 0, 0])).item() == 6.0
    assert depth_weighted(torch.tensor([0, 0, 0, 60.0])).item() == 24.0
    assert depth_weighted(torch.ones(12)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [torch.tensor([2.0, 3.0]), torch.tensor([[2.0], [3.0]]), torch.tensor([2, 3])])
def test_values_may_come_as_a_row_or_as_a_column(labels: Tensor) -> None:
    assert exit_losses(VALUES[0], labels).tolist() == VALUES[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@KINDS
def test_losses_are_taken_in_float32(exits: ExitOutput, labels: Tensor, each: list[float], dtype: torch.dtype) -> None:
    low = ExitOutput(exits.logits.to(dtype), problem_type=exits.problem_type)
    losses = exit_losses(low, labels)
    assert losses.dtype == torch.float32
    high = ExitOutput(low.logits.float(), problem_type=exits.problem_type)
    assert torch.equal(losses, exit_losses(high, labels))


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_losses_are_finite_for_logits_of_any_size(problem_type: str) -> None:
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    labels = torch.tensor([1]) if problem_type == SINGLE_LABEL else torch.tensor([[0, 1]])
    assert exit_losses(ExitOutput(logits, problem_type=problem_type), labels).isfinite().all()


# --- gradients ----------------------------------------------------------------------------------------------


def gradients(objective: Objective, case: tuple[ExitOutput, Tensor, Any]) -> Tensor:
    exits, labels, _ = case
    logits = exits.logits.clone().requires_grad_()
    objective.loss(objective.stages[0], 0, ExitOutput(logits, problem_type=exits.problem_type), labels).backward()
    return logits.grad


def test_gradients_of_last_reach_the_last_exit_alone() -> None:
    found = gradients(Last(), CLASSES)
    assert (found[:-1] == 0).all()
    assert found[-1].abs().sum() > 0


def test_gradients_of_joint_reach_each_exit_alike_and_of_weighted_by_depth() -> None:
    joint, weighted = gradients(Joint(), CLASSES), gradients(Weighted(), CLASSES)
    truth = torch.nn.functional.one_hot(CLASSES[1], 3)
    torch.testing.assert_close(joint, (P - truth) / 2)  # softmax minus truth, over the batch
    torch.testing.assert_close(weighted, joint * torch.tensor([1 / 6, 2 / 6, 3 / 6]).view(3, 1, 1))


# --- what learns when ---------------------------------------------------------------------------------------


def test_joint_and_weighted_train_everything_and_last_leaves_the_early_exits_alone() -> None:
    assert [stage.learns for stage in Joint().stages] == [stage.learns for stage in Weighted().stages] == [PARTS]
    assert [stage.learns for stage in Last().stages] == [{"backbone", "final_exit", "gate"}]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_gives_a_finite_loss_in_each_stage(name: str) -> None:
    for exits, labels, _ in (CLASSES, VALUES, SEVERAL_LABELS):
        objective = load_objective(name)
        assert objective.stages
        for stage in objective.stages:
            assert stage.learns
            assert stage.learns <= PARTS
            for step in (0, 1):
                loss = objective.loss(stage, step, exits, labels)
                assert loss.shape == ()
                assert loss.isfinite()


def test_objectives_are_loaded_by_name() -> None:
    assert load_objective("joint") == Joint()
    assert load_objective("weighted") == Weighted()
    assert load_objective("last") == Last()
    with pytest.raises(UnknownName, match="unknown name 'wieghted'; did you mean 'weighted'"):
        load_objective("wieghted")
    with pytest.raises(InvalidInput, match="'joint' has no parameter 'temperature'; it has: none"):
        load_objective("joint", temperature=2.0)
