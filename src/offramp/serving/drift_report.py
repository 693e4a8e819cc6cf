"""What becomes of an alarm of the audit: a line in the log, a proposal, and a trace of the rows audited after it.

Nothing of the model is changed: `offramp calibrate --from-audit` makes a point of a proposal. Files are written by a
thread of their own, each whole, and a proposal never in place of another one. They hold no texts and no token ids.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from offramp.data.padding import Array
from offramp.errors import InvalidInput, one_line
from offramp.serving.served import Served
from offramp.types.operating_point import OperatingPoint
from offramp.types.proposal import Evidence, Proposal, trace_path
from offramp.types.whole_file import whole_path

if TYPE_CHECKING:
    from offramp.serving.adaptive import Adaptive

log = logging.getLogger("offramp.serving")

FOLDER = "proposals"
"""Of proposals, in a model's folder."""
FIRST_ROWS = 100
"""A trace is written with so many rows, and whenever they have doubled."""
MOST_ROWS, MOST_BYTES = 25_600, 64_000_000
"""Of the rows that are kept: what comes after them is not."""


@final
@dataclass(frozen=True)
class _Row:
    """A row audited after an alarm: (E, C) logits of the exits that are read, and its tokens."""

    logits: Array
    tokens: int


@final
class DriftReport:
    """Reports the alarms of a server.

    Attributes:
        folder: of the proposals; None = none are written.
    """

    def __init__(self, served: Served, model: str, folder: Path | None) -> None:
        self.folder = folder
        self._served, self._model = served, model
        self._rows: list[_Row] = []
        self._traces: list[tuple[Path, int]] = []  # of each proposal, from which of the rows on
        self._writer = ThreadPoolExecutor(1, "offramp-proposals")

    def drifted(self, adaptive: Adaptive, rung: int) -> None:
        """Log that a rung's answers differ more often than its certificate allows, and write a proposal."""
        proposal = self._proposal(adaptive, rung)
        facts = {
            "operating_point": proposal.operating_point,
            "in_force": proposal.in_force,
            "level": proposal.certificate.bound,
            "rows": proposal.evidence.rows,
            "differing": proposal.evidence.differing,
            "agreement_bound": round(proposal.evidence.agreement_bound, 4),
        }
        log.warning("drift: a point is no longer used, since its answers differ too often", extra={"facts": facts})
        if self.folder is not None:
            self._writer.submit(self._write, self.folder, proposal, len(self._rows))

    def audited(self, logits: Array, tokens: int) -> None:
        """Keep the logits of a row that was audited after an alarm; rows with an exit that is not finite are left out.

        Args:
            logits: (E, C) of the exits that are read.
            tokens: of the row.
        """
        most = min(MOST_ROWS, MOST_BYTES // max(logits.nbytes, 1))
        if self.folder is None or len(self._rows) >= most or not np.isfinite(logits).all():
            return
        self._rows.append(_Row(logits.copy(), tokens))
        self._writer.submit(self._write_traces, len(self._rows), False)

    def close(self) -> None:
        """Write the traces as they are, and end."""
        self._writer.submit(self._write_traces, len(self._rows), True)
        self._writer.shutdown()

    def _proposal(self, adaptive: Adaptive, rung: int) -> Proposal:
        assert adaptive.audit is not None
        monitor, names = adaptive.audit.monitors[rung], adaptive.ladder.names
        name, strict = names[rung], names[rung - 1]
        served = self._served
        point = served.points[name]
        assert point.agreement is not None
        return Proposal(
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            served.name,
            served.digest,
            served.engine,
            name,
            strict,
            point.agreement,
            Evidence(monitor.rows, monitor.losses, monitor.bound, monitor.delta),
            _by_layer(served, point),
            _by_layer(served, served.points.get(strict)),
            f"offramp calibrate {shlex.quote(self._model)} --from-audit PROPOSAL",
        )

    # --- in the thread that writes ---------------------------------------------------------------------------------

    def _write(self, folder: Path, proposal: Proposal, first_row: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = _free_path(folder, proposal)
            command = proposal.command.replace("PROPOSAL", shlex.quote(os.fspath(path)))
            replace(proposal, command=command).save(path)
        except (OSError, InvalidInput) as error:
            log.error("drift: no proposal in %s (%s); --proposals FOLDER names another one", folder, one_line(error))
            return
        self._traces.append((path, first_row))
        log.warning("drift: %s is a proposal; `%s` makes a point of it", path, command)

    def _write_traces(self, count: int, ends: bool) -> None:
        """Write the traces whose rows have come to one of the numbers of rows at which they are, or all of them."""
        for path, first in self._traces:
            rows = count - first
            if rows > 0 and (ends or _is_doubled(rows)):
                try:
                    self._write_trace(trace_path(path), self._rows[first:count])
                except (OSError, InvalidInput, SafetensorError) as error:
                    log.error("drift: %s cannot be written: %s", trace_path(path), one_line(error))

    def _write_trace(self, path: Path, rows: Sequence[_Row]) -> None:
        """Write rows in the format of `offramp.types.trace.Trace`, which needs torch."""
        served = self._served
        about = {"engine": served.engine, "data": f"audit of {served.name}", "weights": served.digest}
        arrays = {
            "logits": np.ascontiguousarray(np.stack([row.logits for row in rows], axis=1)),  # (E, N, C)
            "layers": np.array(served.layers_read, np.int64),
            "tokens": np.array([row.tokens for row in rows], np.int64),
        }
        with whole_path(path) as unfinished:
            save_file(arrays, unfinished, {"problem_type": served.config.problem_type, "about": json.dumps(about)})


def _is_doubled(rows: int) -> bool:
    """Return whether so many rows are FIRST_ROWS times a power of 2."""
    times, left = divmod(rows, FIRST_ROWS)
    return left == 0 and times & (times - 1) == 0


def _free_path(folder: Path, proposal: Proposal) -> Path:
    """Return a path that no file has, by the time and the point of a proposal."""
    time = proposal.time.partition("+")[0].replace("-", "").replace(":", "")
    stem, number = f"{time}Z-{proposal.operating_point}", 1
    path = folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


def _by_layer(served: Served, point: OperatingPoint | None) -> dict[int, float]:
    """Return a point's thresholds by layer number; None = full depth."""
    layers = served.config.layers
    if point is None:
        return dict.fromkeys(layers[:-1], float("inf"))
    return dict(zip(point.layers_read(layers)[:-1], point.thresholds, strict=True))


def undecided(folder: Path, served: Served) -> list[str]:
    """Return the names of points that drifted under earlier servers and are as they were; log their proposals."""
    names = []
    for path in sorted(folder.glob("*.json")):
        try:
            proposal = Proposal.load(path)
        except InvalidInput as error:
            log.warning("drift: %s", one_line(error))
            continue
        point = served.points.get(proposal.operating_point)
        if point is not None and served.digest == proposal.weights and _by_layer(served, point) == proposal.old:
            names.append(proposal.operating_point)
            log.warning(
                "drift: the point %s stays closed: `%s` makes another one of it, and without %s it is used again",
                proposal.operating_point,
                proposal.command,
                path,
            )
    return names


def proposals_folder(model: str, option: str | None) -> Path | None:
    """Return the folder for a model's proposals; None, with a line in the log, where there is no way to write any.

    Args:
        model: its folder, or a hub name.
        option: the folder that was named; None = `FOLDER` in the model's.
    """
    if option is None and not Path(model).is_dir():
        log.warning("drift: no proposals are written, since %s is no folder; --proposals FOLDER names one", model)
        return None
    folder = Path(model, FOLDER) if option is None else Path(option)
    near = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        reason = "not writable" if near.is_dir() else "no folder"
        log.warning(
            "drift: no proposals are written, since %s is %s; --proposals FOLDER names another one", near, reason
        )
        return None
    return folder
