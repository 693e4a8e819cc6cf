"""What the counters of a server say: its point in force, and of the rows between two looks their points and layers."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Mapping

from serving_process import Server

ROWS = re.compile(r'^offramp_rows_total\{layer="(\d+)",operating_point="([^"]*)"\} (\S+)$', re.MULTILINE)
IN_FORCE = re.compile(r'^offramp_operating_point\{operating_point="([^"]*)"\} 1(?:\.0)?$', re.MULTILINE)

Counts = Mapping[tuple[str, int], float]
"""Answered rows by their point and the layer after which they left."""


def read_metrics(server: Server) -> str:
    """Return the page of a server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def counts_of(metrics: str) -> Counts:
    """Return the rows answered so far."""
    return {(point, int(layer)): float(count) for layer, point, count in ROWS.findall(metrics)}


def in_force(metrics: str) -> str | None:
    """Return the name of the point in force; None where the server has no ladder."""
    match = IN_FORCE.search(metrics)
    return None if match is None else match[1]


def difference(after: Counts, before: Counts) -> Counts:
    """Return the rows answered between two looks."""
    return {key: count - before.get(key, 0.0) for key, count in after.items()}


def mean_layers(counts: Counts) -> float:
    """Return the mean number of layers that rows ran."""
    return sum(layer * count for (_, layer), count in counts.items()) / max(sum(counts.values()), 1)


def shares(counts: Counts) -> dict[str, float]:
    """Return the share of rows that each point answered."""
    rows: Counter[str] = Counter()
    for (point, _), count in counts.items():
        rows[point] += count  # type: ignore[assignment]
    return {point: count / rows.total() for point, count in rows.items() if count}
