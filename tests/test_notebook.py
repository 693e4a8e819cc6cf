"""The notebook runs from top to bottom, and prints what it holds."""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"-?\d+\.?\d*")


def printed(cell: Any) -> str:
    """What a cell printed; warnings go to stderr and are left out."""
    return "".join(output.text for output in cell.get("outputs", ()) if output.get("name") == "stdout")


@pytest.mark.skipif(find_spec("ipykernel") is None, reason='needs pip install ".[docs]"')
def test_the_notebook_runs_and_prints_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    stored = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    run = nbclient.NotebookClient(
        nbformat.from_dict(stored), timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
    for was, now in zip(stored.cells, run.cells, strict=True):
        assert NUMBER.sub("#", printed(was)) == NUMBER.sub("#", printed(now)), was.source
        numbers, expected = (list(map(float, NUMBER.findall(printed(cell)))) for cell in (now, was))
        assert numbers == pytest.approx(expected, rel=0.05, abs=0.02), was.source  # processors round differently


def test_the_notebook_names_no_machine() -> None:
    text = (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
    assert not re.search(r'"(/|[A-Z]:)\S|/tmp/|/home/', text)
    assert '"name": "stderr"' not in text
