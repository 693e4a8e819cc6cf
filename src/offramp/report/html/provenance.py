"""The provenance of a page: command, versions, machine, model and data."""

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
    """Return names and facts in the order in which the page shows them.

    Args:
        folder: the model's.
        data: the file or data set that the user named; a file's SHA-256 is added.
        trace: of that model on that data.
        command: the command line.
    """
    provenance = trace.provenance
    facts = {
        "command": command,
        "model": str(folder),
        "weights, SHA-256": provenance.get("weights", ""),
        "data": f"{provenance.get('data', data)}, {len(trace)} rows",
        "data, SHA-256": hashlib.sha256(Path(data).read_bytes()).hexdigest() if Path(data).is_file() else "",
        "engine": provenance.get("engine", ""),
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _versions() -> list[str]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return versions
