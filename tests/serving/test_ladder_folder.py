"""`offramp serve --ladder`: which folders it takes, and with which engine; the rest is one line."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from offramp.errors import InvalidInput
from offramp.serving.ladder_folder import engine_of, read_rungs, watched_rungs
from offramp.serving.settings import ModelSettings, ServerSettings
from offramp.serving.setup import _read
from offramp.types.operating_point import Certificate, Measured, OperatingPoint, write_points
from support.command_line import offramp
from support.graphs import copied

AGREEMENT = Certificate("agreement", 0.05, 0.05, 0.05, 0.0, 500, "binomial", "onnx-int8", "ab")
NEVER = math.inf
MEASURED = Measured(None, None, None, 1.0, 1.0, 4, 500)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A folder with both graphs, which run entropy at all exits."""
    return copied(exported, tmp_path / "model")


def save(folder: Path, policy: str = "entropy", agreement: Certificate | None = AGREEMENT) -> None:
    """Save a ladder of two rungs below full depth, beside the default point."""
    rungs = {
        name: OperatingPoint({"name": policy}, (threshold,) * 3, measured=measured, agreement=agreement)
        for name, threshold, measured in (("keep-99", 0.9, replace(MEASURED, mean_exit=3.0)), ("4x", 0.0, MEASURED))
    }
    default = OperatingPoint({"name": "entropy"}, (0.5,) * 3)
    write_points({"default": default, **rungs}, folder / "operating_points.json")


NO_LADDER = "has no ladder; `offramp calibrate {} --data FILE --ladder --engine onnx-int8` saves one"
OTHER = (
    "the ladder's certificates hold for onnx-int8, not for torch; `offramp calibrate {} --data FILE --ladder"
    " --engine torch` makes some for it, --allow-other-engine runs it without them"
)


@pytest.mark.parametrize(
    ("policy", "options", "line"),
    [
        (None, (), NO_LADDER),
        ("entropy", ("--engine", "torch"), OTHER),
        ("entropy", ("--floor", "2x"), "--floor '2x' is no point of the ladder; it has: full, keep-99, 4x"),
        ("entropy", ("--operating-point", "4x", "--floor", "keep-99"), "'keep-99' is stricter than the point without"),
        ("entropy", ("--depth-budget", "4"), "--depth-budget must be below the model's 4 layers; got 4"),
        ("margin", (), "onnx-int8 does not run the ladder: the graph runs the policy entropy, the operating point is"),
    ],
)
def test_what_no_server_can_run_is_one_line_before_any_process_starts(
    policy: str | None, options: tuple[str, ...], line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if policy is not None:
        save(folder, policy)

    class Reading:
        """Reads the folder as the process that speaks HTTP does, and starts nothing."""

        def __init__(self, settings: ServerSettings, listening: socket.socket) -> None:
            listening.close()
            self.settings = settings

        def run(self) -> int:
            _read(self.settings.model, self.settings.limits, self.settings.ladder)
            return 0

    monkeypatch.setattr("offramp.serving.supervisor.Supervisor", Reading)
    done = offramp("serve", folder, "--port", "0", "--ladder", *options)
    assert (done.exit_code, done.stdout) == (1, "")
    (only,) = done.stderr.splitlines()
    assert line.format(folder) in only


def test_a_folder_without_a_ladder_ends_the_command(folder: Path) -> None:
    program = [sys.executable, "-m", "offramp", "serve", str(folder), "--host", "127.0.0.1", "--port", "0", "--ladder"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (only,) = done.stderr.splitlines()
    assert only.endswith(f" error {folder} {NO_LADDER.format(folder)}")


@pytest.mark.parametrize("option", ["--floor=4x", "--latency-target-ms=5", "--audit-share=0.1", "--depth-budget=3"])
def test_options_of_the_ladder_need_it(option: str, folder: Path) -> None:
    done = offramp("serve", folder, "--port", "0", option)
    assert (done.exit_code, done.output.splitlines()[-1]) == (2, f"Error: {option.split('=')[0]} goes with --ladder")


@pytest.mark.parametrize(
    ("recorded", "asked", "engine"),
    [
        ("onnx-int8", "auto", "onnx-int8"),
        ("onnx-float32", "auto", "onnx"),
        ("torch-float32", "auto", "torch"),
        ("torch-float32", "torch", "torch"),
    ],
)
def test_the_engine_of_the_certificates_runs_the_ladder(recorded: str, asked: str, engine: str, folder: Path) -> None:
    save(folder, agreement=replace(AGREEMENT, engine=recorded))
    assert engine_of(ModelSettings(str(folder), engine=asked), read_rungs(str(folder))).engine == engine
    (folder / "model.int8.onnx").unlink()
    if recorded == "onnx-int8":
        with pytest.raises(InvalidInput, match=r"onnx-int8 does not run the ladder: .* `offramp export .* --int8`"):
            engine_of(ModelSettings(str(folder)), read_rungs(str(folder)))


def test_a_ladder_without_certificates_takes_any_engine_and_another_engine_takes_certificates_away(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, agreement=None)
    for engine in ("torch", "onnx", "onnx-int8"):
        rungs = read_rungs(str(folder))
        assert engine_of(ModelSettings(str(folder), engine=engine), rungs).engine == engine
        assert watched_rungs(str(folder), engine, allow_other_engine=False) == rungs
    save(folder)
    assert read_rungs(str(folder)) == watched_rungs(str(folder), "onnx-int8", allow_other_engine=False)
    with pytest.raises(InvalidInput, match=r"hold for onnx-int8, not for torch-float32; .* --engine torch` makes some"):
        watched_rungs(str(folder), "torch-float32", allow_other_engine=False)
    assert caplog.messages == []
    other = watched_rungs(str(folder), "torch-float32", allow_other_engine=True)
    assert [point.agreement for point in other.values()] == [None, None]
    assert caplog.messages == [
        "the ladder's certificates hold for onnx-int8, not for torch-float32: its drift is not watched"
    ]
    allowed = ModelSettings(str(folder), engine="torch", allow_other_engine=True)
    assert engine_of(allowed, read_rungs(str(folder))).engine == "torch"


def test_a_point_whose_cost_is_not_known_is_no_rung(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = {
        "keep-99.5": OperatingPoint({"name": "entropy"}, (-NEVER, NEVER, NEVER)),  # which may be looser than any other
        "keep-99": OperatingPoint({"name": "entropy"}, (NEVER,) * 3),  # as much as full depth
        "4x": OperatingPoint({"name": "entropy"}, (0.0,) * 3, measured=MEASURED),
    }
    write_points(points, folder / "operating_points.json")
    assert list(read_rungs(str(folder))) == list(watched_rungs(str(folder), "onnx-int8", False)) == ["keep-99", "4x"]
    (line,) = caplog.messages
    assert line.startswith("left out of the ladder: keep-99.5, whose cost is not measured")
