"""Texts that a client sends to servers, and the search for the highest rate at which their answers are in time."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from serving_process import Server, busy_s
from speed_models import Prepared

CLIENT = Path(__file__).parent / "serving_client.py"
CONNECTIONS, SATURATED_S, WARM_UP = 32, 2.0, 64
SETTLES_S = 5.0
FIRST, LOW, WIDER, AGAIN = 0.75, 0.2, 1.3, 1.12
"""The first rate, as a share of that at saturation; that after a search without a limit; the factors from one rate to
the next while one side has no bound, in a first search and in later ones."""


@dataclass(frozen=True)
class Texts:
    """The texts that requests have, one each.

    Attributes:
        rows: texts with their labels' names.
    """

    rows: list[tuple[str, str]]

    @classmethod
    def reporting(cls, prepared: Prepared) -> Texts:
        """Return the texts of the half that reports, in a random order."""
        held_out, names = prepared.held_out, json.loads((prepared.folder / "config.json").read_text())
        rows = [(held_out.texts[row], names["id2label"][str(held_out.labels[row])]) for row in prepared.reporting()]
        random.Random(0).shuffle(rows)
        return cls(rows)  # type: ignore[arg-type]

    def ask(self, server: Server, plan: dict[str, Any], count: int | None = None) -> dict[str, Any]:
        """Let a client carry out a plan, with the first texts or all; return its report, with cores that are busy."""
        bodies = [json.dumps({"inputs": text}) for text, _ in self.rows[:count]]
        plan = {"port": server.port, "path": "/predict", "bodies": bodies, **plan}
        before, cpu, begin = busy_s(), server.cpu_s(), time.perf_counter()
        done = subprocess.run([sys.executable, str(CLIENT)], input=json.dumps(plan), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        report: dict[str, Any] = json.loads(done.stdout)
        passed = time.perf_counter() - begin
        report["server_cores"] = (server.cpu_s() - cpu) / passed
        report["other_cores"] = (busy_s() - before) / passed - report["server_cores"] - report["client_cores"]
        return report

    def warm_up(self, server: Server) -> None:
        """Let a server answer a few texts."""
        self.ask(server, {"mode": "once", "connections": 8}, WARM_UP)

    def saturated(self, server: Server, connections: int = CONNECTIONS) -> dict[str, Any]:
        """Return how many requests a second are answered where some always wait."""
        return self.ask(server, {"mode": "closed", "connections": connections, "seconds": SATURATED_S})

    def answers(self, server: Server) -> list[str | None]:
        """Return the label that a server gives each text."""
        bodies = self.ask(server, {"mode": "once", "connections": 8})["bodies"]
        return [None if body is None else json.loads(body)[0]["label"] for body in bodies]

    def accuracy(self, answers: Sequence[str | None]) -> float:
        """Return the share of answers that are the texts' labels."""
        return sum(answer == label for answer, (_, label) in zip(answers, self.rows, strict=True)) / len(answers)

    def settle(self, server: Server) -> None:
        """Wait until a server has answered what is left of a step, at most SETTLES_S."""
        end = time.monotonic() + SETTLES_S
        while time.monotonic() < end:
            begin = time.perf_counter()
            self.ask(server, {"mode": "once", "connections": 1}, 8)
            if time.perf_counter() - begin < 0.5:
                return


@dataclass
class RateSearch:
    """The search for the highest rates within bounds of the 99th percentile; each step tries `rate`.

    Attributes:
        rate: the next one that is tried.
        wider: the factor from one rate to the next while one side has no bound.
        passed: the highest rate within each bound in milliseconds so far; 0 = none.
        failed: the lowest rate beyond it.
    """

    rate: float
    wider: float
    passed: dict[int, float]
    failed: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self.failed = dict.fromkeys(self.passed, math.inf)

    @classmethod
    def start(cls, bounds: Sequence[int], most: float, before: dict[str, float] | None) -> RateSearch:
        """Return a search that begins at a share of the rate at saturation, or at the limits of an earlier search."""
        found = [rate for rate in (before or {}).values() if rate]
        if found:
            rate, wider = geometric_mean(found), AGAIN if len(found) == len(bounds) else WIDER
        else:
            rate, wider = FIRST * most if before is None else LOW * most, WIDER
        return cls(rate, wider, dict.fromkeys(bounds, 0.0))

    def add(self, report: dict[str, Any]) -> None:
        """Take the client's report of a step at `rate`, and choose the next rate."""
        for bound in self.passed:
            if report["whole"] and report["p99_ms"] <= bound:
                self.passed[bound] = max(self.passed[bound], self.rate)
            else:
                self.failed[bound] = min(self.failed[bound], self.rate)
        bound = max(self.passed, key=lambda bound: self.failed[bound] / max(self.passed[bound], 1e-9))
        low, high = self.passed[bound], self.failed[bound]
        if high == math.inf:
            self.rate = low * self.wider
        else:
            self.rate = math.sqrt(low * high) if low else high / self.wider**2

    @property
    def limits(self) -> dict[str, float]:
        """Return the highest rate within each bound, 0 where there is none."""
        return {str(bound): rate for bound, rate in self.passed.items()}
