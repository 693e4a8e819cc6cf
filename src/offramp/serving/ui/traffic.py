"""What a server did in the last minute, second by second, for its page. No I/O; the clock is an argument.

A row costs one look into a dictionary, a request one logarithm; a second keeps counts alone, whatever the load.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import final

import msgspec

SECONDS, RECENT = 60, 10
"""Seconds that are kept, and those of the figures of "now"."""
_SHORTEST_S, _STEPS = 1e-5, 20
"""Latencies are counted in steps of 5 %, from 10 microseconds on."""


class Window(msgspec.Struct):
    """The last whole seconds, the oldest first.

    Attributes:
        requests, refused: of each second.
        p50_ms, p99_ms: of each second's answered requests; None where there are none.
        layers: layer number -> rows of each second that left after it.
        points: name -> rows of each second that an operating point answered.
        requests_s, rows_s: a second, over the last RECENT seconds.
        recent_p50_ms, recent_p99_ms: over the same.
        recent_layers: layer number -> rows, over the same.
    """

    requests: list[int]
    refused: list[int]
    p50_ms: list[float | None]
    p99_ms: list[float | None]
    layers: dict[int, list[int]]
    points: dict[str, list[int]]
    requests_s: float
    rows_s: float
    recent_p50_ms: float | None
    recent_p99_ms: float | None
    recent_layers: dict[int, int]


@dataclass
class _Second:
    number: int
    requests: int = 0
    refused: int = 0
    rows: dict[tuple[int, str], int] = field(default_factory=dict)
    latencies: dict[int, int] = field(default_factory=dict)


@final
class Traffic:
    """Counts requests and rows by the second.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._current = _Second(int(clock()))
        self._seconds = deque([self._current], SECONDS + 1)

    def row_left(self, layer: int, point: str) -> None:
        """Count a row with an answer."""
        rows, key = self._now().rows, (layer, point)
        rows[key] = rows.get(key, 0) + 1

    def request_done(self, seconds: float | None) -> None:
        """Count a request and how long its answer took; None = it was refused."""
        now = self._now()
        now.requests += 1
        if seconds is None:
            now.refused += 1
        else:
            step = int(math.log(max(seconds, _SHORTEST_S) / _SHORTEST_S) * _STEPS)
            now.latencies[step] = now.latencies.get(step, 0) + 1

    def window(self) -> Window:
        """Return what the last SECONDS whole seconds had."""
        end = int(self._clock())
        known = {second.number: second for second in self._seconds}
        seconds = [known.get(number) or _Second(number) for number in range(end - SECONDS, end)]
        recent = seconds[-RECENT:]
        quantiles_ms = [_quantiles_ms([second]) for second in seconds]
        recent_ms = _quantiles_ms(recent)
        layers = {
            layer: [_rows(second, layer=layer) for second in seconds]
            for layer in sorted({layer for second in seconds for layer, _ in second.rows})
        }
        points = {
            point: [_rows(second, point=point) for second in seconds]
            for point in sorted({point for second in seconds for _, point in second.rows})
        }
        return Window(
            [second.requests for second in seconds],
            [second.refused for second in seconds],
            [median for median, _ in quantiles_ms],
            [high for _, high in quantiles_ms],
            layers,
            points,
            sum(second.requests for second in recent) / RECENT,
            sum(map(_rows, recent)) / RECENT,
            *recent_ms,
            {layer: sum(rows[-RECENT:]) for layer, rows in layers.items()},
        )

    @property
    def second(self) -> int:
        """Return the number of the second that runs."""
        return int(self._clock())

    def _now(self) -> _Second:
        number = int(self._clock())
        if number != self._current.number:
            self._current = _Second(number)
            self._seconds.append(self._current)
        return self._current


def _rows(second: _Second, layer: int | None = None, point: str | None = None) -> int:
    """Return the rows of a second, or those of a layer or a point."""
    return sum(
        count
        for (row_layer, row_point), count in second.rows.items()
        if layer in (None, row_layer) and point in (None, row_point)
    )


def _quantiles_ms(seconds: Iterable[_Second]) -> tuple[float | None, float | None]:
    """Return the median and the 99th percentile of seconds' latencies, in milliseconds, to 2.5 %."""
    counts = Counter[int]()
    for second in seconds:
        counts.update(second.latencies)
    total = sum(counts.values())
    return (_quantile_ms(counts, 0.5 * total), _quantile_ms(counts, 0.99 * total)) if total else (None, None)


def _quantile_ms(counts: Counter[int], rank: float) -> float:
    passed = 0
    for step in sorted(counts):
        passed += counts[step]
        if passed >= rank:
            break
    return round(1000 * _SHORTEST_S * math.exp((step + 0.5) / _STEPS), 3)
