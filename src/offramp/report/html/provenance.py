"""What made a page, on what machine, of which model and which data."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from offramp.types.trace import Trace

PACKAGES = ("offramp", "torch", "transformers", "onnxruntime")


def environment(folder: Path, data: str, trace: Trace, command: str) -> dict[str, str]:
    """Names and facts, in the order in which they are shown.

    Args:
        folder: the model's.
        data: as the user named it; of a file its SHA-256 is told.
        trace: of that model on that data.
        command: what was typed.
    """
    about = trace.provenance
    found = {
        "command": command,
        "model": str(folder),
        "weights, SHA-256": about.get("weights", ""),
        "data": f"{about.get('data', data)}, {len(trace)} rows",
        "data, SHA-256": hashlib.sha256(Path(data).read_bytes()).hexdigest() if Path(data).is_file() else "",
        "engine": about.get("engine", ""),
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return {name: fact for name, fact in found.items() if fact}


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
