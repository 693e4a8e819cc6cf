"""What every result says of where it comes from."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

MODULES = {"scikit-learn": "sklearn"}


def provenance() -> dict[str, object]:
    """Command, date, versions and machine of this run."""
    packages = ("torch", "transformers", "numpy", "scikit-learn", "onnxruntime", "openvino", "nncf", "ctranslate2")
    installed = (name for name in packages if find_spec(MODULES.get(name, name)) is not None)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in installed},
        },
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def as_lines(about: dict[str, object]) -> str:
    """The same as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in dict(about["versions"]).items())  # type: ignore[call-overload]
    return f"`{about['command']}`, {about['date']}; {versions}; {about['processor']}, {about['threads']} threads."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
