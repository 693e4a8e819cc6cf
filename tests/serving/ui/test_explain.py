"""What each point does with a row's logits: against `offramp.replay`, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import offramp
from offramp.policies.registry import POLICIES, load_policy, policy_to_dict
from offramp.serving.ui.explain import TOP, Explainable, ExplainedPoint
from offramp.serving.ui.words import reason
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

LAYERS = [0, 1, 2, 4]
NEVER, ALWAYS = math.inf, -math.inf


def logits_of(rows: int, outputs: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(len(LAYERS), rows, outputs, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor([1.0, 2, 3, 4])[:, None, None]


def explained(
    row: torch.Tensor, points: Mapping[str, OperatingPoint | None], problem_type: str = SINGLE_LABEL
) -> list[ExplainedPoint]:
    labels = [f"c{number}" for number in range(row.shape[-1])]
    return Explainable(problem_type, labels, LAYERS, points).explain(LAYERS, row.numpy())


OTHERS = {"consistency", "gain", "certainty", "stability"}  # that need numbers from a trace, a gate, or values
POLICY = {
    **{name: {"name": name} for name in sorted(set(POLICIES) - OTHERS)},
    "scaled": {"name": "margin", "temperatures": [2.0, 1.5, 1.0, 0.5]},
    "mean": {"name": "max-prob", "ensemble": "all"},
}


@pytest.mark.parametrize("name", POLICY)
def test_exits_answers_and_scores_are_those_of_replay(name: str) -> None:
    logits = logits_of(40, 3)
    trace = offramp.Trace(logits, layers=torch.tensor(LAYERS))
    policy = load_policy(POLICY[name])
    score = offramp.scores(policy, trace)
    finite = score[:-1][score[:-1].isfinite()]
    limits = finite.unique()[[len(finite.unique()) // 3]].item() if name != "fixed" else 1.0
    point = OperatingPoint(policy_to_dict(policy), (limits - 1e-4, limits + 1e-4, limits))
    replayed = offramp.replay(trace, policy, point.thresholds)
    seen = set()
    for row in range(len(trace)):
        (got,) = explained(logits[:, row], {"quick": point})
        assert got.exit_layer == replayed.exit_layers[row]
        assert got.answer == [f"c{replayed.logits[row].argmax()}"]
        scores = [-math.inf if exit.score is None else exit.score for exit in got.exits]
        assert scores == score[:, row].tolist()
        first = next(exit for exit in got.exits if exit.leaves)
        assert first.layer == got.exit_layer
        at = LAYERS.index(got.exit_layer)
        label, value = first.outputs[0]
        assert label == got.answer[0]
        assert value == pytest.approx(replayed.logits[row].softmax(0).max().item(), abs=1e-6)
        seen.add(at)
    assert len(seen) > 1 or name == "fixed"


def test_exits_that_a_point_does_not_read_are_left_out() -> None:
    row = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 9.0], [3.0, 0.0]])
    point = OperatingPoint({"name": "margin"}, (0.9,), exit_layers=(1, 4))
    full, quick = explained(row, {"full": None, "quick": point})
    assert [exit.layer for exit in quick.exits] == [1, 4]
    assert (quick.exit_layer, quick.answer) == (4, ["c0"])  # margin 0.46 at layer 1; layer 2 is not asked
    assert quick.exits[0].reason == "margin 0.46 is below 0.9: goes on"
    assert quick.exits[1].reason == "the last exit: leaves"
    assert [exit.layer for exit in full.exits] == LAYERS
    assert [exit.reason for exit in full.exits[:3]] == ["full depth: goes on"] * 3
    assert (full.exit_layer, full.answer, full.policy) == (4, ["c0"], "")


def test_many_classes_are_the_top_few_and_a_number_of_others() -> None:
    row = logits_of(1, 150)[:, 0]
    (full,) = explained(row, {"full": None})
    for exit, own in zip(full.exits, row, strict=True):
        order = own.softmax(0).sort(descending=True, stable=True)
        assert [label for label, _ in exit.outputs] == [f"c{index}" for index in order.indices[:TOP].tolist()]
        assert [value for _, value in exit.outputs] == pytest.approx(order.values[:TOP].tolist(), abs=1e-6)
        assert exit.others == 145


def test_several_labels_are_chosen_above_their_thresholds() -> None:
    row = torch.tensor([[2.0, -2.0, 0.4]] * 4)  # 0.88, 0.12, 0.60
    point = OperatingPoint({"name": "max-prob"}, (0.5, 0.5, 0.5), label_thresholds=(0.5, 0.1, 0.7))
    full, own = explained(row, {"full": None, "own": point}, MULTI_LABEL)
    assert full.answer == ["c0", "c2"]
    assert own.answer == ["c0", "c1"]
    assert [label for label, _ in own.exits[0].outputs] == ["c0", "c2", "c1"]
    assert own.exits[0].outputs[0][1] == pytest.approx(0.880797, abs=1e-6)


def test_a_regression_has_values() -> None:
    row = torch.tensor([[1.0], [1.5], [1.6], [2.25]])
    full, stable = explained(
        row, {"full": None, "stable": OperatingPoint({"name": "stability"}, (NEVER, NEVER, ALWAYS))}, REGRESSION
    )
    assert (full.answer, stable.answer, stable.exit_layer) == (["2.25"], ["1.6"], 2)
    assert stable.exits[2].outputs == [("c0", pytest.approx(1.6))]
    assert stable.exits[2].reason == "every row leaves here"
    assert (stable.exits[0].threshold, stable.exits[2].threshold) == (None, None)


def test_a_point_that_reads_a_gate_says_that_it_cannot_be_replayed() -> None:
    row = torch.zeros(4, 2)
    gate, full = explained(row, {"gate": OperatingPoint({"name": "certainty"}, (0.5, 0.5, 0.5)), "full": None})
    assert "certainty needs a learned gate" in gate.error
    assert (gate.exits, full.error) == ([], "")


@pytest.mark.parametrize(
    ("score", "limit", "leaves", "words"),
    [
        (0.712, 0.86, False, "margin 0.71 is below 0.86: goes on"),
        (0.86, 0.86, True, "margin 0.86 reaches 0.86: leaves"),
        (0.85951, 0.86, False, "margin 0.8595 is below 0.86: goes on"),
        (0.9983, 0.86, True, "margin 0.998 reaches 0.86: leaves"),
        (0.83, 0.99963, False, "margin 0.83 is below 0.9996: goes on"),
        (3.0, 2.5, True, "margin 3 reaches 2.5: leaves"),
        (-math.inf, 2.5, False, "margin has no score yet: goes on"),
        (0.3, NEVER, False, "margin 0.3, but no row leaves here: goes on"),
        (0.3, ALWAYS, True, "every row leaves here"),
    ],
)
def test_why_a_row_leaves_or_goes_on(score: float, limit: float, leaves: bool, words: str) -> None:
    assert reason("margin", score, limit, leaves) == words


@given(st.floats(0, 1), st.floats(0, 1))
def test_numbers_that_differ_read_as_different_numbers(score: float, limit: float) -> None:
    words = reason("margin", score, limit, score >= limit)
    left, right = (float(part.rstrip(":")) for part in words.split() if part.rstrip(":")[0].isdigit())
    if abs(score - limit) > 1e-8:
        assert (left > right, left < right) == (score > limit, score < limit)
