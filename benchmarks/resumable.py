"""What a benchmark has measured so far, in a file, so that a run goes on where it was stopped."""

from __future__ import annotations

import json
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
