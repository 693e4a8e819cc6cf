"""Rows of the audit on the processes, one at a time, beside those that are answered. For one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, final

import numpy as np

from offramp.data.batching import Tokens
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit, AuditRow
from offramp.serving.batches import audit_frames
from offramp.serving.pool import ProcessPool
from offramp.serving.served import Served
from offramp.serving.worker_process import ProcessLost, WorkerProcess

log = logging.getLogger("offramp.serving")


@final
class AuditRuns:
    """Runs what the audit draws, within its budget, and gives the answers to `Adaptive.audited`."""

    def __init__(
        self, served: Served, pool: ProcessPool, adaptive: Adaptive, audit: Audit, dispatch_soon: Callable[[], None]
    ) -> None:
        """Take the audit, and what asks for `next` once its budget lets a row go."""
        self._served, self._pool, self._adaptive, self._audit = served, pool, adaptive, audit
        self._dispatch_soon = dispatch_soon
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(
        cls, served: Served, pool: ProcessPool, adaptive: Adaptive, dispatch_soon: Callable[[], None]
    ) -> AuditRuns | None:
        """Return the runs of a server's audit; None where it has no audit."""
        return None if adaptive.audit is None else cls(served, pool, adaptive, adaptive.audit, dispatch_soon)

    def draw(self, rows: Sequence[Tokens]) -> bool:
        """Draw rows that have come; return whether there are any."""
        return self._audit.draw(rows)

    def next(self, now: float) -> Coroutine[Any, Any, None] | None:
        """Return the run of a row on a process that is free; None where none is, or the budget lets no row go."""
        if not self._pool.idle:
            return None
        if (row := self._audit.take(now, self._pool.alive)) is not None:
            return self._run(self._pool.idle.pop(), row)
        if (pause_s := self._audit.pause_s(self._pool.alive)) is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(pause_s + 0.001, self._end_pause)
        return None

    def _end_pause(self) -> None:
        self._timer = None
        self._dispatch_soon()

    async def _run(self, process: WorkerProcess, row: AuditRow) -> None:
        """Let a process answer a row at full depth and on rungs of the ladder; where it ends, the row is lost."""
        by_exit, parts, seconds = self._audit.closed is not None, [], 0.0
        try:
            for frame in audit_frames(row, self._adaptive.plans(row), self._served, by_exit):
                parts.append(await process.run(frame, self._served.limits.timeout_s))
                seconds += parts[-1].seconds
        except ProcessLost:
            self._audit.lost(seconds)
        except Exception:  # the process must not be lost; what it does now is not known
            log.exception("an audit failed")
            process.kill()
            self._audit.lost(seconds)
        else:
            logits = np.concatenate([part.logits.array() for part in parts])
            exits = parts[0].logits_by_exit
            by_exit_logits = None if exits is None else exits.array()[0]
            self._adaptive.audited(row, logits, self._served.points, seconds, by_exit_logits)
            self._pool.give_back(process)

    def close(self) -> None:
        """Let no more rows go."""
        if self._timer is not None:
            self._timer.cancel()
