"""The audit: a share of the requests, drawn when they come, runs to full depth as well. No I/O, no clock.

audit.add(rows, rung)                       # of a request that came while a rung was in force
rows = audit.take(now, processes)           # those that a process runs now, within the audit's own budget
alarms = audit.done(rows, differs, seconds)

The draw looks at nothing but a random number, so neither load nor the exits of a row change which rows are audited. A
row runs at full depth and on the rungs from the one in force to the floor: which those are is known before it comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import final

from offramp.data.batching import Tokens
from offramp.serving.drift_monitor import DriftMonitor
from offramp.serving.ladder import Ladder

TIME_SHARE, MOST_CREDIT_S = 0.05, 1.0
"""Of the processes' time, the share that the audit may take, and what it may save up."""
MOST_WAITING, BATCH_ROWS = 256, 4


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
        monitors: of each watched rung, by its number.
        closed: the strictest rung with an alarm, which with all looser ones is no longer used; None = none.
        audited, dropped: rows, so far.
    """

    def __init__(self, ladder: Ladder, share: float, delta: float, random: Random) -> None:
        self._share, self._random, self._ladder = share, random, ladder
        watched = [number for number, rung in enumerate(ladder.rungs) if rung.level]
        self.monitors = {
            number: DriftMonitor(ladder.rungs[number].level or 0, delta / len(watched)) for number in watched
        }
        self.closed: int | None = None
        self.audited = self.dropped = 0
        self._waiting: deque[AuditRow] = deque()
        self._credit_s, self._last = 0.0, 0.0

    def draws(self) -> bool:
        """Return whether the request that has come is audited."""
        return self._random.random() < self._share

    def add(self, rows: Sequence[Tokens], rung: int) -> None:
        """Let rows of a drawn request wait; those that find no room are counted, and dropped."""
        end = self._ladder.floor + 1 if self.closed is None else min(self.closed, self._ladder.floor + 1)
        rungs = tuple(number for number in range(rung, end) if number in self.monitors)
        for row in rows:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(AuditRow(row, rungs))
            else:
                self.dropped += 1

    def take(self, now: float, processes: int) -> list[AuditRow]:
        """Return rows for a process; none where none waits, or the budget is used up."""
        self._credit_s = min(self._credit_s + TIME_SHARE * processes * (now - self._last), MOST_CREDIT_S)
        self._last = now
        if self._credit_s < 0:
            return []
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_ROWS))]

    def done(self, rows: Sequence[AuditRow], differs: Sequence[Mapping[int, bool]], seconds: float) -> list[int]:
        """Count audited rows, each with whether its answer differs on each of its rungs; return rungs with an alarm."""
        self._credit_s -= seconds
        self.audited += len(rows)
        alarms = []
        for row in differs:
            for rung, differ in row.items():
                if self.monitors[rung].add(differ) and (self.closed is None or rung < self.closed):
                    self.closed = rung
                    alarms.append(rung)
        return alarms
