"""What exits take and save, by hand."""

from dataclasses import replace

import pytest
import torch

from offramp.evaluation.exit_values import ExitValue, exit_values
from offramp.report.tables import scores_data, scores_text
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import OperatingPoint
from offramp.types.trace import Trace

COST = CostTable((0, 1, 2), (1.0, 4.0, 9.0), 1.5, "torch-float32", 1, 12.5, "a processor", exit_ms=(0.5, 1.0))
CERTAINTY = torch.tensor([[0.9, 0.6, 0.3, 0.1], [0.9, 0.8, 0.5, 0.2], [0.0] * 4])
TRACE = Trace(torch.zeros(3, 4, 2), torch.tensor([0, 0, 1, 1]), CERTAINTY, torch.arange(3))
ALL = OperatingPoint({"name": "certainty"}, (0.7, 0.7), exit_layers=(0, 1, 2))
BEHIND = replace(ALL, thresholds=(0.7,), exit_layers=(1, 2))


@pytest.mark.parametrize(
    ("point", "cost", "expected"),
    [
        # one row leaves at layer 0, one at 1, two at 2: 23 ms; without 0 2 x 3.5 + 2 x 8.5, without 1 1 + 3 x 8
        (ALL, COST, (ExitValue(0, 0.5, 0.25), ExitValue(1, 1.0, 0.5))),
        # 24 ms; with the last exit alone 4 x 7.5
        (BEHIND, COST, (ExitValue(0, 0.5, None), ExitValue(1, 1.0, 1.5))),
        (ALL, replace(COST, exit_ms=None), ()),
        (ALL, COST.select((1, 2)), ()),
        (ALL, None, ()),
    ],
)
def test_an_exit_takes_its_price_and_saves_what_rows_would_take_without_it(
    point: OperatingPoint, cost: CostTable | None, expected: tuple[ExitValue, ...]
) -> None:
    assert exit_values(TRACE, point, cost) == expected


def test_the_tables_have_a_line_for_each_exit() -> None:
    lines = scores_text(TRACE, {"quick": BEHIND}, cost=COST).splitlines()
    assert lines[-6] == "ms a row at each exit of quick (torch-float32, batch size 1, 12.5 tokens, a processor)"
    assert [line.split()[-3:] for line in lines[-3:-1]] == [["0.5000", "not", "read"], ["1", "1.0000", "1.5000"]]
    data = scores_data(TRACE, {"quick": BEHIND}, cost=COST)["points"]["quick"]["exit_values"]
    assert data[0] == {"layer": 0, "takes_ms": 0.5, "saves_ms": None}
    assert "exit_values" not in scores_data(TRACE, {"quick": BEHIND})["points"]["quick"]
