"""Every file of examples/serving runs against a server: the URL is the only change for a client."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "serving").glob("*.py"))
TWO_CLASSES = ("cohere_rerank", "openai_decision", "openai_moderation", "systemone_choice", "tei_rerank")
LABELS = {"openai_decision": ["LABEL_0", "LABEL_1"], "systemone_choice": ["LABEL_0", "LABEL_1"]}
CLIENTS = {
    "cohere": "cohere",
    "triton": "tritonclient",
    "openai": "openai",
    "systemone": "typesafe_sdk",
    "vllm": "httpx",
    "tei": "httpx",
    "kserve": "httpx",
}


@pytest.fixture
def address(path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a server whose model the example's client can use."""
    url: str = request.getfixturevalue("url_of_pairs" if path.stem in TWO_CLASSES else "url")
    return url


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_a_client_needs_another_url_and_nothing_else(
    path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = CLIENTS.get(path.stem.partition("_")[0])
    if client is not None and find_spec(client) is None:
        pytest.skip(f"{client} is not installed")
    model = ["tiny"] if "argv[1:]" in path.read_text() else []
    monkeypatch.setattr(sys, "argv", [str(path), address, *LABELS.get(path.stem, model)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
