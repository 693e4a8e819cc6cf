"""What becomes of an alarm of the audit: a line in the log, and a proposal for whoever runs the server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from offramp.data.padding import Array
    from offramp.serving.adaptive import Adaptive

log = logging.getLogger("offramp.serving")


@final
class DriftLog:
    """Logs alarms."""

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        """Log that a rung's answers differ more often than its certificate allows."""
        assert adaptive.audit is not None
        monitor = adaptive.audit.monitors[rung]
        facts = {
            "operating_point": adaptive.ladder.rungs[rung].name,
            "in_force": adaptive.point,
            "level": monitor.level,
            "rows": monitor.rows,
            "differ": monitor.losses,
            "agreement_bound": round(monitor.bound, 4),
        }
        log.warning("drift: a point is no longer used, since its answers differ too often", extra={"facts": facts})

    def audited(self, logits: Array, tokens: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
