"""Drift from end to end: a server, an alarm, its proposal, the point that is made of it, the server again."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from offramp.types.operating_point import Certificate, Measured, OperatingPoint, read_points, write_points
from offramp.types.proposal import Proposal, trace_path
from offramp.types.trace import Trace
from support.command_line import offramp
from support.graphs import copied
from support.models import texts
from support.server import Server, alive, serving

LEVEL = 0.05
SERVE = ("--engine", "onnx-int8", "--workers", "1", "--ladder", "--operating-point", "2x", "--audit-share", "1")


def with_ladder(exported: Path, folder: Path) -> Path:
    """Copy a model's folder, with two points: "2x" answers after the first layer whatever it is unsure of."""
    copied(exported, folder)
    certificate = Certificate("agreement", LEVEL, 0.05, LEVEL, 0.0, 500, "binomial", "onnx-int8", "ab")
    measured = Measured(None, None, None, 1.0, 1.0, 4, 500)
    points = {
        "full": OperatingPoint({"name": "entropy"}, (float("inf"),) * 3, measured=replace(measured, mean_exit=4.0)),
        "2x": OperatingPoint({"name": "entropy"}, (0.0,) * 3, measured=measured, agreement=certificate),
    }
    write_points(points, folder / "operating_points.json")
    return folder


def ask(server: Server, rows: list[str]) -> None:
    body = json.dumps({"inputs": [[row] for row in rows]}).encode()
    request = Request(f"http://127.0.0.1:{server.port}/predict", body, {"content-type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        assert len(json.load(answer)) == len(rows)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_from_traffic_that_drifts_to_another_point(exported: Path, tmp_path: Path) -> None:
    folder = with_ladder(exported, tmp_path / "model")
    log = tmp_path / "log"
    rows = texts(400, seed=3)
    with log.open("w") as lines, serving(folder, *SERVE, stderr=lines) as server:
        assert server.metric('offramp_operating_point{operating_point="2x"}') == 1
        assert server.metric('offramp_agreement_bound{operating_point="2x"}') == 1
        end, start = time.monotonic() + 20, 0
        while server.metric('offramp_audit_rows_total{outcome="audited"}') < 330 and time.monotonic() < end:
            ask(server, rows[start % 400 : start % 400 + 20])
            start += 20
        # 1) the alarm: the stricter point answers, the metrics say so, the proposal is there
        assert server.metric('offramp_drift_alarms_total{operating_point="2x"}') == 1
        assert server.metric('offramp_operating_point{operating_point="full"}') == 1
        assert server.metric('offramp_agreement_bound{operating_point="2x"}') <= 1 - LEVEL
        (path,) = (folder / "proposals").glob("*.json")
        for pid in server.pids("http_process"):
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        server.process.send_signal(signal.SIGTERM)
        while alive(server.process.pid) and time.monotonic() < end:
            time.sleep(0.02)
    assert "a point is no longer used" in log.read_text()
    written = log.read_text() + path.read_text()
    assert not any(row in written for row in rows if len(row.split()) > 3)
    # 2) the evidence, and the trace of the rows after it
    proposal, trace = Proposal.load(path), Trace.load(trace_path(path))
    assert (proposal.operating_point, proposal.in_force) == ("2x", "full")
    assert proposal.evidence.differing / proposal.evidence.rows > LEVEL
    assert len(trace) >= 200
    assert trace.provenance["engine"] == proposal.engine == "onnx-int8"
    # 3) the point that is made of it
    done = json.loads(offramp("calibrate", folder, "--from-audit", path, "--json").output)
    assert done["done"] == f"certified on {len(trace)} rows that were audited after the alarm"
    point = read_points(folder / "operating_points.json")["2x"]
    assert point.agreement is not None
    assert (point.agreement.level, point.agreement.rows) == (LEVEL, len(trace))
    assert point.agreement.observed < LEVEL
    assert len(set(point.thresholds)) == 1
    assert 0 < point.thresholds[0] < 1
    again = offramp("calibrate", folder, "--from-audit", path)
    assert again.exit_code == 1
    assert "the point '2x' in" in again.output
    # 4) the server again, with it
    with serving(folder, *SERVE) as server:
        ask(server, rows[:20])
        assert server.metric('offramp_operating_point{operating_point="2x"}') == 1


def test_without_rows_the_thresholds_of_the_proposal_are_taken(exported: Path, tmp_path: Path) -> None:
    folder = with_ladder(exported, tmp_path / "model")
    points = read_points(folder / "operating_points.json")
    strict = OperatingPoint({"name": "entropy"}, (0.9, 0.8, 0.7), measured=points["2x"].measured)
    write_points({**points, "keep-99": strict}, folder / "operating_points.json")
    evidence = {"rows": 9, "differing": 8, "agreement_bound": 0.5, "delta": 0.05}
    data = {
        **{"format": 1, "time": "2026-11-28T09:30:00+00:00", "model": "m", "engine": "onnx-int8", "command": ""},
        "weights": "of others",
        "operating_point": "2x",
        "in_force": "keep-99",
        "certificate": points["2x"].to_json()["agreement"],
        "evidence": evidence,
        "thresholds": {"old": {"1": 0.0, "2": 0.0, "3": 0.0}, "new": {"1": 0.9, "2": 0.8, "3": 0.7}},
    }
    path = tmp_path / "proposal.json"
    path.write_text(json.dumps(data))
    refused = offramp("calibrate", folder, "--from-audit", path)
    assert "weights: the proposal is of other weights than those in" in refused.output
    assert refused.exit_code == 1
    wrong = offramp("calibrate", folder, "--from-audit", path, "--speedup", "2")
    assert wrong.exit_code == 2
    assert "leave out --speedup" in wrong.output
    from offramp.inference.onnx.metadata import weights_digest

    data["weights"] = weights_digest(folder)
    old = data["thresholds"]["old"]
    for new, line in ((old, "they are the old ones"), ({"1": 0.9, "17": 0.7}, "exit_layers are 3 increasing layer")):
        path.write_text(json.dumps({**data, "thresholds": {"old": old, "new": new}}))
        refused = offramp("calibrate", folder, "--from-audit", path)
        assert f"{path}: thresholds: new: {line}" in refused.output.replace("\n", " ")
        assert refused.exit_code == 1
    path.write_text(json.dumps(data))
    done = offramp("calibrate", folder, "--from-audit", path, "--name", "sure")
    assert done.exit_code == 0
    assert "sure: the proposal's new thresholds: there is no proposal.safetensors of rows audited" in done.output
    saved = read_points(folder / "operating_points.json")
    assert saved["sure"].thresholds == (0.9, 0.8, 0.7)
    assert saved["sure"].measured == strict.measured
    assert saved["2x"].thresholds == (0.0, 0.0, 0.0)
    path.write_text(json.dumps({**data, "in_force": "full"}))  # not its thresholds
    offramp("calibrate", folder, "--from-audit", path)
    saved = read_points(folder / "operating_points.json")
    assert (saved["2x"].thresholds, saved["2x"].measured, saved["2x"].agreement) == ((0.9, 0.8, 0.7), None, None)
