"""What the answers of a job depend on besides the texts."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from offramp.inference.choose_engine import name_of
from offramp.inference.predictor import Predictor
from offramp.model.files import find_file
from offramp.types.graph_file import GRAPHS
from offramp.types.model_content import ModelContent


def identity_of(folder: str | os.PathLike[str], predictor: Predictor, scores: bool) -> dict[str, Any]:
    """Return what the answers of a predictor depend on besides the texts, as plain data.

    Args:
        folder: of the model, or a hub name.
        predictor: loaded from there.
        scores: whether every label has its probability.
    """
    point = None if predictor.point is None else predictor.point.to_json()
    return {
        "model": os.fspath(folder),
        "model_sha256": model_digest(folder, name_of(predictor.engine.name)),
        "engine": predictor.engine.name,
        "operating_point": json.loads(json.dumps(point)),
        "scores": scores,
    }


def model_digest(folder: str | os.PathLike[str], engine: str | None) -> str:
    """Return a digest of the files that an engine answers with.

    Args:
        folder: of the model, or a hub name.
        engine: a name of ENGINES; None = one that is not offramp's.
    """
    config = find_file(folder, "config.json")
    assert config is not None  # the model was loaded
    content = ModelContent(Path(config).parent)
    digest = hashlib.sha256(Path(config).read_bytes())
    digest.update((content.tokenizer or "").encode())
    paths = list(content.weight_files)
    if engine in GRAPHS:
        graph = find_file(folder, GRAPHS[engine])
        assert graph is not None
        paths = [Path(graph), *filter(Path.exists, (Path(f"{graph}.data"), Path(graph).with_suffix(".bin")))]
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
