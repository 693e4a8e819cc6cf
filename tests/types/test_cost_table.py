"""Cost tables, by hand: exit k takes k^2 ms."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.calibration.calibrate import calibrate
from offramp.errors import CannotReach, InvalidInput
from offramp.evaluation.measure import measure, measure_point
from offramp.policies.replay import replay
from offramp.report.tables import point_text, scores_data, scores_text
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Measured, OperatingPoint, Target, read_points, write_points
from offramp.types.trace import Trace

TABLE = CostTable((1, 2, 3), (1.0, 4.0, 9.0), 0.5, "torch-float32", 8, 12.5, "a processor, 2 cores")

# As the threshold falls, one move at a time, the times of the four samples add up to
#   never 36; .9: 28 (the first leaves at exit 1); .8: 23; .6: 20; .5: 15; .3: 12; .2: 7; .1: 4
CERTAINTY = torch.tensor([[0.9, 0.6, 0.3, 0.1], [0.9, 0.8, 0.5, 0.2], [0.0] * 4])
TRACE = Trace(torch.zeros(3, 4, 2), torch.tensor([0, 0, 1, 1]), CERTAINTY, provenance={"engine": "torch-float32"})


@pytest.mark.parametrize(
    ("latency_ms", "threshold", "expected_ms"),
    [
        (9, math.inf, 9),
        (8.99, 0.85, 7),
        (5, 0.55, 5),
        (4.99, 0.4, 3.75),
        (3.75, 0.4, 3.75),
        (1.75, 0.15, 1.75),
        (1, -0.4, 1),
    ],
)
def test_latency_is_the_strictest_threshold_that_is_fast_enough(
    latency_ms: float, threshold: float, expected_ms: float
) -> None:
    point = calibrate(TRACE, "certainty", Target(latency_ms=latency_ms), cost=TABLE)
    assert point.thresholds == pytest.approx((threshold, threshold))
    assert point.measured.expected_ms == expected_ms
    assert point.target == {"latency_ms": latency_ms}
    assert TABLE.mean_ms(replay(TRACE, "certainty", threshold).exit_layers) == expected_ms


def test_what_cannot_be_reached_names_the_best() -> None:
    with pytest.raises(CannotReach, match=r"cannot answer in 0.9 ms a sample here; the best is 1$"):
        calibrate(TRACE, "certainty", Target(latency_ms=0.9), cost=TABLE)


def test_layers_between_exits_are_paid_for() -> None:
    trace = replace(TRACE, layers=torch.tensor([2, 5, 6]))
    table = replace(TABLE, layers=(2, 5, 6))
    assert calibrate(trace, "certainty", Target(latency_ms=5), cost=table).measured.expected_ms == 5
    with pytest.raises(InvalidInput, match=r"table is of exits at layers \(1, 2, 3\), these lie at \(2, 5, 6\)"):
        calibrate(trace, "certainty", Target(latency_ms=5), cost=TABLE)


def test_a_latency_needs_a_table() -> None:
    with pytest.raises(InvalidInput, match=r"cost=offramp.measure_costs\(folder, texts\)"):
        calibrate(TRACE, "certainty", Target(latency_ms=5))


# As the threshold falls, the multiply-accumulates add up to 40, 31, 27, 22, 18, 13, 12, 11; the fourth sample is short
MACS = torch.tensor([[3.0, 3, 4, 1], [8, 8, 9, 2], [12, 12, 13, 3]])
BEFORE = CostTable((0, 1, 2), (1.0, 4.0, 9.0), 3.0, "torch-float32", 8, 12.5, "a processor, 2 cores")


@pytest.mark.parametrize(
    ("speedup", "first", "macs", "cost", "threshold", "reached", "unit"),
    [
        (3, 1, None, None, -0.4, 12 / 4, "layers"),
        (3, 0, None, None, 0.25, 8 / 2, "layers"),
        (3, 1, MACS, None, 0.25, 40 / 13, "multiply-accumulates"),
        (1.5, 1, MACS, TABLE, 0.7, 36 / 23, "milliseconds"),
        (1.5, 0, None, BEFORE, 0.7, 36 / 23, "milliseconds"),
        (100, 0, None, None, -0.4, math.inf, "layers"),
        (100, 0, MACS - MACS[:1], None, -0.4, math.inf, "multiply-accumulates"),
    ],
)
def test_a_speedup_is_of_costs_where_they_are_known(
    speedup: float,
    first: int,
    macs: torch.Tensor | None,
    cost: CostTable | None,
    threshold: float,
    reached: float,
    unit: str,
) -> None:
    trace = replace(TRACE, layers=torch.arange(first, first + 3), macs=macs)
    point = calibrate(trace, "certainty", Target(speedup=speedup), cost=cost)
    assert point.thresholds == pytest.approx((threshold, threshold))
    assert (point.measured.speedup, point.measured.speedup_of) == (pytest.approx(reached), unit)
    assert Measured.from_json(point.measured.to_json()) == point.measured
    assert point.measured.saving == 1 - point.measured.mean_exit / point.measured.depth  # of layers, always


def test_a_table_of_all_exits_serves_a_point_that_reads_some() -> None:
    point = OperatingPoint({"name": "certainty"}, (0.7,), exit_layers=(1, 2))
    trace = replace(TRACE, layers=torch.arange(3), macs=MACS)
    measured = measure_point(trace, point, cost=BEFORE)  # two leave at layer 1, two at layer 2
    assert (measured.expected_ms, measured.full_ms) == (6.5, 9)
    assert (measured.macs, measured.full_macs) == ((8 + 8 + 13 + 3) / 4, 10)
    assert BEFORE.select((1, 2)) == replace(BEFORE, layers=(1, 2), ms=(4, 9))
    for layers in ((0, 1), (1, 2, 3)):
        with pytest.raises(InvalidInput, match=r"table is of exits at layers \(0, 1, 2\), these lie at"):
            BEFORE.select(layers)


PRICED = replace(BEFORE, embed_ms=1.5, batch_size=2, exit_ms=(0.5, 1.0), cut_ms=(0.25, 0.5))


def test_exits_that_are_not_read_cost_nothing() -> None:
    behind = PRICED.select((1, 2))
    assert (behind.ms, behind.exit_ms, behind.cut_ms) == ((3.5, 8.5), (1.0,), (0.5,))
    assert PRICED.select((0, 2)).ms == (1.0, 8.0)
    assert PRICED.select((2,)) == replace(PRICED, layers=(2,), ms=(7.5,), exit_ms=(), cut_ms=())


def test_a_point_is_not_charged_for_exits_that_it_does_not_read() -> None:
    """Two rows leave at layer 1, which takes 3.5 ms without the lexical exit, and two at layer 2, which takes 8.5."""
    point = OperatingPoint({"name": "certainty"}, (0.7,), exit_layers=(1, 2))
    trace = replace(TRACE, layers=torch.arange(3))
    measured = measure_point(trace, point, cost=replace(PRICED, batch_size=1))
    assert (measured.expected_ms, measured.full_ms) == (6.0, 8.5)


@pytest.mark.parametrize(
    ("embed_ms", "price", "first"), [(0.3, 2.262479421441839, 0.3), (0.0, 2.562479421441839, 1e-6)]
)
def test_exits_that_take_all_of_the_time_leave_some(embed_ms: float, price: float, first: float) -> None:
    """In floating point 2.562479421441839 - 2.262479421441839 is below 0.3."""
    prices = (0.0, price) if embed_ms else (0.3, price - 0.3)
    table = CostTable((1, 2, 3), (0.3, *(2.562479421441839,) * 2), embed_ms, "onnx-int8", 1, None, "", exit_ms=prices)
    assert table.select((3,)).ms == (first,)


def test_a_cut_costs_the_rows_that_go_on_where_a_batch_may_be_cut() -> None:
    """Of 8 rows 4 leave at layer 0, where 1/2 of the pairs are cut; of the others 1 at layer 1, where 3/8 are."""
    leaving = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    times = (4 * 1 + 4 + 3 * 9) / 8
    assert PRICED.mean_ms(leaving) == pytest.approx(times + 0.25 * 4 / 8 * 1 / 2 + 0.5 * 3 / 8 * 3 / 8)
    alone = replace(PRICED, batch_size=4, workers=4)  # a batch of each worker is one row
    assert [table.mean_ms(leaving) for table in (replace(PRICED, batch_size=1), alone)] == [times, times]
    swept = calibrate(replace(TRACE, layers=torch.arange(3)), "certainty", Target(latency_ms=6), cost=PRICED).measured
    assert swept.expected_ms <= 6 < swept.full_ms


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_latency_is_above_0(value: float) -> None:
    with pytest.raises(InvalidInput, match="latency_ms must be above 0, got"):
        Target(latency_ms=value)


def test_a_point_has_its_time_and_what_was_timed(tmp_path: Path) -> None:
    point = calibrate(TRACE, "certainty", Target(latency_ms=5), cost=TABLE)
    expected = "  5.00 ms a sample expected (torch-float32, batch size 8, 12.5 tokens, a processor, 2 cores)"
    assert point_text(point).splitlines()[-1] == expected
    assert "(engine torch-float32)" in point_text(point)
    write_points({"quick": point}, tmp_path / "points.json")
    assert read_points(tmp_path / "points.json") == {"quick": point}
    text = scores_text(TRACE, {"quick": point}, cost=TABLE)
    head, _, row, unit = text.splitlines()[-4:]
    assert row[head.index("ms a sample") :].split()[0] == "5.00"
    assert unit == "speed-up: milliseconds at full depth over those at the point"
    assert scores_data(TRACE, {"quick": point}, cost=TABLE)["points"]["quick"]["measured"]["expected_ms"] == 5


def test_without_a_table_no_time_is_printed() -> None:
    point = calibrate(TRACE, "certainty", Target(speedup=1.5))
    assert point.measured.expected_ms is None
    assert " ms" not in point_text(point) + scores_text(TRACE, {"fast": point})
    assert "timed" not in measure(TRACE, point.policy, point.thresholds).provenance


def test_points_that_were_saved_before_there_were_times_still_load(tmp_path: Path) -> None:
    old = """{"default": {"policy": {"name": "margin"}, "thresholds": [0.5, "never"], "target": {"max_drop": 0.01},
        "measured": {"metric": "accuracy", "score": 0.9, "full_score": 0.91, "agreement": 0.98, "mean_exit": 2.5,
        "depth": 3, "rows": 100, "about": {"engine": "torch-float32"}}, "certificate": null}}"""
    (tmp_path / "points.json").write_text(old)
    point = read_points(tmp_path / "points.json")["default"]
    assert point.thresholds == (0.5, math.inf)
    assert (point.measured.mean_exit, point.measured.expected_ms) == (2.5, None)
    assert (point.measured.speedup, point.measured.speedup_of) == (3 / 2.5, "layers")
    assert OperatingPoint.from_json(point.to_json()) == point


# --- the table itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [12.5, None])
def test_a_table_comes_back_as_it_was(tokens: float | None, tmp_path: Path) -> None:
    table = replace(TABLE, tokens=tokens)
    table.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json") == table
    assert ("tokens" in table.describe()) == (tokens is not None)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": []},
        {"layers": [-1, 1, 2]},
        {"layers": [0, 1, 2], "embed_ms": 3.1},
        {"layers": [1, 3, 2]},
        {"layers": [1, 2]},
        {"ms": [1, 4, 3]},
        {"ms": [1, 4, math.inf]},
        {"ms": [1, math.nan, 9]},
        {"ms": ["a", "b", "c"]},
        {"ms": [0, 4, 9], "embed_ms": 0},
        {"embed_ms": 1.5},
        {"embed_ms": -0.1},
        {"embed_ms": None},
        {"batch_size": 0},
        {"exit_ms": [0.1]},
        {"exit_ms": [0.1, -0.1]},
        {"exit_ms": [0.6, 0.1]},  # more than layer 1 takes without the embedding
        {"cut_ms": [0.1, math.inf]},
        {"unknown": 1},
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(changes: dict[str, Any], tmp_path: Path) -> None:
    TABLE.save(tmp_path / "costs.json")
    data = json.loads((tmp_path / "costs.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(data | changes))
    with pytest.raises(InvalidInput, match=r"bad\.json: not a cost table \("):
        CostTable.load(tmp_path / "bad.json")


@pytest.mark.parametrize("text", ["", "[1]", "{}", "5", "null"])
def test_nor_is_other_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InvalidInput, match="not a cost table"):
        CostTable.load(tmp_path / "bad.json")
    with pytest.raises(InvalidInput, match=r"nowhere\.json: not a cost table \("):
        CostTable.load(tmp_path / "nowhere.json")
