"""A burst as it is seen second by second: the times of answers, and the point in force."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from serving_client import TAIL, quantile
from serving_counts import counts_of, difference, in_force, mean_layers, read_metrics
from serving_process import Server

EVERY_S = 0.25
"""How often the counters are read."""
BACK_S = 10.0
"""The point without load is to be in force again so soon after a burst."""


class Watch:
    """Reads a server's counters now and then, from a thread, as long as it is entered.

    Attributes:
        looks: of each, `at`: the clock's time, `point`: that in force, `layers`: the mean number of those that the rows
            answered since the look before ran.
    """

    def __init__(self, server: Server) -> None:
        self._server, self.looks = server, list[dict[str, Any]]()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        before = counts_of(read_metrics(self._server))
        while not self._ends.wait(EVERY_S):
            metrics, now = read_metrics(self._server), time.time()
            counts = difference(counts_of(metrics), before)
            before = counts_of(metrics)
            look = {"at": now, "point": in_force(metrics), "layers": mean_layers(counts)}
            self.looks.append(look)


Quality = Callable[[Sequence[Any]], dict[str, float | None]]


def between(each: Sequence[Any], start: float, end: float, quality: Quality) -> dict[str, Any]:
    """Return what became of the requests that were due in a span of seconds; a percentile of None = some never came."""
    some = [request for request in each if start <= request[0] < end]
    took = sorted(request[1] for request in some)
    p50, p99 = (1000 * quantile(took, share) for share in (0.5, 1 - TAIL))
    return finite({"start": start, "requests": len(some), "p50_ms": p50, "p99_ms": p99, **quality(some)})


def finite(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report with None for what is infinite, which JSON has no word for."""
    return {key: None if value == math.inf else value for key, value in report.items()}


def claims(run: dict[str, Any], lengths: Sequence[float], target_ms: float) -> dict[str, Any]:
    """Return what holds of a burst.

    Args:
        run: of a server, with `phases`, `seconds` and `looks`.
        lengths: seconds before, in and after the burst.
        target_ms: of the 99th percentile.

    Returns:
        p99_ms: of the burst; kept: the number of its seconds whose own 99th percentile is within the target, and of
        all; kept_after: the same of the seconds after it; back_s: seconds from its end until the point without load is
        in force, None = never; back_share: the share of looks from then on at which it is; missed: which of
        these fails: "p99", that of the burst is within the target; "back", back_s is at most BACK_S.
    """
    start, end = lengths[0], lengths[0] + lengths[1]
    within = {second["start"]: (second["p99_ms"] or math.inf) <= target_ms for second in run["seconds"]}
    burst = [kept for second, kept in within.items() if start <= second < end]
    after = [kept for second, kept in within.items() if second >= end]
    looks = [look for look in run["looks"] if look["at"] >= end]
    back = [look["point"] == run["nominal"] for look in looks]
    first = back.index(True) if True in back else None
    back_s = math.inf if first is None else looks[first]["at"] - end
    p99_ms = run["phases"][1]["p99_ms"]
    holds = {"p99": (p99_ms or math.inf) <= target_ms, "back": back_s <= BACK_S}
    return {
        "p99_ms": p99_ms,
        "kept": [sum(burst), len(burst)],
        "kept_after": [sum(after), len(after)],
        "back_s": None if first is None else back_s,
        "back_share": None if first is None else sum(back[first:]) / len(back[first:]),
        "missed": [name for name, kept in holds.items() if not kept],
    }
