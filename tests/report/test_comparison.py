import json

from offramp.evaluation.compare import compare
from offramp.evaluation.curves import area, score_at
from offramp.evaluation.slices import Slice
from offramp.report.comparison import comparison_data, comparison_text, slices_data, slices_text
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from support.traces import random_trace


def test_a_comparison_as_data_has_every_point_and_the_best_policy_first() -> None:
    found = compare(random_trace(SINGLE_LABEL, samples=200))
    told = json.loads(json.dumps(comparison_data(found), allow_nan=False))
    assert (told["metric"], told["rows"], told["area_from"], told["area_to"]) == ("accuracy", 100, 2, 6)
    areas = [line["area"] for line in told["policies"].values()]
    assert areas == sorted(areas, reverse=True)
    assert told["policies"]["pcee"]["policy"] == {"name": "pcee", "measure": "entropy", "patience": 2}
    margin, seen = told["policies"]["margin"], found.bands["margin"]
    assert margin["area"] == area(seen, 2, 6)
    assert margin["points"]["thresholds"] == ["never", *seen.thresholds[1:].tolist()]
    assert margin["points"]["low"] == seen.low.tolist()
    half = margin["budgets"][2]
    assert (half["share"], half["mean_exit"]) == (0.5, 3)
    for name, values in (("score", seen.scores), ("low", seen.low), ("high", seen.high)):
        assert half[name] == score_at(seen.mean_exits, values, 3)
    assert set(told["oracle"]["points"]) == {"thresholds", "mean_exits", "scores"}


def test_a_comparison_as_text_says_where_a_policy_does_not_reach() -> None:
    found = compare(random_trace(SINGLE_LABEL, samples=200))
    about, head, _, *lines = comparison_text(found).splitlines()
    assert about.startswith("accuracy of every policy, on 100 rows")
    assert head.split("  ")[0] == "policy"
    assert [line.split("  ")[0] for line in lines] == [*comparison_data(found)["policies"], "oracle"]
    (pcee,) = (line.split() for line in lines if line.startswith("pcee"))
    assert pcee[1] == "-"  # a quarter of 6 layers is 1.5, and it compares two exits
    at_half = score_at(found.bands["pcee"].mean_exits, found.bands["pcee"].scores, 3)
    assert pcee[4] == f"{at_half:.4f}"


def test_a_regression_has_no_oracle_and_two_exits_may_leave_no_area() -> None:
    found = compare(random_trace(REGRESSION, outputs=1, depth=2))
    assert "oracle" not in comparison_text(found)
    told = comparison_data(found)
    assert told["oracle"] is None
    assert {line["area"] for line in told["policies"].values()} == {None}  # stability never leaves early


def test_slices_are_told_with_what_is_lost_and_without_empty_columns() -> None:
    slices = (Slice("a", 3, 0.5, 0.75, 1.5, 0.6), Slice("b", 12, 1.0, 1.0, 2.0, 1.0))
    first = slices_text(slices, "site", "accuracy").splitlines()
    assert first[0].split() == ["site", "rows", "accuracy", "full", "model", "lost", "mean", "exit", "agreement"]
    assert first[2].split() == ["a", "3", "0.5000", "0.7500", "0.2500", "1.50", "0.6000"]
    bare = slices_text((Slice("a", 3, None, None, 1.5, 0.6),), "site", "accuracy").splitlines()
    assert bare[0].split() == ["site", "rows", "mean", "exit", "agreement"]
    assert slices_data(slices[:1], "site", "default") == {
        "by": "site",
        "point": "default",
        "slices": [
            {"name": "a", "rows": 3, "score": 0.5, "full_score": 0.75, "mean_exit": 1.5, "agreement": 0.6},
        ],
    }
