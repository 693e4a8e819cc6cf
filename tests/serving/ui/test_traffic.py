"""The last minute of a server, second by second, with a clock that is set."""

from __future__ import annotations

import pytest

from offramp.serving.ui.traffic import RECENT, SECONDS, Traffic


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_whole_second_has_its_requests_and_rows(clock: Clock) -> None:
    traffic = Traffic(clock)
    for layer, point in ((0, "2x"), (0, "full"), (6, "full")):
        traffic.row_left(layer, point)
    traffic.request_done(0.004)
    traffic.request_done(None)
    clock.now = 1003.5
    traffic.row_left(6, "full")
    traffic.request_done(0.1)
    clock.now = 1004.2

    window = traffic.window()

    assert window.requests == [0] * (SECONDS - 4) + [2, 0, 0, 1]
    assert window.refused == [0] * (SECONDS - 4) + [1, 0, 0, 0]
    assert {name: rows[-4:] for name, rows in window.layers.items()} == {0: [2, 0, 0, 0], 6: [1, 0, 0, 1]}
    assert {name: rows[-4:] for name, rows in window.points.items()} == {"2x": [1, 0, 0, 0], "full": [2, 0, 0, 1]}
    assert window.p50_ms[-4:] == [pytest.approx(4, rel=0.026), None, None, pytest.approx(100, rel=0.026)]
    assert (window.requests_s, window.rows_s) == (3 / RECENT, 4 / RECENT)
    assert window.recent_layers == {0: 2, 6: 2}


def test_the_second_that_runs_does_not_count_and_a_minute_is_forgotten(clock: Clock) -> None:
    traffic = Traffic(clock)
    traffic.row_left(3, "full")
    traffic.request_done(0.001)
    assert (traffic.window().requests, traffic.window().layers) == ([0] * SECONDS, {})
    clock.now += SECONDS
    assert traffic.window().requests == [1] + [0] * (SECONDS - 1)
    assert traffic.window().recent_layers == {3: 0}
    clock.now += 1
    assert sum(traffic.window().requests) == 0
    for _ in range(3 * SECONDS):  # memory is bounded
        clock.now += 1
        traffic.request_done(0.001)
    assert traffic.window().requests == [1] * SECONDS


def test_percentiles_are_those_of_the_sorted_latencies(clock: Clock) -> None:
    traffic = Traffic(clock)
    latencies = [0.00001 * 1.2**power for power in range(80)]  # 10 microseconds to 18 seconds
    for latency in latencies:
        traffic.request_done(latency)
    clock.now += 1
    window = traffic.window()
    assert window.recent_p50_ms == pytest.approx(1000 * latencies[39], rel=0.026)
    assert window.recent_p99_ms == pytest.approx(1000 * latencies[79], rel=0.026)
    assert (window.p50_ms[-1], window.p99_ms[-1]) == (window.recent_p50_ms, window.recent_p99_ms)
    assert (window.p50_ms[0], window.p99_ms[0]) == (None, None)
