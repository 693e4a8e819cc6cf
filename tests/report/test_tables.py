import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offramp.bench.timer import median, time_interleaved
from offramp.calibration.calibrate import calibrate
from offramp.evaluation.measure import measure_point
from offramp.report.plots import draw_curves, usual_curves
from offramp.report.tables import interval_text, point_text, scores_data, scores_text, speedup_text, table
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace


def test_a_table_has_its_first_column_on_the_left_and_the_others_on_the_right() -> None:
    assert table(["name", "x"], [["a", "10"], ["longer", "9"]]) == ("name     x\n------  --\na       10\nlonger   9")


def test_scores_are_the_same_as_text_and_as_data() -> None:
    trace = Trace(torch.tensor([[[2.0, 0], [0, 1]], [[2.0, 0], [3, 0]]]), torch.tensor([0, 1]))
    points = {"never": OperatingPoint({"name": "entropy"}, (float("inf"),))}
    data = scores_data(trace, points)
    assert data["layerwise"] == [1.0, 0.5]
    assert data["exit_summary"] == {"average": 0.75, "best": 1.0, "deviation": 0.25}
    assert data["points"]["never"]["measured"]["leaving"] == {1: 0, 2: 2}
    assert data["points"]["never"]["measured"]["score"] == 0.5
    assert data["points"]["never"]["measured"]["speedup"] == 1
    text = scores_text(trace, points)
    assert "accuracy of every exit, on 2 rows; average 0.7500, best 1.0000, deviation 0.2500\n" in text
    assert " ".join(text.splitlines()[-1].split()) == "never 0.5000 2.00 of 2 0% 0.000 to 0.000"
    assert data["points"]["never"]["measured"]["loss_interval"] == (0.0, 0.0)
    assert data["points"]["never"]["measured"]["agreement_interval"] == (1.0, 1.0)  # it is the full model
    first = scores_data(trace, {"first": OperatingPoint({"name": "fixed"}, (1.0,))})["points"]["first"]["measured"]
    assert first["agreement_interval"] == pytest.approx((0.0126, 0.9874), abs=1e-4)


def lexical_trace() -> Trace:
    """Two classes and four rows of class 0; row 0 is sure before layer 1, row 1 after it, row 2 after layer 3."""
    sure, unsure, wrong = [4.0, 0.0], [0.1, 0.0], [0.0, 0.1]
    logits = [[sure, wrong, wrong, wrong], [sure, sure, wrong, wrong], [sure, sure, sure, unsure]]
    return Trace(torch.tensor(logits), torch.zeros(4, dtype=torch.long), layers=torch.tensor([0, 1, 3]))


def test_the_lexical_exit_is_named_and_its_rows_are_counted() -> None:
    points = {
        "all": OperatingPoint({"name": "margin"}, (0.5, 0.5), exit_layers=(0, 1, 3)),
        "ends": OperatingPoint({"name": "margin"}, (0.5,), exit_layers=(0, 3)),
        "before": OperatingPoint({"name": "margin"}, (0.5,)),  # of the model without the lexical exit
    }
    lines = [" ".join(line.split()) for line in scores_text(lexical_trace(), points).splitlines()]
    summary = "after a layer: average 0.7500, best 1.0000, deviation 0.2500"  # of the exits that papers have
    assert lines[0] == f"accuracy of every exit, on 4 rows; {summary}"
    assert lines[1:4:2] == ["before layer 1 (lexical) layer 1 layer 3", "0.2500 0.5000 1.0000"]
    assert lines[5].startswith("operating point accuracy mean exit layers saved before layer 1 lost, 95%")
    assert [line[: line.index("%", line.index("%") + 1) + 1] for line in lines[7:10]] == [
        "all 1.0000 1.75 of 3 42% 25%",  # layers 0, 1, 3, 3
        "ends 1.0000 2.25 of 3 25% 25%",
        "before 1.0000 2.00 of 3 33% 0%",
    ]
    assert lines[10:] == [
        "ends reads the exits at layers 0 (lexical), 3 and skips 1",
        "before reads the exits at layers 1, 3 and skips 0 (lexical)",
    ]
    data = scores_data(lexical_trace(), points)
    assert data["layers"] == [0, 1, 3]
    assert data["points"]["ends"]["measured"]["leaving"] == {0: 1, 1: 0, 3: 3}
    assert "before layer 1" not in scores_text(lexical_trace().select([1, 3]), {"before": points["before"]})


def test_a_speed_up_has_the_unit_of_its_costs() -> None:
    macs = torch.tensor([[0.0] * 4, [10.0] * 4, [30.0] * 4])
    point = OperatingPoint({"name": "margin"}, (0.5, 0.5), exit_layers=(0, 1, 3))
    text = scores_text(replace(lexical_trace(), labels=None, macs=macs), {"all": point})
    assert " ".join(text.splitlines()[0].split()).startswith(
        "operating point agreement mean exit layers saved speed-up"
    )
    words = " ".join(text.splitlines()[2].split())
    assert words.startswith("all 1.0000 1.75 of 3 42% 1.71 25%")  # 120 over 0 + 10 + 30 + 30
    assert text.splitlines()[3] == "speed-up: multiply-accumulates at full depth over those at the point"
    none = scores_data(replace(lexical_trace(), macs=macs), {"all": replace(point, thresholds=(-math.inf,) * 2)})
    assert none["points"]["all"]["measured"]["speedup"] is None  # nothing was counted before layer 1
    assert none["points"]["all"]["measured"]["speedup_of"] == "multiply-accumulates"
    assert [speedup_text(value) for value in (2.949, 414_726.3, math.inf)] == ["2.95", "414,726", "-"]
    measured = measure_point(replace(lexical_trace(), macs=macs), point)
    assert "mean exit 1.75 of 3, speed-up 1.71 in multiply-accumulates" in point_text(replace(point, measured=measured))


def test_without_labels_a_point_has_the_interval_of_its_agreement() -> None:
    trace = Trace(torch.tensor([[[2.0, 0], [0, 1]], [[2.0, 0], [3, 0]]]))
    text = scores_text(trace, {"first": OperatingPoint({"name": "fixed"}, (1.0,))})
    assert " ".join(text.splitlines()[0].split()) == "operating point agreement mean exit layers saved agreement, 95%"
    assert " ".join(text.splitlines()[-1].split()) == "first 0.5000 1.00 of 2 50% 0.013 to 0.987"
    values = Trace(torch.randn(2, 3, 1))
    assert "95%" not in scores_text(values, {"first": OperatingPoint({"name": "fixed"}, (1.0,))})


def test_a_point_reads_with_its_parameters_and_never_as_a_word() -> None:
    point = OperatingPoint({"name": "pcee", "patience": 2}, (-float("inf"), 0.25, float("inf")), {"max_drop": 0.01})
    assert point_text(point) == "pcee patience=2, thresholds always, 0.25, never (max_drop 0.01)"
    named = replace(point, exit_layers=(0, 2, 3, 6))
    assert point_text(named) == (
        "pcee patience=2, thresholds layer 0: always, layer 2: 0.25, layer 3: never (max_drop 0.01)"
    )
    assert point_text(named, [0, 2, 3, 6]) == point_text(named)
    last = point_text(named, [0, 1, 2, 3, 6]).splitlines()[-1]
    assert last == "  it reads the exits at layers 0 (lexical), 2, 3, 6 and skips 1"


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, REGRESSION])
def test_the_curve_is_a_picture(problem_type: str, tmp_path: Path) -> None:
    trace = random_trace(problem_type, outputs=1 if problem_type == REGRESSION else 3)
    policy = "stability" if problem_type == REGRESSION else "entropy"
    points = {"half": calibrate(trace, policy, Target(speedup=1.2))}
    draw_curves(trace, usual_curves(trace), points, tmp_path / "curve.png", "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_run_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, int]] = []
    taken = time_interleaved({name: lambda number, name=name: calls.append((name, number)) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2}
    assert median([3.0, 1.0, 2.0, 10.0]) == 2.5


def test_an_interval_has_no_minus_before_a_zero() -> None:
    assert interval_text((-0.0002, 0.01)) == "0.000 to 0.010"
    assert interval_text((-0.0102, -0.0001)) == "-0.010 to 0.000"
    assert interval_text(None) == ""
