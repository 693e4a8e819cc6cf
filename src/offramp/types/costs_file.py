"""The cost tables of a model's folder, of one set of weights and of any machine. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput
from offramp.types.cost_table import CostTable
from offramp.types.file_format import newer_format
from offramp.types.model_content import ModelContent
from offramp.types.whole_file import whole_file

COSTS_FILE = "costs.json"
COSTS_FORMAT = 1
"""The newest format of COSTS_FILE: {"format": 1, "weights": fingerprint, "tables": [the fields of each table]}."""


def read_costs(folder: str | os.PathLike[str]) -> tuple[CostTable, ...] | None:
    """Return the cost tables of a local folder's model; () where there are none, None where they are of other weights.

    Raises:
        InvalidInput: the file cannot be read, or its format is newer than COSTS_FORMAT.
    """
    path = Path(folder) / COSTS_FILE
    if not path.exists():
        return ()
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        readable = data["format"] <= COSTS_FORMAT
        tables = tuple(CostTable(**fields) for fields in data["tables"]) if readable else ()
        weights = data["weights"] if readable else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInput(f"{path}: not cost tables that offramp wrote ({reason}); remove it") from None
    if not readable:
        raise newer_format(path, data["format"], COSTS_FORMAT)
    return tables if ModelContent(path.parent).weights() == weights else None


def save_costs(folder: str | os.PathLike[str], tables: Sequence[CostTable]) -> None:
    """Write cost tables beside a model's weights, with those that are there.

    A table replaces the one of the same machine, engine, batch size, threads and workers. Tables of other weights are
    removed.

    Raises:
        InvalidInput: the folder has no weights; the file that is there cannot be read (see `read_costs`).
    """
    weights = ModelContent(Path(folder)).weights()
    if weights is None:
        raise InvalidInput(f"{os.fspath(folder)}: no weights as safetensors; cost tables are kept beside a model's")
    by_key = {_key(table): table for table in (*(read_costs(folder) or ()), *tables)}
    data = {"format": COSTS_FORMAT, "weights": weights, "tables": [asdict(table) for table in by_key.values()]}
    with whole_file(Path(folder) / COSTS_FILE) as file:
        file.write(json.dumps(data, indent=2) + "\n")


def _key(table: CostTable) -> tuple[str, str, int, int | None, int]:
    return table.machine, table.engine, table.batch_size, table.threads, table.workers
