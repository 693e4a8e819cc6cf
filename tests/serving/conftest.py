"""Servers that run for all tests of clients: one of texts with three classes, one of pairs with two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.models import save_folder, tiny_model
from support.server import serving


@pytest.fixture(scope="session")
def url(exported: Path) -> Iterator[str]:
    with serving(exported, "--engine", "onnx-int8", "--workers", "1", "--served-model-name", "tiny") as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder: pairs, two classes; no graph, no points."""
    return save_folder(tmp_path_factory.mktemp("pairs") / "model", tiny_model(num_labels=2))


@pytest.fixture(scope="session")
def url_of_pairs(pairs: Path) -> Iterator[str]:
    with serving(pairs, "--engine", "torch", "--threads", "1", "--served-model-name", "tiny") as server:
        yield f"http://127.0.0.1:{server.port}"
