"""What the answers of a job depend on besides the texts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from offramp.data.file_tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from offramp.data.file_tokenizer import OLD_FILES
from offramp.inference.choose_engine import name_of
from offramp.inference.folder_job.blocks import file_digest
from offramp.inference.predictor import Predictor
from offramp.model.files import find_file
from offramp.types.fingerprint import digest_of_lines
from offramp.types.graph_file import GRAPHS
from offramp.types.model_content import CONFIG_FILE, ModelContent

TOKENIZER_FILES = (TOKENIZER_CONFIG, *OLD_FILES)
"""Beside the vocabulary and its rules: to how many tokens a text is cut, on which side, and what stays one token."""


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
    config = find_file(folder, CONFIG_FILE)
    assert config is not None  # the model was loaded
    content = ModelContent(Path(config).parent)
    paths = list(content.weight_files)
    if engine in GRAPHS:
        graph = find_file(folder, GRAPHS[engine])
        assert graph is not None
        paths = [Path(graph), Path(f"{graph}.data"), Path(graph).with_suffix(".bin")]
    paths += [content.folder / name for name in (CONFIG_FILE, *TOKENIZER_FILES)]
    lines = [f"{path.name} {file_digest(str(path))}" for path in paths if path.exists()]
    return digest_of_lines([*lines, f"tokens {content.tokenizer}"])
