"""The audit: a share of the rows, drawn when they come, runs to full depth as well. No I/O, no clock.

audit.draw(rows)                            # of a request
row = audit.take(now, processes)            # the one that a process runs now, within the audit's own budget
closed = audit.done(row, differs, seconds)  # or audit.lost(seconds): there is nothing to compare

One row runs at a time, so an audit takes one process, and that for a few milliseconds, from those that answer.

The draw looks at nothing but a random number, so neither load nor the exits of a row change which rows are drawn. A
row runs at full depth and on every watched rung that is open, whichever is in force: so that load does not change what
is watched, and evidence on the rungs that an alarm leads to is there when it comes. Rows are drawn one by one, not with
their request, since those of one request may resemble each other.

The budget is a share of the processes' time that the audit has whatever the load; what is not used is saved up for a
moment only. Under load rows that are drawn wait, and are dropped where too many do. Which are dropped depends on when
they come, never on what they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import final

from offramp.data.batching import Tokens
from offramp.serving.drift_monitor import DriftMonitor
from offramp.serving.ladder import Ladder

TIME_SHARE, MOST_CREDIT_S = 0.05, 0.5
"""Of the processes' time, the share that the audit may take, and what it may save up."""
MOST_WAITING = 32
"""Few: a change is noticed as much later as drawn rows have waited."""


@final
@dataclass(frozen=True)
class AuditRow:
    """A row that is audited.

    Attributes:
        tokens: of the row.
        rungs: the numbers of those that it runs on, besides full depth.
    """

    tokens: Tokens
    rungs: tuple[int, ...]


@final
class Audit:
    """Draws rows, and watches the rungs that have a certificate.

    Attributes:
        monitors: of each watched rung, by its number: those down to the floor whose certificate allows a difference.
        closed: the strictest rung with an alarm, which with all looser ones is no longer used; None = none.
        audited, dropped: rows, so far: those with a comparison, and those that were drawn and have none.
        alarms: the rungs that had one, in their order.
    """

    def __init__(self, ladder: Ladder, share: float, delta: float, random: Random) -> None:
        self._share, self._random = share, random
        levels = {number: rung.level for number, rung in enumerate(ladder.rungs[: ladder.floor + 1]) if rung.level}
        self.monitors = {number: DriftMonitor(level, delta / len(levels)) for number, level in levels.items()}
        self.closed: int | None = None
        self.audited = self.dropped = 0
        self.alarms: list[int] = []
        self._waiting: deque[AuditRow] = deque()
        self._runs = False  # one of them, on a process
        self._credit_s, self._last = MOST_CREDIT_S, float("-inf")

    def draw(self, rows: Sequence[Tokens]) -> bool:
        """Draw some of a request's rows, and let them wait; return whether there are any.

        Where too many wait they are counted, and dropped.
        """
        drawn = [row for row in rows if self._random.random() < self._share]
        if len(self._waiting) >= MOST_WAITING:  # which is so before the rows are looked at: all of them, or none
            self.dropped += len(drawn)
            return False
        rungs = tuple(number for number in self.monitors if self.closed is None or number < self.closed)
        self._waiting += [AuditRow(row, rungs) for row in drawn]
        return bool(drawn)

    def take(self, now: float, processes: int) -> AuditRow | None:
        """Return a row for a process; None where none waits, one runs, or the budget is used up.

        Args:
            now: seconds of the clock.
            processes: that there are, busy or not.
        """
        passed = max(now - self._last, 0.0)
        self._credit_s = min(self._credit_s + TIME_SHARE * processes * passed, MOST_CREDIT_S)
        self._last = now
        if self._runs or not self._waiting or self._credit_s <= 0:
            return None
        self._runs = True
        return self._waiting.popleft()

    def pause_s(self, processes: int) -> float | None:
        """Return after how many seconds the budget lets the next row go; None where none waits, or one runs."""
        if self._runs or not self._waiting:
            return None
        return max(-self._credit_s, 0.0) / (TIME_SHARE * max(processes, 1))

    def done(self, row: AuditRow, differs: Mapping[int, bool], seconds: float) -> int | None:
        """Count a row that was compared.

        Args:
            row: of `take`.
            differs: rung -> whether its answer is another than the full model's.
            seconds: that a process took.

        Returns:
            The rung that is closed now, for an alarm; else none.
        """
        self._credit_s -= seconds
        self._runs = False
        self.audited += 1
        drifted = [rung for rung in row.rungs if self.monitors[rung].add(differs[rung])]
        if not drifted or (self.closed is not None and drifted[0] >= self.closed):
            return None
        self.closed = drifted[0]
        self.alarms.append(self.closed)
        return self.closed

    def close(self, rungs: Iterable[int]) -> None:
        """Close rungs that have drifted before, with all looser ones."""
        self.closed = min(rungs, default=self.closed)

    def lost(self, seconds: float) -> None:
        """Count a row of `take` that could not be compared: its process ended, or full depth has no answer."""
        self._credit_s -= seconds
        self._runs = False
        self.dropped += 1
