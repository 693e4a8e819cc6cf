import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import recall_score

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.measure import measure
from offramp.evaluation.slices import MAX_SLICES, Slice, by_groups, by_label, by_length, recall_by_class
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace

EARLY = OperatingPoint({"name": "certainty"}, (0.5,))


def of_two_exits() -> Trace:
    """Rows 0, 1 and 3 leave at layer 1 and answer 1, 0, 0 there; the full model says 1, 1, 0, 1."""
    answers = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]])
    certainty = torch.tensor([[0.9, 0.9, 0.1, 0.9], [0.0] * 4])
    logits = torch.nn.functional.one_hot(answers, 2).float()
    return Trace(logits, torch.tensor([1, 1, 0, 1]), certainty, [1, 4], tokens=torch.tensor([3, 9, 5, 9]))


def test_slices_by_label_by_hand() -> None:
    found = by_label(of_two_exits(), EARLY, label_names=["no", "yes"])
    assert tuple(replace(each, loss_interval=None) for each in found) == (
        Slice("no", 1, 1.0, 1.0, 4.0, 1.0),
        Slice("yes", 3, pytest.approx(1 / 3), 1.0, 1.0, pytest.approx(1 / 3)),
    )
    assert [each.name for each in by_label(of_two_exits(), EARLY)] == ["0", "1"]


def test_a_label_that_is_not_there_has_no_slice() -> None:
    trace = of_two_exits().take(torch.tensor([0, 1, 3]))
    assert [each.name for each in by_label(trace, EARLY)] == ["1"]


def test_a_row_of_several_labels_is_in_the_slice_of_each() -> None:
    logits = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]] * 2)
    trace = Trace(logits, torch.tensor([[1, 1], [0, 1], [0, 0]]), torch.ones(2, 3), problem_type=MULTI_LABEL)
    assert [(each.rows, each.score) for each in by_label(trace, EARLY)] == [(1, 1.0), (2, 0.5)]


def test_recall_by_class_by_hand_with_the_worst_loss_first() -> None:
    found = recall_by_class(of_two_exits(), EARLY, ["no", "yes"])
    assert [(each.name, each.rows, each.score, each.full_score, each.mean_exit) for each in found] == [
        ("yes", 3, pytest.approx(1 / 3), 1.0, 1.0),
        ("no", 1, 1.0, 1.0, 4.0),
    ]
    assert found[1].loss_interval == pytest.approx((-0.95, 0.95))
    never = OperatingPoint({"name": "certainty"}, (math.inf,))
    assert {each.loss_interval for each in recall_by_class(of_two_exits(), never)} == {(0.0, 0.0)}
    with pytest.raises(NotApplicable, match="no recall"):
        recall_by_class(random_trace(REGRESSION), EARLY_OF_SIX)
    with pytest.raises(InvalidInput, match="needs labels"):
        recall_by_class(Trace(random_trace(SINGLE_LABEL).logits), EARLY_OF_SIX)


def test_recall_of_several_labels_is_sklearns_and_heeds_label_thresholds() -> None:
    trace = random_trace(MULTI_LABEL, samples=80)
    for thresholds in (None, (0.2, 0.5, 0.9)):
        point = replace(EARLY_OF_SIX, policy={"name": "margin"}, label_thresholds=thresholds)
        logits = replay(trace, "margin", point.thresholds).logits
        answers = logits.sigmoid() > torch.tensor(thresholds or (0.5,) * 3)
        expected = recall_score(trace.labels, answers, average=None)
        found = {each.name: each.score for each in recall_by_class(trace, point, ["a", "b", "c"])}
        assert [found[name] for name in "abc"] == pytest.approx(expected.tolist())


def test_slices_by_length_keep_equal_lengths_together() -> None:
    found = by_length(of_two_exits(), EARLY, buckets=2)
    assert [(each.name, each.rows, each.mean_exit) for each in found] == [("3-5 tokens", 2, 2.5), ("9 tokens", 2, 1.0)]
    trace = random_trace(SINGLE_LABEL, samples=400)
    lengths = torch.randint(3, 90, (400,), generator=torch.Generator().manual_seed(0))
    trace = Trace(trace.logits, trace.labels, tokens=lengths)
    found = by_length(trace, OperatingPoint({"name": "entropy"}, (0.5,) * 5))
    assert sum(each.rows for each in found) == 400
    assert all(80 <= each.rows <= 120 for each in found)
    assert len(found) == 4
    assert [each.rows for each in by_length(Trace(trace.logits, tokens=[7] * 400), EARLY_OF_SIX)] == [400]


EARLY_OF_SIX = OperatingPoint({"name": "entropy"}, (0.5,) * 5)


def test_slices_by_group_are_what_is_measured_on_its_rows() -> None:
    trace = random_trace(SINGLE_LABEL)
    names = [f"site {number % 3}" for number in range(50)]
    found = by_groups(trace, EARLY_OF_SIX, names, "macro-f1")
    assert [each.name for each in found] == ["site 0", "site 1", "site 2"]
    for number, each in enumerate(found):
        told = measure(trace.take(torch.arange(number, 50, 3)), {"name": "entropy"}, 0.5, "macro-f1")
        seen = (told.rows, told.score, told.full_score, told.mean_exit, told.agreement)
        assert (each.rows, each.score, each.full_score, each.mean_exit, each.agreement) == seen


def test_without_labels_a_slice_has_agreement_alone() -> None:
    (found,) = by_groups(Trace(random_trace(SINGLE_LABEL).logits), EARLY_OF_SIX, ["all"] * 50)
    assert (found.score, found.full_score) == (None, None)
    assert 0 < found.agreement < 1


def test_what_cannot_be_sliced_is_refused() -> None:
    trace = random_trace(SINGLE_LABEL, samples=MAX_SLICES + 1)
    never = OperatingPoint({"name": "entropy"}, (math.inf,) * 5)
    with pytest.raises(InvalidInput, match="201 rows take 201 names of groups, got 1"):
        by_groups(trace, never, ["all"])
    with pytest.raises(InvalidInput, match="201 groups are too many"):
        by_groups(trace, never, [str(number) for number in range(MAX_SLICES + 1)])
    with pytest.raises(InvalidInput, match="no token counts"):
        by_length(trace, never)
    with pytest.raises(InvalidInput, match="needs labels"):
        by_label(Trace(trace.logits), never)
    with pytest.raises(NotApplicable, match="values, not groups"):
        by_label(random_trace(REGRESSION), never)
