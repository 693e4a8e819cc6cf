import json

from offramp.evaluation.compare import compare
from offramp.evaluation.curves import area, area_above, score_at
from offramp.evaluation.slices import Slice
from offramp.report.comparison import (
    MAX_CLASSES,
    comparison_data,
    comparison_text,
    recalls_text,
    slices_data,
    slices_text,
)
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from support.traces import random_trace


def test_a_comparison_as_data_has_every_point_and_the_best_policy_first() -> None:
    comparison = compare(random_trace(SINGLE_LABEL, samples=200))
    data = json.loads(json.dumps(comparison_data(comparison), allow_nan=False))
    assert (data["metric"], data["rows"], data["area_from"], data["area_to"]) == ("accuracy", 100, 2, 6)
    areas = [line["area"] for line in data["policies"].values()]
    assert areas == sorted(areas, reverse=True)
    assert data["policies"]["pcee"]["policy"] == {"name": "pcee", "measure": "entropy", "patience": 2}
    margin, band = data["policies"]["margin"], comparison.bands["margin"]
    assert margin["area"] == area(band, 2, 6)
    assert margin["area_above_fixed"] == area_above(band, comparison.bands["fixed"]) > 0
    assert margin["points"]["thresholds"] == ["never", *band.thresholds[1:].tolist()]
    assert margin["points"]["low"] == band.low.tolist()
    half = margin["budgets"][2]
    assert (half["share"], half["mean_exit"]) == (0.5, 3)
    for name, values in (("score", band.scores), ("low", band.low), ("high", band.high)):
        assert half[name] == score_at(band.mean_exits, values, 3)
    assert set(data["oracle"]["points"]) == {"thresholds", "mean_exits", "scores"}


def test_a_budget_that_a_policy_does_not_reach_is_a_dash_in_the_text() -> None:
    comparison = compare(random_trace(SINGLE_LABEL, samples=200))
    title, head, _, *lines = comparison_text(comparison).splitlines()
    assert title.startswith("accuracy of every policy, on 100 rows")
    assert head.split("  ")[0] == "policy"
    assert [line.split("  ")[0] for line in lines] == [*comparison_data(comparison)["policies"], "oracle"]
    (pcee,) = (line.split() for line in lines if line.startswith("pcee"))
    assert pcee[1] == "-"  # a quarter of 6 layers is 1.5, and it compares two exits
    at_half = score_at(comparison.bands["pcee"].mean_exits, comparison.bands["pcee"].scores, 3)
    assert pcee[4] == f"{at_half:.4f}"


def test_a_regression_has_no_oracle_and_two_exits_may_leave_no_area() -> None:
    comparison = compare(random_trace(REGRESSION, outputs=1, depth=2))
    assert "oracle" not in comparison_text(comparison)
    data = comparison_data(comparison)
    assert data["oracle"] is None
    assert {line["area"] for line in data["policies"].values()} == {None}  # stability never leaves early


def test_recalls_show_the_classes_that_lose_most() -> None:
    many = tuple(Slice(f"class {number}", 3, 0.5, 0.75, 1.5, 0.6) for number in range(MAX_CLASSES + 1))
    title, *lines = recalls_text("fast", many).splitlines()
    assert title == "recall by class at 'fast', worst loss first, the 12 of 13 that lose most"
    assert " ".join(lines[0].split()) == "class rows recall full model lost mean exit agreement"
    assert len(lines) == 2 + MAX_CLASSES
    assert recalls_text("fast", many[:2]).splitlines()[0] == "recall by class at 'fast', worst loss first"


def test_slices_have_columns_for_the_loss_and_for_the_lexical_exit_and_no_empty_columns() -> None:
    slices = (Slice("a", 3, 0.5, 0.75, 1.5, 0.6, (-0.1, 0.6)), Slice("b", 12, 1.0, 1.0, 2.0, 1.0))
    first = slices_text(slices, "site", "accuracy").splitlines()
    assert " ".join(first[0].split()) == "site rows accuracy full model lost lost, 95% mean exit agreement"
    assert " ".join(first[2].split()) == "a 3 0.5000 0.7500 0.2500 -0.100 to 0.600 1.50 0.6000"
    lexical = slices_text((Slice("a", 3, 0.5, 0.75, 1.5, 0.6, None, 2 / 3), slices[1]), "site", "accuracy").splitlines()
    assert " ".join(lexical[0].split()) == "site rows accuracy full model lost mean exit before layer 1 agreement"
    assert " ".join(lexical[2].split()) == "a 3 0.5000 0.7500 0.2500 1.50 67% 0.6000"
    bare = slices_text((Slice("a", 3, None, None, 1.5, 0.6),), "site", "accuracy").splitlines()
    assert bare[0].split() == ["site", "rows", "mean", "exit", "agreement"]
    assert slices_data(slices[:1], "site", "default") == {
        "by": "site",
        "point": "default",
        "slices": [
            {
                **{"name": "a", "rows": 3, "score": 0.5, "full_score": 0.75, "mean_exit": 1.5, "agreement": 0.6},
                "loss_interval": (-0.1, 0.6),
                "lexical_share": None,
            },
        ],
    }
