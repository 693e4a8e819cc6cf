"""The drift monitor against histories written out: its capital, its false alarms, its delay, its bound."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.serving.drift_monitor import DriftMonitor, rows_to_notice

STAKES = (1.5, 2, 4, 8, 16, 32, 64)


def capital(history: Any, rate: float) -> float:
    """Sum the capital over each row at which betting begins and each stake, one product each."""
    total = (len(history) + 1) ** -0.2  # has not begun
    for begin in range(len(history)):
        weight = (begin + 1) ** -0.2 - (begin + 2) ** -0.2
        for times in STAKES:
            other = times * rate / (1 - rate + times * rate)
            factors = [other / rate if loss else (1 - other) / (1 - rate) for loss in history[begin:]]
            total += weight / len(STAKES) * math.prod(factors)
    return total


def first_alarms(losses: Any, level: float, delta: float) -> Any:
    """Return the row of each history (H, N) at which the level's own test passes, N where it does not."""
    others = np.array([times * level / (1 - level + times * level) for times in STAKES])
    parts, first = np.zeros((len(losses), len(STAKES))), np.full(len(losses), losses.shape[1])
    for row in range(losses.shape[1]):
        begins = (row + 1) ** -0.2 - (row + 2) ** -0.2
        factors = np.where(losses[:, row, None], others / level, (1 - others) / (1 - level))
        parts = np.minimum((parts + begins / len(STAKES)) * factors, 1e100)
        passed = parts.sum(axis=1) + (row + 2) ** -0.2 >= 1 / delta
        first = np.where(passed & (first > row), row + 1, first)
    return first


@pytest.mark.parametrize("history", [(1, 0, 0, 1, 0, 0, 0), (0, 0, 0, 0, 1, 1, 0), (0, 1, 0, 1, 1, 1, 0), (1,)])
def test_the_capital_is_the_sum_over_beginnings_and_stakes(history: tuple[int, ...]) -> None:
    """An alarm at delta is a capital of 1 / delta: the history's largest one, a little more and a little less."""
    largest = max(capital(history[: rows + 1], 0.05) for rows in range(len(history)))
    for times, alarm in ((0.999, False), (1.001, True)):
        monitor = DriftMonitor(0.05, times / largest)
        assert any([monitor.add(bool(loss)) for loss in history]) == alarm


def test_without_a_bet_won_nothing_is_expected() -> None:
    """At the level the mean capital over all histories is 1, at a lower rate it is less."""
    histories = list(itertools.product((True, False), repeat=8))
    for rate in (0.2, 0.15):
        chances = [rate ** sum(history) * (1 - rate) ** (8 - sum(history)) for history in histories]
        mean = sum(chance * capital(history, 0.2) for chance, history in zip(chances, histories, strict=True))
        assert mean == pytest.approx(1) if rate == 0.2 else mean < 0.999


def test_false_alarms_are_rare_exactly_at_the_level() -> None:
    losses = np.random.default_rng(0).random((1500, 3000)) < 0.05
    rows = first_alarms(losses, 0.05, 0.1)
    alarms = (rows < 3000).mean()
    assert 0.01 < alarms <= 0.1  # looked at after each of the rows
    for history, row in list(zip(losses, rows, strict=True))[:4]:
        monitor = DriftMonitor(0.05, 0.1)
        assert any(monitor.add(loss) for loss in history.tolist()) == (row < 3000)


@pytest.mark.parametrize(("before", "rate"), [(0, 0.1), (500, 0.1), (500, 0.4)])
def test_a_change_is_noticed_within_the_rows_of_theory(before: int, rate: float) -> None:
    draw = np.random.default_rng(1).random((400, before + 1500))
    losses = draw < np.where(np.arange(before + 1500) < before, 0.01, rate)
    rows = first_alarms(losses, 0.02, 0.01) - before
    for chance in (0.5, 0.9):
        allowed = rows_to_notice(0.02, 0.01, rate, before, chance)
        assert allowed is not None
        assert (rows <= allowed).mean() >= chance - 0.05
        assert np.quantile(rows, chance) > allowed / 2.5  # the bound is no idle one


def test_theory_by_hand() -> None:
    """Every row differs: the capital of the first beginning grows 64-fold in odds, from its share of the weights."""
    rows = rows_to_notice(0.01, 0.05, 1.0)
    assert rows is not None
    monitor = DriftMonitor(0.01, 0.05)
    alarms = [monitor.add(True) for _ in range(rows)]
    assert alarms[-1]
    grown = 0.64 / (1 - 0.01 + 0.64) / 0.01  # at the lowest rates it grows faster
    begins = (1 - 2**-0.2) / 7
    assert begins * grown**rows >= 20 > begins * grown ** (rows - 1)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.011])
def test_a_rate_at_the_level_is_never_noticed(rate: float) -> None:
    assert rows_to_notice(0.01, 0.05, rate) is None


def test_the_bound_falls_and_never_rises_and_its_alarm_is_the_level() -> None:
    monitor, bounds, alarms = DriftMonitor(0.03, 0.05), [1.0], []
    for differs in np.random.default_rng(2).random(1500) < np.where(np.arange(1500) < 700, 0.01, 0.3):
        alarms.append(monitor.add(bool(differs)))
        bounds.append(monitor.bound)
    assert bounds == sorted(bounds, reverse=True)
    assert 0.7 < bounds[-1] < 0.85  # below 1 - 0.03, and above what is true since the change
    assert alarms == [bound <= 1 - 0.03 for bound in bounds[1:]]
    assert (monitor.rows, monitor.losses) == (1500, 245)


def test_ten_million_rows_neither_overflow_nor_die_out() -> None:
    """The state after so many rows is made at once; a change is noticed after it, a constant rate is not an alarm."""
    monitor = DriftMonitor(0.01, 0.05)
    monitor._capital[:] = 0.0  # what is left of all that began, at the least
    monitor.rows = 10_000_000
    assert not any(monitor.add(False) for _ in range(500))
    assert (monitor._capital > 0).all()
    allowed = rows_to_notice(0.01, 0.05, 0.5, monitor.rows, 0.99)
    assert allowed is not None
    assert any(monitor.add(bool(row % 2)) for row in range(allowed + 10))
    for _ in range(2000):
        monitor.add(True)
    assert np.isfinite(monitor._capital).all()
    assert monitor.bound == pytest.approx(0.1)


def test_the_guide_has_the_rows_until_a_change_is_noticed() -> None:
    """Of four watched points that share delta, after 1,000 rows without a change."""
    guide = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for level, words in ((0.005, "0.5 %"), (0.01, "1 %"), (0.02, "2 %"), (0.05, "5 %")):
        rows = [rows_to_notice(level, 0.05 / 4, rate, 1000) for rate in (2 * level, 4 * level, 0.2, 0.5)]
        assert f"| {words} | {' | '.join(f'{count:,}' for count in rows)} |" in guide
