"""Thresholds for what is asked and what they do elsewhere: by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from offramp.errors import InvalidInput
from offramp.policies.fitting import halves
from offramp.studies.selection import (
    Candidate,
    EvaluationSplit,
    alternate_halves,
    candidates,
    evaluate,
    quality_loss,
    select,
)
from offramp.studies.spec import LayersSaved, MacsReduced, ScoreKept, SpeedupBetween
from offramp.types.trace import Trace

MAX_PROB = {"name": "max-prob"}


def sure(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """Logits (L, N, 2) of exits that give class 1 these probabilities."""
    p = torch.tensor(probabilities)  # (L, N)
    return torch.stack(((1 - p).log(), p.log()), dim=-1)


# Four rows, all of class 1, three exits: row 0 is right and sure at once, the others are wrong at first.
TRACE = Trace(sure((0.95, 0.2, 0.4, 0.45), (0.95, 0.3, 0.8, 0.6), (0.95, 0.9, 0.9, 0.9)), torch.ones(4).long())
PART = EvaluationSplit(TRACE, 3)
PRICED = EvaluationSplit(
    TRACE, 3, macs=torch.tensor([[10.0], [20.0], [30.0]]).expand(3, 4), plain_macs=torch.full((4,), 24.0)
)


def test_every_threshold_has_its_score_and_its_savings() -> None:
    # largest probabilities: .95 .8 .6 .55 at exit 1; .95 .7 .8 .6 at exit 2. From the strictest threshold down:
    # never 12 layers, all right; .95: row 0 leaves at 1 (10 layers); .8: row 1 leaves at 1, wrong, row 2 at 2 (7);
    # .6: row 2 leaves at 1, wrong, row 3 at 2 (5); .55: row 3 leaves at 1, wrong (4)
    options = candidates(PART, [MAX_PROB])
    assert [option.figures["score"] for option in options] == [1, 1, 0.75, 0.5, 0.25]
    assert [option.figures["mean_exit"] for option in options] == [3, 10 / 4, 7 / 4, 5 / 4, 1]
    assert [option.figures["saving"] for option in options] == pytest.approx([0, 1 / 6, 5 / 12, 7 / 12, 2 / 3])
    assert [option.figures["speedup"] for option in options] == pytest.approx([1, 1.2, 12 / 7, 2.4, 3])
    assert options[0].threshold == math.inf


def test_the_score_is_the_mean_over_metrics() -> None:
    # one of four right: accuracy 1/4; precision 1, recall 1/4: F1 = 2/5
    both = EvaluationSplit(TRACE, 3, ("accuracy", "f1"))
    assert candidates(both, [MAX_PROB])[-1].figures["score"] == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert both.exit_scores()[0] == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_what_is_read_is_what_was_counted() -> None:
    part = replace(PRICED, metrics=("accuracy", "f1"))
    for option in candidates(part, [MAX_PROB, {"name": "patience"}]):
        figures = evaluate(part, option, 0.5)
        assert figures.pop("relative") == pytest.approx(option.figures["score"] / 0.5)
        assert figures == pytest.approx(option.figures)


def test_macs_are_held_against_the_plain_model() -> None:
    # everybody at the first exit: 4 * 24 / (4 * 10); at the last: 4 * 24 / (4 * 30)
    options = candidates(PRICED, [MAX_PROB])
    assert options[-1].figures["macs_ratio"] == pytest.approx(2.4)
    assert options[0].figures["macs_ratio"] == pytest.approx(0.8)


def mean_exit(budget: Any, part: EvaluationSplit = PART, plain: float = 1.0) -> float:
    """Mean exit of the threshold selected."""
    option = select(budget, candidates(part, [MAX_PROB]), plain)
    return math.nan if option is None else option.figures["mean_exit"]


def test_the_threshold_for_each_ask() -> None:
    assert mean_exit(LayersSaved(0.25)) == 10 / 4  # 1/6 is nearer than 5/12
    assert mean_exit(LayersSaved(0.75)) == 1
    assert mean_exit(SpeedupBetween(1.3, 3)) == 7 / 4  # the best score of .75, .5, .25
    assert mean_exit(ScoreKept(0.75)) == 7 / 4
    assert mean_exit(ScoreKept(0.75), plain=1.2) == 10 / 4  # .9 of the score is wanted
    assert mean_exit(MacsReduced(2.2), PRICED) == 1


def test_what_cannot_be_had_is_none() -> None:
    assert math.isnan(mean_exit(SpeedupBetween(3.5, 4)))
    assert math.isnan(mean_exit(LayersSaved(0.9)))  # 2/3 is the most
    assert math.isnan(mean_exit(MacsReduced(5), PRICED))
    assert math.isnan(mean_exit(ScoreKept(1.0), plain=1.1))


def test_what_keeps_the_score_by_luck_behind_a_failure_does_not_count() -> None:
    figures = [{"score": score, "saving": saving} for score, saving in ((1, 0), (0.5, 0.2), (1, 0.4))]
    options = [Candidate(MAX_PROB, -index, row) for index, row in enumerate(figures)]
    option = select(ScoreKept(0.9), options, 1.0)
    assert option is not None
    assert option.figures["saving"] == 0


def test_of_policies_that_come_as_near_the_better_one_is_picked() -> None:
    figures = {"a": (0.50, 0.7), "b": (0.51, 0.8), "c": (0.6, 0.9)}
    options = [
        Candidate({"name": name}, 0, {"saving": saving, "score": score}) for name, (saving, score) in figures.items()
    ]
    option = select(LayersSaved(0.5), options, 1.0)
    assert option is not None
    assert option.policy["name"] == "b"


def test_patience_0_is_no_option() -> None:
    assert [option.threshold for option in candidates(PART, [{"name": "patience"}])] == [math.inf, 0.5]


def test_what_is_lost_was_right_at_the_last_exit() -> None:
    assert quality_loss(TRACE, candidates(PART, [MAX_PROB])[2]) == 0.25  # row 1
    assert quality_loss(TRACE, candidates(PART, [MAX_PROB])[0]) == 0


def test_alternate_halves_are_all_rows_once_and_the_second_has_the_odd_one() -> None:
    numbered = Trace(torch.arange(7.0).view(1, 7, 1).expand(2, 7, 1), torch.zeros(7))
    selection, test = alternate_halves(numbered)
    assert (len(selection), len(test)) == (3, 4)
    assert sorted([*selection.logits[0, :, 0].tolist(), *test.logits[0, :, 0].tolist()]) == list(range(7))
    assert [len(half) for half in halves(numbered)] == [4, 3]
    with pytest.raises(InvalidInput, match="give a test set"):
        alternate_halves(TRACE.take(torch.tensor([0])))
