import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import InvalidInput, UnknownName
from offramp.model.losses import depth_weighted, exit_losses
from offramp.training.objectives.base import PARTS, Objective
from offramp.training.objectives.distillation import EnsembleDistillation, LayerAttention, SelfDistillation, distances
from offramp.training.objectives.equilibrium import GradientEquilibrium
from offramp.training.objectives.joint import Joint, Last, Weighted
from offramp.training.objectives.registry import OBJECTIVES, load_objective
from offramp.training.objectives.staged import Alternating, TwoStage
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

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
    ("exits", "labels", "by_exit"),
    [CLASSES, VALUES, SEVERAL_VALUES, SEVERAL_LABELS],
    ids=["classes", "values", "several-values", "several-labels"],
)


def loss_of(objective: Objective, exits: ExitOutput, labels: Tensor) -> float:
    loss = objective.loss(objective.stages[0], 0, exits, labels)
    assert loss.shape == ()
    return loss.item()


@KINDS
def test_the_loss_of_each_exit_is_the_mean_over_the_batch(
    exits: ExitOutput, labels: Tensor, by_exit: list[float]
) -> None:
    assert exit_losses(exits, labels).tolist() == pytest.approx(by_exit, abs=1e-6)


@KINDS
def test_joint_sums_the_exits(exits: ExitOutput, labels: Tensor, by_exit: list[float]) -> None:
    assert loss_of(Joint(), exits, labels) == pytest.approx(sum(by_exit), abs=1e-6)


@KINDS
def test_weighted_counts_exit_i_i_times(exits: ExitOutput, labels: Tensor, by_exit: list[float]) -> None:
    wanted = (1 * by_exit[0] + 2 * by_exit[1] + 3 * by_exit[2]) / 6
    assert loss_of(Weighted(), exits, labels) == pytest.approx(wanted, abs=1e-6)


@KINDS
def test_last_is_the_last_exit_alone(exits: ExitOutput, labels: Tensor, by_exit: list[float]) -> None:
    assert loss_of(Last(), exits, labels) == pytest.approx(by_exit[-1], abs=1e-6)


@KINDS
def test_two_stages_are_the_last_exit_and_then_the_sum_of_the_others(
    exits: ExitOutput, labels: Tensor, by_exit: list[float]
) -> None:
    objective = TwoStage()
    actual = [objective.loss(stage, 0, exits, labels).item() for stage in objective.stages]
    assert actual == pytest.approx([by_exit[-1], by_exit[0] + by_exit[1]], abs=1e-6)
    assert TwoStage(freeze=True).stages == objective.stages[1:]


@KINDS
def test_alternating_is_the_last_exit_at_even_steps_and_the_sum_of_all_at_odd_ones(
    exits: ExitOutput, labels: Tensor, by_exit: list[float]
) -> None:
    (stage,) = Alternating().stages
    actual = [Alternating().loss(stage, step, exits, labels).item() for step in range(4)]
    assert actual == pytest.approx([by_exit[-1], sum(by_exit)] * 2, abs=1e-6)


@KINDS
def test_equilibrium_is_the_sum(exits: ExitOutput, labels: Tensor, by_exit: list[float]) -> None:
    assert loss_of(GradientEquilibrium(), exits, labels) == pytest.approx(sum(by_exit), abs=1e-6)


def kl(first: list[float], second: list[float], temperature: float = 1.0) -> float:
    """T^2 KL of two distributions, softened by the temperature, by hand."""
    soft = [[value ** (1 / temperature) for value in row] for row in (first, second)]
    p, q = ([value / sum(row) for value in row] for row in soft)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


LAST = [0.9, 0.05, 0.05]  # what the last exit of CLASSES says of both samples


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_self_distillation_pulls_the_early_exits_to_the_last_one(temperature: float) -> None:
    exits, labels, by_exit = CLASSES
    objective = SelfDistillation(temperature=temperature)
    actual = [objective.loss(stage, 0, exits, labels).item() for stage in objective.stages]
    by_hand = sum(kl(LAST, row, temperature) for row in P[:2].flatten(0, 1).tolist()) / 2
    assert actual == pytest.approx([by_exit[-1], by_hand], abs=1e-5)


def test_self_distillation_of_values_is_squared_error_and_of_labels_a_choice_each() -> None:
    stage = SelfDistillation().stages[1]
    values = SelfDistillation().loss(stage, 0, VALUES[0], VALUES[1]).item()
    assert values == pytest.approx((1 + 4) / 2 + (0 + 1) / 2)  # from 2 and 3: 1 and 5, 2 and 4
    tags = SelfDistillation().loss(stage, 0, SEVERAL_LABELS[0], SEVERAL_LABELS[1]).item()
    teacher, students = Q[-1].flatten().tolist(), Q[:2].flatten(1).tolist()
    by_hand = sum(kl([t, 1 - t], [s, 1 - s]) for row in students for t, s in zip(teacher, row, strict=True)) / 2
    assert tags == pytest.approx(by_hand, abs=1e-5)


def test_the_teacher_of_self_distillation_is_not_pulled() -> None:
    exits, labels, _ = CLASSES
    logits = exits.logits.clone().requires_grad_()
    SelfDistillation().loss(SelfDistillation().stages[1], 0, ExitOutput(logits), labels).backward()
    assert (logits.grad[-1] == 0).all()
    assert (logits.grad[:-1] != 0).any()


def evenly(objective: EnsembleDistillation) -> EnsembleDistillation:
    """The teacher's attention weighs all exits alike."""
    objective.build(3, 3)
    with torch.no_grad():
        objective.teacher.context.weight.zero_()
    return objective


def mean_of_logits() -> list[list[float]]:
    """The distributions of the mean logits of CLASSES: geometric means, by hand."""
    rows = []
    for sample in P.transpose(0, 1).tolist():
        product = [math.prod(exit[k] for exit in sample) ** (1 / 3) for k in range(3)]
        rows.append([value / sum(product) for value in product])
    return rows


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_ensemble_distillation_pulls_all_exits_to_their_weighted_mean(direction: str) -> None:
    exits, labels, by_exit = CLASSES
    objective = evenly(EnsembleDistillation(gamma=0.25, temperature=2.0, direction=direction))
    teacher = mean_of_logits()
    pairs = [(teacher[sample], row) for exit in P.tolist() for sample, row in enumerate(exit)]
    learned = sum(kl(t, s, 2.0) if direction == "forward" else kl(s, t, 2.0) for t, s in pairs) / 2
    own = -(math.log(teacher[0][0]) + math.log(teacher[1][2])) / 2
    by_hand = 0.75 * sum(by_exit) + 0.25 * learned + 0.25 * own
    assert loss_of(objective, exits, labels) == pytest.approx(by_hand, abs=1e-5)
    papers = evenly(EnsembleDistillation(gamma=None, temperature=2.0, direction=direction))
    assert loss_of(papers, exits, labels) == pytest.approx(sum(by_exit) + learned, abs=1e-5)


def test_build_gives_the_teacher_its_shapes_and_keeps_the_weights_that_it_has() -> None:
    objective = EnsembleDistillation()
    objective.build(4, 3)
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    assert before["map.weight"].shape == (64, 3)
    objective.build(4, 3)
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())


@torch.no_grad()
def test_the_teacher_weighs_exits_by_its_attention() -> None:
    teacher = LayerAttention()
    logits = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    teacher(logits)
    actual = []
    for sample in range(2):
        scores = [
            float(teacher.context.weight[0] @ (teacher.map.weight @ exit[sample] + teacher.map.bias).tanh())
            for exit in logits
        ]
        total = sum(math.exp(score) for score in scores)
        actual.append(sum(math.exp(score) / total * exit[sample] for score, exit in zip(scores, logits, strict=True)))
    assert torch.allclose(teacher(logits), torch.stack(actual), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.1, None])
def test_the_teacher_reads_the_exits_and_sends_them_nothing(gamma: float | None) -> None:
    exits, labels, _ = CLASSES
    objective = EnsembleDistillation(gamma=gamma)
    logits = exits.logits.clone().requires_grad_()
    taught = objective.teacher(logits.detach())
    loss = objective.loss(objective.stages[0], 0, ExitOutput(logits), labels)
    actual = torch.autograd.grad(loss, logits)[0]
    # the same loss with the teacher's answer as a constant has the same gradient at the exits
    g = 0.0 if gamma is None else gamma
    constant = (1 - g) * exit_losses(ExitOutput(logits), labels) + (gamma or 1) * distances(
        ExitOutput(logits), taught.detach(), 3.0
    )
    assert torch.allclose(actual, torch.autograd.grad(constant.sum(), logits)[0], atol=1e-6)


def test_the_students_do_not_pull_at_the_teacher_unless_it_has_no_loss_of_its_own() -> None:
    exits, labels, _ = CLASSES
    for gamma, of_labels in ((0.1, True), (None, False)):
        objective = EnsembleDistillation(gamma=gamma)
        taught = objective.teacher(exits.logits)
        weights = list(objective.teacher.parameters())
        actual = torch.autograd.grad(objective.loss(objective.stages[0], 0, exits, labels), weights)
        own = torch.autograd.grad(0.1 * torch.nn.functional.cross_entropy(taught, labels), weights)
        pairs = zip(actual, own, strict=True)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs) == of_labels


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("self-distillation", {"temperature": 0}, "temperature must be above 0, got 0"),
        ("ensemble-distillation", {"temperature": -1.0}, "temperature must be above 0, got -1"),
        ("ensemble-distillation", {"gamma": 1.5}, "gamma must be from 0 to 1, or None, got 1.5"),
        ("ensemble-distillation", {"direction": "back"}, "direction must be one of forward, reverse; got 'back'"),
        ("ensemble-distillation", {"teacher": None}, "has no parameter 'teacher'"),
        ("weighted", {"freeze": True}, "has no parameter 'freeze'"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_objective(name, **wrong)


def test_weights_run_from_1_to_the_number_of_exits() -> None:
    assert depth_weighted(torch.tensor([60.0, 0, 0, 0])).item() == 6.0
    assert depth_weighted(torch.tensor([0, 0, 0, 60.0])).item() == 24.0
    assert depth_weighted(torch.ones(12)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [torch.tensor([2.0, 3.0]), torch.tensor([[2.0], [3.0]]), torch.tensor([2, 3])])
def test_values_may_come_as_a_row_or_as_a_column(labels: Tensor) -> None:
    assert exit_losses(VALUES[0], labels).tolist() == VALUES[2]


@pytest.mark.parametrize("problem_type", [REGRESSION, MULTI_LABEL])
@pytest.mark.parametrize("labels", [torch.ones(3, 1), torch.ones(3), torch.ones(1, 3), torch.ones(3, 2)])
def test_labels_are_never_broadcast(problem_type: str, labels: Tensor) -> None:
    exits = ExitOutput(torch.zeros(2, 3, 3), problem_type=problem_type)
    with pytest.raises(InvalidInput, match=r"labels of 3 rows and 3 outputs must be \(3, 3\), got"):
        exit_losses(exits, labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@KINDS
def test_losses_are_taken_in_float32(
    exits: ExitOutput, labels: Tensor, by_exit: list[float], dtype: torch.dtype
) -> None:
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
    actual = gradients(Last(), CLASSES)
    assert (actual[:-1] == 0).all()
    assert actual[-1].abs().sum() > 0


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
