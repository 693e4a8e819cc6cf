import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from offramp.errors import InvalidInput
from offramp.inference.record import record
from offramp.model.gate import Gate
from offramp.model.losses import correctness_target, depth_weighted, exit_losses, gate_losses, task_losses
from offramp.model.modeling import MultiExitModel
from offramp.policies.certainty import Certainty
from offramp.policies.replay import scores
from offramp.training.objectives.joint import Joint
from offramp.training.objectives.staged import TwoStage
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from support.models import encoder_config, padded, tiny_model, token_rows

# two exits, two samples: the first exit is right about the first sample alone, the second about both
CLASSES = ExitOutput(
    torch.tensor([[[2.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]]),
    torch.tensor([[0.9, 0.6], [0.5, 0.8]]),
)
LABELS = torch.tensor([0, 1])
J = [(0.1**2 + 0.6**2) / 2, (0.5**2 + 0.2**2) / 2]


def test_the_gates_loss_is_the_squared_distance_to_being_right() -> None:
    assert correctness_target(CLASSES, LABELS).tolist() == [[1, 0], [1, 1]]
    assert gate_losses(CLASSES, LABELS).tolist() == pytest.approx(J)


def test_of_a_value_the_gate_learns_one_minus_tanh_of_the_distance() -> None:
    exits = ExitOutput(torch.tensor([[[1.0], [3.0]], [[2.0], [2.5]]]), torch.tensor([[0.5, 0.5], [1.0, 0.2]]))
    right = [[1 - math.tanh(1), 1 - math.tanh(0.5)], [1.0, 1.0]]
    labels = torch.tensor([2.0, 2.5])
    assert correctness_target(exits, labels).tolist() == [pytest.approx(row) for row in right]
    by_hand = [((0.5 - right[0][0]) ** 2 + (0.5 - right[0][1]) ** 2) / 2, (0.0 + 0.8**2) / 2]
    assert gate_losses(exits, labels).tolist() == pytest.approx(by_hand)


def test_of_several_values_the_worst_counts_and_of_several_labels_the_whole_set() -> None:
    values = ExitOutput(torch.tensor([[[0.0, 2.0]]]), torch.zeros(1, 1), problem_type=REGRESSION)
    assert correctness_target(values, torch.tensor([[0.5, 0.0]])).item() == pytest.approx(1 - math.tanh(2))
    tags = ExitOutput(torch.tensor([[[1.0, -1.0], [1.0, 1.0]]]), torch.zeros(1, 2), problem_type=MULTI_LABEL)
    assert correctness_target(tags, torch.tensor([[1, 0], [1, 0]])).tolist() == [[1, 0]]


def test_the_gates_loss_goes_wherever_the_tasks_loss_goes() -> None:
    task, both = task_losses(CLASSES, LABELS), exit_losses(CLASSES, LABELS)
    assert both.tolist() == pytest.approx((task + torch.tensor(J)).tolist())
    objective = TwoStage()
    first, second = (objective.loss(stage, 0, CLASSES, LABELS).item() for stage in objective.stages)
    assert first == pytest.approx(task[1].item() + J[1])
    assert second == pytest.approx(task[0].item() + J[0])
    assert Joint().loss(Joint().stages[0], 0, CLASSES, LABELS).item() == pytest.approx(task.sum().item() + sum(J))
    assert depth_weighted(both).item() == pytest.approx((both[0].item() + 2 * both[1].item()) / 3)


def test_without_a_gate_there_is_no_loss_of_it() -> None:
    exits = ExitOutput(CLASSES.logits)
    assert gate_losses(exits, LABELS).tolist() == [0, 0]


def test_the_target_sends_no_gradient_and_the_certainty_does() -> None:
    logits, certainty = CLASSES.logits.clone().requires_grad_(), CLASSES.certainty.clone().requires_grad_()
    gate_losses(ExitOutput(logits, certainty), LABELS).sum().backward()
    assert logits.grad is None
    assert torch.allclose(certainty.grad, certainty.detach() - torch.tensor([[1.0, 0], [1, 1]]))  # 2 (u - v) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certainty_is_a_sigmoid_in_float32(dtype: torch.dtype) -> None:
    gate = Gate([2]).to(dtype)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0, -2.0]]))
        gate.linear.bias.fill_(0.5)
    found = gate(torch.tensor([[1.0, 0.5], [0.0, 0.0]], dtype=dtype))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-0.5))])


@pytest.mark.parametrize("head", ["linear", "shared_pooler", "pooler", "attention"])
def test_one_gate_reads_what_each_exits_last_map_reads(head: str) -> None:
    model = tiny_model(head=head, pooling="mean", certainty=True)
    batch = padded(model, token_rows(5))
    out = model(**batch)
    carry = model.embed(batch)
    for exit in range(4):
        carry = model.block(exit, carry)
        read = model.heads.features(exit, carry.hidden, carry.mask)
        by_hand = (read @ model.gate.linear.weight.T + model.gate.linear.bias).sigmoid().squeeze(-1)
        assert torch.allclose(out.exit_certainty[exit], by_hand, atol=1e-6)
        assert torch.allclose(out.exit_logits[exit], model.heads.classifiers[exit](read), atol=1e-6)


def test_a_trace_keeps_the_certainty_and_the_policy_scores_by_it() -> None:
    model = tiny_model(certainty=True)
    rows = token_rows(9)
    trace = record(model, rows, batch_size=4)
    expected = model(**padded(model, rows)).exit_certainty
    assert torch.allclose(trace.certainty, expected, atol=1e-6)
    assert torch.equal(scores(Certainty(), trace), trace.certainty)


def test_a_gate_needs_exits_of_one_width() -> None:
    classifier = AutoModelForSequenceClassification.from_config(encoder_config())
    with pytest.raises(InvalidInput, match=r"exits of one width, got \[16, 128\]"):
        MultiExitModel.from_backbone(classifier, head="attention", certainty=True)
