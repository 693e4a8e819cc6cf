"""The server's log on standard error: lines of text or of JSON. Nothing that happens to it stops an answer.

Lines are written by a thread of their own. Where they cannot be written (a full disk, a closed pipe) or not fast enough
(a reader that stands still), they are dropped.

At level "info" a request has a line only where its answer is a 500 or a 504: at a thousand answers a second a line for
each would be 20 GB a day and cost more than a row that leaves before the first layer; a server that is full or ends
would drown what matters. The metrics count all of them. At "debug" each request has its line.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from queue import Full, Queue
from threading import Thread
from typing import Any, final

import msgspec

WAITING_LINES = 10_000
OTHERS = ("uvicorn", "asyncio", "opentelemetry")
"""Libraries whose errors are logged too."""
END_S = 1.0
"""How long the end of the process waits for the last lines."""


@final
class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the facts of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


@final
class TextLines(logging.Formatter):
    """Time, level, message, and the facts of the record as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts = "".join(f" {name}={value}" for name, value in getattr(record, "facts", {}).items())
        line = f"{_time(record)} {record.levelname.lower()} {_printable(record.getMessage() + facts)}"
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


def _printable(text: str) -> str:
    """Escape what could begin another line, or command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")


@final
class _Dropping(logging.handlers.QueueHandler):
    """Drops lines that do not fit into the queue; they are formatted by the thread that writes."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logging_to_stderr(form: str, level: str) -> Iterator[None]:
    """Write the lines of offramp, and the errors of OTHERS, as long as the context lasts.

    Args:
        form: "text" or "json".
        level: "debug", "info", "warning" or "error".
    """
    lines: Queue[logging.LogRecord | None] = Queue(WAITING_LINES)
    formatter = JsonLines() if form == "json" else TextLines()
    writer = Thread(target=_write, args=(lines, formatter, sys.stderr.fileno()), daemon=True)
    for name, least in (
        ("offramp", level.upper()),
        ("uvicorn", "ERROR"),
        ("asyncio", "ERROR"),
        ("opentelemetry", "ERROR"),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Dropping(lines)], False
        logger.setLevel(least)
    writer.start()
    try:
        yield
    finally:
        with suppress(Full):
            lines.put(None, timeout=END_S)
        writer.join(END_S)


def _write(lines: Queue[logging.LogRecord | None], formatter: logging.Formatter, file: int) -> None:
    """Write lines until None; past Python's own buffer, whose lock would hold up the end of the process."""
    while (record := lines.get()) is not None:
        with suppress(Exception):
            os.write(file, (formatter.format(record) + "\n").encode("utf-8", "backslashreplace"))
