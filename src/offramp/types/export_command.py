"""The command that makes an exported graph. Needs no torch and no runtime."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from offramp.errors import InvalidInput
from offramp.types.graph_file import ABOUT, GRAPHS, RANGES_FILE, read_metadata


def export_options(engine: str, precision: str = "float32") -> str:
    """Return the options of `offramp export` that make a graph of an engine, each with a space before it."""
    int8 = " --int8 --data FILE" if precision == "int8" else ""
    return {"onnx": "", "onnx-int8": " --int8", "openvino": f" --openvino{int8}"}[engine]


def export_command(folder: str | os.PathLike[str], engine: str) -> str:
    """Return the command that makes a graph, of OpenVINO's in the precision of the one there; int8 may need data."""
    option = export_options(engine)
    path = Path(folder, GRAPHS[engine])
    if engine == "onnx-int8" and not Path(folder, RANGES_FILE).exists():
        option += " --data FILE"
    elif engine == "openvino" and path.exists():
        with suppress(InvalidInput):
            option = export_options(engine, json.loads(read_metadata(path)[ABOUT])["precision"])
    return f"`offramp export {folder if Path(folder).is_dir() else 'FOLDER'}{option}`"
