"""The ladder of a server, and the rung that load and drift agree on."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from offramp.data.padding import Array
from offramp.errors import InvalidInput
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit, AuditRow
from offramp.serving.ladder import Ladder, Rung, ladder_of
from offramp.serving.load_controller import Load, LoadController
from offramp.serving.served import FULL
from offramp.types.operating_point import Certificate, Measured, OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, SINGLE_LABEL


def point(speedup: float, level: float | None = None, labels: tuple[float, ...] | None = None) -> OperatingPoint:
    """Return a point of four layers that is so many times cheaper than full depth."""
    measured = Measured("accuracy", 0.9, 0.9, 0.99, 4 / speedup, 4, 500)
    agreement = None
    if level is not None:
        agreement = Certificate("agreement", level, 0.05, level, level / 2, 500, "binomial", None, "ab")
    return OperatingPoint({"name": "margin"}, (0.5, 0.5, 0.5), {}, measured, None, labels, agreement=agreement)


POINTS = {"2x": point(2.0, 0.1), "full": point(1.0), "keep-99": point(1.25, 0.02)}


def test_rungs_go_from_full_depth_to_the_cheapest_point_with_the_levels_of_their_certificates() -> None:
    ladder = ladder_of(POINTS, None, None)
    assert ladder == Ladder((Rung(FULL, 1.0, 0.0), Rung("keep-99", 0.8, 0.02), Rung("2x", 0.5, 0.1)), 0, 2)
    named = ladder_of(POINTS, "keep-99", "keep-99")
    assert (named.nominal, named.floor) == (1, 1)


def test_a_name_that_is_no_rung_and_a_floor_above_the_point_without_load_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"--floor '4x' is no point of the ladder; it has: full, keep-99, 2x"):
        ladder_of(POINTS, None, "4x")
    with pytest.raises(InvalidInput, match="--operating-point 'quick' is no point of the ladder"):
        ladder_of(POINTS, "quick", None)
    with pytest.raises(InvalidInput, match="--floor 'full' is stricter than the point without load, '2x'"):
        ladder_of(POINTS, "2x", "full")


class Heard:
    """Notes which rungs have drifted."""

    def __init__(self) -> None:
        self.rungs: list[int] = []

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        self.rungs.append(rung)

    def audited(self, logits: Array, tokens: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def adaptive(problem_type: str = SINGLE_LABEL) -> tuple[Adaptive, Audit, Heard]:
    ladder, heard = ladder_of(POINTS, None, None), Heard()
    audit = Audit(ladder, 1.0, 0.05, Random(0))
    return Adaptive(ladder, LoadController(ladder, 0.05), audit, heard, problem_type), audit, heard


def test_drift_closes_a_rung_and_the_looser_ones_whatever_the_load_calls_for() -> None:
    """Rung 2 differs always, rung 1 never: after the alarm late rows lead to rung 1 at most, and it goes on."""
    both, audit, heard = adaptive()
    row = AuditRow({"input_ids": [1, 2]}, (1, 2))
    assert both.plans(row) == [FULL, "keep-99", "2x"]
    logits = np.array([[0, 1, 0], [0, 2, 1], [1, 0, 0]], np.float32)
    rows = 0
    while not heard.rungs:
        both.audited(row, logits, POINTS, 0.01)
        rows += 1
    assert heard.rungs == [2]
    assert audit.closed == 2
    assert rows < 15  # each such row makes a bettor on a rate of 0.82 8.2 times as rich; 80 times is an alarm
    for number in range(100):
        both.controller.look(Load(10.0 + number, 1.0, 0.0, 1.0, 0.0))
    assert both.controller.rung == 2
    assert both.point == "keep-99"


def test_several_labels_agree_where_the_sets_do_at_the_thresholds_of_the_point() -> None:
    """0 is below the log-odds of 0.9, 2.197, at both depths; without thresholds of its own a point has 0.5."""
    both, audit, _ = adaptive(MULTI_LABEL)
    row = AuditRow({"input_ids": [1, 2]}, (1, 2))
    points = POINTS | {"2x": point(2.0, 0.1, (0.9, 0.5, 0.5))}
    both.audited(row, np.array([[1, 1, -1], [-1, 3, -1], [-1, 3, -1]], np.float32), points, 0.01)
    assert (audit.monitors[1].losses, audit.monitors[2].losses) == (1, 0)
    both.audited(row, np.array([[1, 1, -1], [2, 3, -1], [3, 3, -1]], np.float32), points, 0.01)
    assert (audit.monitors[1].losses, audit.monitors[2].losses) == (1, 1)


def test_a_point_that_drifted_before_the_start_is_closed_with_the_looser_ones() -> None:
    both, audit, _ = adaptive()
    audit.close([2, 1])
    assert audit.closed == 1
    for number in range(100):
        both.controller.look(Load(10.0 + number, 1.0, 1.0, 2.0, 1.0))
    assert (both.controller.rung, both.point) == (2, FULL)
    audit.close([])
    assert audit.closed == 1
