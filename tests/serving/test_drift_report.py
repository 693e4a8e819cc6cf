"""What is written after an alarm: proposals, traces, lines of the log."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import offramp.serving.drift_report
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit
from offramp.serving.drift_report import DriftReport, proposals_folder, undecided
from offramp.serving.ladder import ladder_of
from offramp.serving.load_controller import LoadController
from offramp.serving.setup import _audit
from offramp.types.operating_point import Certificate, OperatingPoint
from offramp.types.problem_types import SINGLE_LABEL
from offramp.types.proposal import Proposal, trace_path
from offramp.types.trace import Trace
from support.served import served_model

CERTIFICATE = Certificate("agreement", 0.1, 0.05, 0.1, 0.03, 500, "binomial", "onnx-int8", "ab", "0" * 64)
LOOSE = OperatingPoint({"name": "margin"}, (0.2, 0.3), exit_layers=(0, 2, 4), agreement=CERTIFICATE)
SERVED = replace(served_model(), points={"2x": LOOSE})


def drifted(report: DriftReport) -> Adaptive:
    """Let the only rung of a ladder differ until there is an alarm, and report it."""
    ladder = ladder_of(SERVED.points, "2x", None)
    audit = Audit(ladder, 1.0, 0.05, Random(0))
    both = Adaptive(ladder, LoadController(ladder, 0.05), audit, report, SINGLE_LABEL)
    while audit.closed is None:
        audit.draw([{"input_ids": [1]}])
        row = audit.take(0.0, 1)
        assert row is not None
        both.audited(row, np.array([[0, 1], [1, 0]], np.float32), SERVED.points, 0.0)
    return both


def rows(report: DriftReport, count: int, first: float = 0.0) -> None:
    """Keep rows whose logits are all their number, of 2 tokens more each."""
    for number in range(count):
        report.audited(np.full((4, 3), first + number, np.float32), 2 + number)


def test_an_alarm_is_a_line_and_a_proposal_and_none_is_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "offramp")
    report = DriftReport(SERVED, "a model", tmp_path / "new" / "folder")
    both = drifted(report)
    assert both.point == "full"
    report.drifted(both, 1)  # another one in the same second
    report.close()
    paths = sorted((tmp_path / "new" / "folder").iterdir())
    assert len(paths) == 2
    proposals = [Proposal.load(path) for path in paths]
    assert len({proposal.operating_point for proposal in proposals}) == 1
    first = Proposal.load(next(path for path in paths if path.stem.endswith("-2x")))
    assert (first.model, first.weights, first.engine) == ("tiny", "0" * 64, "onnx-int8")
    assert (first.operating_point, first.in_force, first.certificate) == ("2x", "full", CERTIFICATE)
    assert (first.evidence.rows, first.evidence.differing, first.evidence.delta) == (3, 3, 0.05)
    assert first.evidence.agreement_bound <= 0.9
    assert (first.old, set(first.new.values())) == ({0: 0.2, 2: 0.3}, {float("inf")})
    assert first.command.startswith(f"offramp calibrate 'a model' --from-audit {tmp_path}/new/folder/")
    line = next(record for record in caplog.records if "no longer used" in record.getMessage())
    facts: dict[str, Any] = line.__dict__["facts"]
    assert (line.levelname, facts["operating_point"], facts["in_force"]) == ("WARNING", "2x", "full")
    assert (facts["rows"], facts["differing"], facts["level"]) == (3, 3, 0.1)
    assert first.command in caplog.text


def test_a_point_stays_closed_at_the_next_start_while_nobody_has_decided_on_its_proposal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = DriftReport(SERVED, "m", tmp_path)
    drifted(report)
    report.close()
    caplog.clear()
    assert undecided(tmp_path, SERVED) == ["2x"]
    (path,) = tmp_path.glob("*.json")
    assert [record.getMessage() for record in caplog.records] == [
        f"drift: the point 2x stays closed: `offramp calibrate m --from-audit {path}` makes another one of it, and "
        f"without {path} it is used again"
    ]
    caplog.clear()
    assert undecided(tmp_path, replace(SERVED, points={"2x": replace(LOOSE, thresholds=(0.2, 0.4))})) == []
    assert undecided(tmp_path, replace(SERVED, digest="1" * 64)) == []
    assert undecided(tmp_path / "none", SERVED) == []
    assert not caplog.records
    path.write_text("{")
    assert undecided(tmp_path, SERVED) == []
    assert f"{path}, line 1: not JSON" in caplog.text


def test_rows_after_the_alarm_are_a_trace_written_anew_as_they_double_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = DriftReport._write_trace

    def noting(self: DriftReport, path: Path, some: Any) -> None:
        written.append(len(some))
        write(self, path, some)

    monkeypatch.setattr(DriftReport, "_write_trace", noting)
    report = DriftReport(SERVED, "m", tmp_path)
    both = drifted(report)
    rows(report, 250)
    report.audited(np.full((4, 3), np.nan, np.float32), 9)
    report.drifted(both, 1)
    rows(report, 100, 1000.0)
    report.close()
    assert written == [100, 200, 100, 350, 100]
    first, second = (trace_path(path) for path in sorted(tmp_path.glob("*.json"), key=lambda path: len(path.name)))
    trace = Trace.load(first)
    assert trace.logits.shape == (4, 350, 3)
    assert (trace.logits[:, 249] == 249).all()
    assert trace.layer_numbers == [0, 1, 2, 4]
    assert trace.tokens is not None
    assert trace.tokens.tolist() == [*range(2, 252), *range(2, 102)]
    assert trace.provenance == {"engine": "onnx-int8", "data": "audit of tiny", "weights": "0" * 64}
    assert Trace.load(second).logits[0, :, 0].tolist() == [1000.0 + number for number in range(100)]


def test_rows_are_kept_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offramp.serving.drift_report, "MOST_BYTES", 48 * 30)
    report = DriftReport(SERVED, "m", tmp_path)
    drifted(report)
    rows(report, 50)
    report.close()
    (path,) = tmp_path.glob("*.safetensors")
    assert len(Trace.load(path)) == 30


def test_a_folder_that_cannot_be_written_is_a_line_and_the_server_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert proposals_folder("owner/name", None) is None
    assert "owner/name is no folder; --proposals FOLDER names one" in caplog.text
    assert proposals_folder(str(tmp_path), str(file / "below")) is None
    assert f"{file} is no folder; --proposals FOLDER names another one" in caplog.text
    assert proposals_folder(str(tmp_path), None) == tmp_path / "proposals"
    assert proposals_folder("owner/name", str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    caplog.clear()
    report = DriftReport(SERVED, "m", file / "below")  # it was a folder when the server began
    drifted(report)
    rows(report, 100)
    report.close()
    assert f"no proposal in {file / 'below'}" in caplog.text
    silent = DriftReport(SERVED, "m", None)
    drifted(silent)
    silent.close()


def test_points_without_a_certificate_on_agreement_are_named_once_and_not_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    without = replace(LOOSE, agreement=None)
    both = ladder_of({"2x": LOOSE, "keep-99": without}, None, None)
    watch = _audit(both, 0.5, "`command`")
    assert watch is not None
    assert [both.rungs[number].name for number in watch.monitors] == ["2x"]
    (line,) = caplog.records
    assert line.getMessage().startswith("drift of keep-99 is not watched: no certificate")
    assert "`command` with --confidence 0.95 makes them" in line.getMessage()
    assert _audit(both, 0.0, "model") is None
    assert len(caplog.records) == 1  # nobody has asked for an audit
    assert _audit(ladder_of({"2x": without}, None, None), 0.5, "model") is None
