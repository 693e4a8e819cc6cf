import pytest
import torch

from offramp.errors import InvalidInput
from offramp.evaluation.curves import area, area_above, score_at
from offramp.evaluation.sweep import Curve, curve
from offramp.policies.confidence import Entropy
from offramp.policies.patience import Patience
from offramp.types.problem_types import SINGLE_LABEL
from support.traces import random_trace


def line(*points: tuple[float, float]) -> Curve:
    """From full depth to the first exit."""
    mean_exits, scores = torch.tensor(points, dtype=torch.float64).T
    return Curve(torch.arange(len(points), 0, -1), mean_exits, scores)


def test_a_curve_is_read_between_its_points_and_nowhere_else() -> None:
    seen = line((4, 0.9), (2, 0.5))
    assert score_at(seen.mean_exits, seen.scores, 3) == pytest.approx(0.7)
    assert [score_at(seen.mean_exits, seen.scores, at) for at in (1.9, 2, 4, 4.1)] == [None, 0.5, 0.9, None]


def test_the_area_is_the_mean_score_over_a_stretch() -> None:
    seen = line((4, 0.9), (3, 0.9), (1, 0.5))
    assert area(seen) == pytest.approx((2 * 0.7 + 1 * 0.9) / 3)
    assert area(seen, 2, 4) == pytest.approx((0.8 + 0.9) / 2)
    assert area(seen, 2.5, 3.5) == pytest.approx(0.5 * (0.85 + 0.9))
    for low, high in ((0.5, 4), (1, 5), (3, 3)):
        with pytest.raises(InvalidInput, match="the curve reaches from 1 to 4"):
            area(seen, low, high)


def test_the_area_of_one_curve_above_the_other_stops_where_they_cross() -> None:
    rising, level = line((4, 0.8), (2, 0.4)), line((4, 0.5), (3, 0.5), (1, 0.5))
    assert area_above(rising, level) == pytest.approx(1.5 * 0.3 / 2)  # they cross at 2.5
    assert area_above(level, rising) == pytest.approx(0.5 * 0.1 / 2)
    assert area_above(rising, rising) == 0
    with pytest.raises(InvalidInput, match="no mean exits"):
        area_above(rising, line((2, 0.5), (1, 0.5)))


def test_what_is_above_less_what_is_below_is_the_difference_of_the_areas() -> None:
    trace = random_trace(SINGLE_LABEL)
    one, other = curve(trace, Entropy()), curve(trace, Patience())
    apart = area(one, 1, 6) - area(other, 1, 6)
    above, below = area_above(one, other), area_above(other, one)
    assert above > 0
    assert below > 0
    assert above - below == pytest.approx(5 * apart)
