"""Which point of the ladder answers a row: load, latency budgets and drift decide together. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, final

import numpy as np

from offramp.data.padding import Array
from offramp.inference.answers import chosen_labels
from offramp.serving.audit import Audit, AuditRow
from offramp.serving.batch_times import BatchTimes
from offramp.serving.depth_budget import DepthBudget
from offramp.serving.ladder import Ladder
from offramp.serving.load_controller import Load, LoadController
from offramp.serving.queue import Queue, WaitingRow
from offramp.serving.served import FULL
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL

MARGIN = 1.25
"""How many times the expected seconds of its batch a row must have left: half of all batches take longer."""


class Alarms(Protocol):
    """Hears of drift; see `offramp.serving.drift_report`."""

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        """Report that a rung's answers differ more often than its certificate allows."""

    def audited(self, logits: Array, tokens: int) -> None:
        """Keep the logits of a row that was audited after an alarm, (E, C) of the exits that are read."""

    def close(self) -> None:
        """Write what is not written yet."""


@final
class Adaptive:
    """Decides the operating point of every row whose request names none.

    Attributes:
        ladder: the rungs.
        controller: what load calls for.
        audit: what drift has closed; None = no audit.
        depth: what a bound on the mean depth calls for; None = no bound.
        times: of batches.
    """

    def __init__(
        self,
        ladder: Ladder,
        controller: LoadController,
        audit: Audit | None,
        alarms: Alarms,
        problem_type: str,
        depth: DepthBudget | None = None,
    ) -> None:
        self.ladder, self.controller, self.audit, self.depth = ladder, controller, audit, depth
        self.times = BatchTimes([rung.cost for rung in ladder.rungs])
        self._alarms, self._problem_type = alarms, problem_type
        self._numbers = {name: number for number, name in enumerate(ladder.names)}
        self._looked, self._full_s = 0.0, 0.0  # when the load was looked at, and what batches since take at full depth
        self._rows = self._late_rows = 0  # that went to processes since, and those for which the rung was too slow

    @property
    def rung(self) -> int:
        """Return the number of the rung in force: the looser one of load and depth, unless drift has closed it."""
        depth = self.ladder.nominal if self.depth is None else self.depth.rung
        return min(max(self.controller.rung, depth), self._loosest)

    @property
    def _loosest(self) -> int:
        """Return the number of the loosest rung that may be used."""
        closed = None if self.audit is None else self.audit.closed
        return self.ladder.floor if closed is None else min(self.ladder.floor, max(closed - 1, 0))

    @property
    def point(self) -> str:
        """Return the name of the point in force."""
        return self.ladder.rungs[self.rung].name

    def point_for(self, left_s: float, tokens: int) -> str:
        """Return the name of the point for a row that is due in `left_s`, in a batch of so many tokens.

        It is the strictest one, from that in force on, at which the batch is expected to end in time, and the loosest
        where there is none.
        """
        rung, loosest = self.rung, self._loosest
        while rung < loosest and MARGIN * self.times.seconds(rung, tokens) > left_s:
            rung += 1
        return self.ladder.rungs[rung].name

    def point_of(self, row: WaitingRow, tokens: int, now: float) -> str:
        """Return the name of the point for a row that goes to a process now, in a batch of so many tokens."""
        point = self.point_for(row.due - now, tokens)
        if row.due >= row.since + self.controller.target_s:  # others ask for more than the operator does
            self._rows += 1
            self._late_rows += point != self.point
        return point

    def batch_done(self, points: Sequence[str], tokens: int, seconds: float) -> None:
        """Learn from a batch: the names of its rows' points, its tokens with padding, the seconds that it took."""
        rungs = [self._numbers[name] for name in points if name in self._numbers]
        if len(rungs) == len(points):
            self.times.add(rungs, tokens, seconds)
            self._full_s += self.times.full_depth(rungs, tokens)
        else:  # other points, whose cost is not known
            self._full_s += seconds

    def queue_s(self, queue: Queue, processes: int) -> float:
        """Return how long the processes need for the rows that wait, at the rung in force."""
        return len(queue) * self.times.row_seconds(self.rung) / max(processes, 1)

    def look(self, queue: Queue, processes: int, now: float) -> None:
        """Let the load decide.

        A row with a shorter budget than the target does not count as late before the others would; rows that are due
        later than the target allow the queue to be longer.
        """
        target_s, first, last = self.controller.target_s, queue.first, queue.last
        wait_s = queue_s = 0.0
        if first is not None and last is not None:
            wait_s = target_s - (max(first.due, first.since + target_s) - now)
            queue_s = self.queue_s(queue, processes) * target_s / max(last.due - now, target_s)
        passed_s = max(now - self._looked, 1e-9) * max(processes, 1)
        self.controller.look(Load(now, wait_s, queue_s, self._full_s / passed_s, self._late_rows / max(self._rows, 1)))
        self._looked, self._full_s = now, 0.0
        self._rows = self._late_rows = 0

    def audited(
        self,
        row: AuditRow,
        logits: Array,
        points: Mapping[str, OperatingPoint],
        seconds: float,
        by_exit: Array | None = None,
    ) -> None:
        """Take the answers of an audited row.

        A row to which full depth has no answer is lost; where only a rung has none it differs there.

        Args:
            row: of the audit.
            logits: (R, C) of `plans`, in their order.
            points: of the model, by name.
            seconds: that a process took.
            by_exit: (E, C) at full depth, of the exits that are read; None = not wanted.
        """
        assert self.audit is not None
        if not np.isfinite(logits[0]).all():
            self.audit.lost(seconds)
            return
        differs = {}
        for rung, early in zip(row.rungs, logits[1:], strict=True):
            point = points.get(self.ladder.rungs[rung].name)
            differs[rung] = not np.isfinite(early).all() or self._answer(early, point) != self._answer(logits[0], point)
        closed = self.audit.done(row, differs, seconds)
        if by_exit is not None:
            self._alarms.audited(by_exit, len(row.tokens["input_ids"]))
        if closed is not None:
            self._alarms.drifted(self, closed)

    def close(self) -> None:
        """Let the alarms write what is not written yet."""
        self._alarms.close()

    def plans(self, row: AuditRow) -> list[str]:
        """Return the names of the points that an audited row runs at, full depth first."""
        return [FULL, *(self.ladder.rungs[rung].name for rung in row.rungs)]

    def _answer(self, logits: Array, point: OperatingPoint | None) -> tuple[int, ...]:
        if self._problem_type == MULTI_LABEL:
            return tuple(chosen_labels(logits[None], point)[0].nonzero()[0].tolist())
        return (int(logits.argmax()),)
