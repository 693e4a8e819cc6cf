"""A short soak of the real server: answers stay right, and no process grows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_memory_stays_flat_under_mixed_traffic(tmp_path: Path) -> None:
    options = ["--seconds", "20", "--every", "1", "--work", str(tmp_path), "--results", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "serving_soak.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "serving_soak.json").read_text())
    assert set(result["verdicts"]) == {"supervisor", "HTTP", "inference 1", "inference 2"}
    assert result["checked"]["right"] > 100
    assert {"200", "400", "404", "422"} <= set(result["others"])
