"""Which point of the ladder answers a row: load, latency budgets and drift decide together. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, final

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
        self, rows: Sequence[AuditRow], logits: Array, points: Mapping[str, OperatingPoint], seconds: float
    ) -> None:
        """Take the answers of an audit.

        Args:
            rows: of the audit.
            logits: (R, C) of `plans`, in their order.
            points: of the model, by name.
            seconds: that a process took.
        """
        assert self.audit is not None
        differs, start = [], 0
        for row in rows:
            full = self._answer(logits[start], None)
            answers = {
                rung: self._answer(logits[start + 1 + index], points[self.ladder.rungs[rung].name])
                for index, rung in enumerate(row.rungs)
            }
            differs.append({rung: answer != full for rung, answer in answers.items()})
            start += 1 + len(row.rungs)
        for rung in self.audit.done(rows, differs, seconds):
            self._alarms.drifted(self, rung)

    def plans(self, row: AuditRow) -> list[str]:
        """Return the names of the points that an audited row runs at, full depth first."""
        return ["full", *(self.ladder.rungs[rung].name for rung in row.rungs)]

    def _answer(self, logits: Array, point: OperatingPoint | None) -> tuple[int, ...]:
        if self._problem_type == MULTI_LABEL:
            return tuple(chosen_labels(logits[None], point)[0].nonzero()[0].tolist())
        return (int(logits.argmax()),)
