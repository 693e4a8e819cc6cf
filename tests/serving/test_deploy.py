"""What deploy/ and docs/serving.md name is there."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from offramp.cli.serve import serve
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit
from offramp.serving.depth_budget import DepthBudget
from offramp.serving.ladder import Ladder, Rung
from offramp.serving.load_controller import LoadController
from offramp.serving.metrics import Metrics
from offramp.types.problem_types import SINGLE_LABEL

ROOT = Path(__file__).parent.parent.parent


def sample_names() -> set[str]:
    """All samples of a server that has answered and refused something."""
    metrics, running = Metrics(), SimpleNamespace(answered=3.0, begin=0.0, tokenized=1.0, dequeued=2.0, tokens=5)
    ladder = Ladder((Rung("full", 1.0, 0.0), Rung("2x", 0.5, 0.1)), 0, 1)
    served = SimpleNamespace(name="m", engine="onnx", layers_read=(1, 2), points={"2x": None}, default_point="2x")
    pool = SimpleNamespace(restarts=0, idle=[], alive=0, size=1, pids=[])
    audit, alarms, depth = Audit(ladder, 1.0, 0.05, Random(0)), SimpleNamespace(), DepthBudget(ladder, 1.5)
    adaptive = Adaptive(ladder, LoadController(ladder, 0.05), audit, alarms, SINGLE_LABEL, depth)  # type: ignore[arg-type]
    service: Any = SimpleNamespace(served=served, pool=pool, queue=[], rows=0, adaptive=adaptive)
    metrics.service = service
    metrics.row_left(1, "default")
    metrics.row_failed("failed")
    metrics.request_done(("tei", "/predict", 200), 0.1, None, 1, running)  # type: ignore[arg-type]
    metrics.request_done(("tei", "/predict", 400), 0.1, "empty", 0, None)
    names = {re.split("[{ ]", line)[0] for line in metrics.text().decode().splitlines() if not line.startswith("#")}
    return {name for name in names if not name.endswith("_created")}


def test_the_dashboard_reads_metrics_that_exist_and_all_of_them() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "offramp.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    read = {name for expression in expressions for name in re.findall(r"\bofframp_\w+", expression)}
    assert read <= sample_names()
    families = {name for name in sample_names() if name.startswith("offramp_")}
    stems = {re.sub("_(bucket|sum|count)$", "", name) for name in families}
    assert stems == {re.sub("_bucket$", "", name) for name in read}


def test_the_guide_names_every_option_and_every_metric() -> None:
    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    options = {name for option in serve.params for name in option.opts if name.startswith("--")}
    environment = {option.envvar for option in serve.params if option.envvar}
    metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in sample_names() if name.startswith("offramp_")}
    assert [name for name in sorted({*options, *map(str, environment), *metrics}) if f"`{name}" not in guide] == []


def test_the_container_ends_by_signals_and_is_not_root() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert 'ENTRYPOINT ["offramp", "serve"]' in lines  # the exec form: a shell would keep SIGTERM to itself
    assert lines.index("USER 10001") < lines.index('ENTRYPOINT ["offramp", "serve"]')
    assert any(line.startswith("HEALTHCHECK") for line in lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_valid() -> None:
    unit = ROOT / "deploy" / "offramp.service"
    result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert [line for line in result.stderr.splitlines() if "not executable" not in line] == []
