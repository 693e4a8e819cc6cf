"""Runs that go on where they were stopped: what was measured so far, in a file, and locks on the parts of a run."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_state(file: Path, empty: dict[str, Any]) -> dict[str, Any]:
    """Return what a file has; `empty` where there is none."""
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else empty
    return state


def save_state(file: Path, state: dict[str, Any]) -> None:
    """Write a file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(state, indent=1))


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Whether this process may work on what a lock file stands for; the system frees it when the process ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
