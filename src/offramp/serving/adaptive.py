"""Which point of the ladder answers a row: load, latency budgets and drift decide together. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final

import numpy as np

from offramp.data.padding import Array
from offramp.inference.answers import chosen_labels
from offramp.serving.audit import Audit, AuditRow
from offramp.serving.ladder import Ladder
from offramp.serving.load_controller import Load, LoadController
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL


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
    """

    def __init__(
        self, ladder: Ladder, controller: LoadController, audit: Audit | None, alarms: Alarms, problem_type: str
    ) -> None:
        self.ladder, self.controller, self.audit = ladder, controller, audit
        self._alarms, self._problem_type = alarms, problem_type

    @property
    def rung(self) -> int:
        """Return the number of the rung in force: that of the load, unless drift has closed it."""
        closed = None if self.audit is None else self.audit.closed
        return self.controller.rung if closed is None else min(self.controller.rung, max(closed - 1, 0))

    @property
    def point(self) -> str:
        """Return the name of the point in force."""
        return self.ladder.rungs[self.rung].name

    def look(self, load: Load) -> None:
        """Let the load decide."""
        self.controller.look(load)

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
        return ["full", *(self.ladder.rungs[rung].name for rung in row.rungs)]

    def _answer(self, logits: Array, point: OperatingPoint | None) -> tuple[int, ...]:
        if self._problem_type == MULTI_LABEL:
            return tuple(chosen_labels(logits[None], point)[0].nonzero()[0].tolist())
        return (int(logits.argmax()),)
