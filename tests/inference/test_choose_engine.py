"""Which engine "auto" takes, by cost tables written by hand; and on which engines a certificate holds."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.errors import InvalidInput
from offramp.inference import choose_engine as module
from offramp.inference.choose_engine import choose_engine
from offramp.inference.load_engine import load_engine
from offramp.inference.point_check import check_engine_of
from offramp.inference.predictor import Predictor
from offramp.types.cost_table import CostTable, processor
from offramp.types.costs_file import COSTS_FILE, save_costs
from offramp.types.operating_point import Certificate, Measured, OperatingPoint
from support.command_line import offramp
from support.models import LAYERS, save_folder, texts, tiny_model

HERE = processor()
LAYERS_TIMED = tuple(range(1, LAYERS + 1))


def table(engine: str, *ms: float, **other: Any) -> CostTable:
    fields = {"batch_size": 1, "tokens": 12.5, "machine": HERE, "threads": 1, "workers": 2}
    return CostTable(LAYERS_TIMED, ms, 0.0, engine, **{**fields, **other})


# int8 is fastest at full depth, float32 at the first layers
TABLES = (
    table("torch-float32", 4, 8, 12, 16, threads=2, workers=1),
    table("onnx-float32", 1, 3, 5, 7),
    table("onnx-int8", 2, 3, 4, 5),
    table("onnx-int8", 0.2, 0.3, 0.4, 0.5, machine="another"),
    table("onnx-int8", 3, 3, 3, 3, batch_size=32, threads=2, workers=1),
    table("torch-float32", 2, 2, 2, 2, batch_size=32, threads=2, workers=1),
    table("later-float4", 0.1, 0.1, 0.1, 0.1),
)


def point(engine: str | None, mean_exit: float = 4.0, certified: bool = False) -> OperatingPoint:
    about = {} if engine is None else {"engine": engine}
    certificate = Certificate("quality", 0.01, 0.05, 0.01, 0.0, 500, "binomial", engine, "ab") if certified else None
    measured = Measured(None, None, None, None, mean_exit, LAYERS, 100, about)
    return OperatingPoint({"name": "fixed"}, (4.0,) * 3, measured=measured, certificate=certificate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("chosen") / "model", tiny_model())


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Engines that cannot run here, with the reason."""
    reasons: dict[str, str] = {}
    monkeypatch.setattr(module, "fault", lambda folder, engine, point, recorded: reasons.get(engine))
    return reasons


MEASURED = "the fastest measured here"


@pytest.mark.parametrize(
    ("at", "without", "asked", "expected"),
    [
        # a certificate holds for its own engine, whatever is faster
        (point("torch-float32", certified=True), (), {}, ("torch", None, "certificate")),
        (point("onnx-float32", certified=True), (), {}, ("onnx", None, "certificate")),
        (point("onnx-float32", certified=True), ("onnx",), {}, ("onnx", None, "certificate")),  # loading says why not
        (point("onnx-float32", certified=True), ("onnx",), {"allow_other_engine": True}, ("onnx-int8", 1, MEASURED)),
        (point("onnx-float32", certified=True), (), {"allow_other_engine": True}, ("onnx", None, "certificate")),
        # the fastest that was measured on this machine for the batch size
        (None, (), {}, ("onnx-int8", 1, f"{MEASURED} for single rows, 5 ms a sample with 2 workers of 1 thread")),
        (point("onnx-int8", 1.5), (), {}, ("onnx", 1, f"{MEASURED} for single rows, 2 ms")),
        (point("torch-float32"), ("onnx-int8",), {}, ("onnx", 1, MEASURED)),
        (None, ("onnx", "onnx-int8"), {}, ("torch", 2, f"{MEASURED} for single rows, 16 ms a sample with 2 threads")),
        (None, (), {"batch_size": 32}, ("torch", 2, f"{MEASURED} for batches of 32, 2 ms")),
        (None, (), {"batch_size": 32, "threads": 1}, ("onnx", 1, "exported")),
        (None, (), {"threads": 2}, ("torch", 2, MEASURED)),
        (None, (), {"workers": 3}, ("onnx", None, "exported")),
        # nothing measured: the graph that the point was measured with, else the float32 one, else torch
        (None, (), {"batch_size": 8}, ("onnx", None, "its graph is exported")),
        (point("torch-float32"), (), {"batch_size": 8}, ("onnx", None, "its graph is exported")),
        (
            point("onnx-int8"),
            (),
            {"batch_size": 8},
            ("onnx-int8", None, "exported and the operating point was measured"),
        ),
        (point("onnx-int8"), ("onnx-int8",), {"batch_size": 8}, ("torch", None, "no onnx-int8")),
        (None, ("onnx",), {"batch_size": 8}, ("openvino", None, "its graph is exported")),
        (point("onnx-int8"), ("onnx", "onnx-int8"), {"batch_size": 8}, ("torch", None, "no onnx-int8")),
        (point("openvino-bf16"), (), {"batch_size": 8}, ("openvino", None, "the operating point was measured with it")),
        (None, ("onnx", "openvino"), {"batch_size": 8}, ("torch", None, "no onnx")),
    ],
)
def test_the_engine_is_chosen_once_by_the_contract(
    at: OperatingPoint | None,
    without: tuple[str, ...],
    asked: Mapping[str, Any],
    expected: tuple[str, int | None, str],
    folder: Path,
    faults: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    faults.update({engine: f"no {engine}" for engine in without})
    (folder / COSTS_FILE).unlink(missing_ok=True)
    save_costs(folder, TABLES)
    choice = choose_engine(folder, at, **asked)
    engine, threads, reason = expected
    assert (choice.engine, choice.threads, choice.workers) == (engine, threads, asked.get("workers"))
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("tables", "rows"),
    [
        ({1: 2.0, 8: 1.0, 32: 0.98}, 8),  # within 5 % of the best one
        ({1: 2.0}, 32),  # nothing to compare
        ({}, 32),
    ],
)
def test_a_batch_has_the_rows_that_measured_costs_say_are_worth_it(
    tables: dict[int, float], rows: int, tmp_path: Path
) -> None:
    folder = save_folder(tmp_path / "model", tiny_model())
    other = [table("torch-float32", 9, 9, 9, 9, batch_size=64, workers=1, machine="another")]
    one = [table("torch-float32", 1e-3, 1e-3, 1e-3, ms, batch_size=size, workers=1) for size, ms in tables.items()]
    save_costs(folder, [*other, *one])
    assert Predictor.load(folder, "torch", threads=1).batch_size == rows


def test_tables_of_more_threads_than_cores_do_not_count(
    folder: Path, faults: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_costs(folder, [table("onnx-int8", 1, 1, 1, 1, threads=4, workers=1), table("torch-float32", 2, 2, 2, 2)])
    for variable, engine in (("3", "torch"), ("4", "onnx-int8")):
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        assert choose_engine(folder, None).engine == engine
    (folder / COSTS_FILE).unlink()


def test_a_gpu_takes_torch_but_for_a_certificate(
    folder: Path, faults: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / COSTS_FILE).unlink(missing_ok=True)
    save_costs(folder, TABLES)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert choose_engine(folder, point("onnx-int8")).engine == "torch"
    assert choose_engine(folder, point("onnx-int8", certified=True)).engine == "onnx-int8"


def test_what_auto_takes_is_printed_by_info(
    folder: Path, faults: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (folder / COSTS_FILE).unlink(missing_ok=True)
    save_costs(folder, TABLES)
    lines = offramp("info", folder).stdout.splitlines()
    assert f"auto          onnx-int8: {MEASURED} for single rows, 5 ms a sample with 2 workers of 1 thread" in lines
    assert f"              torch: {MEASURED} for batches of 32, 2 ms a sample with 2 threads" in lines
    first = f"costs         torch-float32, batch size 1, 12.5 tokens, 2 threads, {HERE}: 4 to 16 ms a sample"
    assert first in lines
    assert "costs_unused  1 of other machines" in lines


@pytest.mark.parametrize(
    ("own", "certified", "name", "allowed", "outcome"),
    [
        ("onnx-int8", True, "onnx-int8", False, None),
        ("onnx-int8", True, "onnx-float32", False, "refused"),
        ("torch-float32", True, "onnx-float32", False, "refused"),
        ("openvino-bf16", True, "openvino-float32", False, "refused"),
        ("onnx-int8", True, "onnx-float32", True, logging.WARNING),
        ("torch-float32", True, "onnx-float32", True, logging.WARNING),
        ("torch-float32", False, "onnx-float32", False, logging.INFO),  # the same answers to rounding
        ("torch-float32", False, "openvino-bf16", False, logging.WARNING),
        ("onnx-int8", False, "onnx-float32", False, logging.WARNING),
        (None, True, "onnx-float32", False, None),
        (None, False, "onnx-float32", False, None),
    ],
)
def test_a_certificate_holds_for_its_own_engine_and_precision(
    own: str | None, certified: bool, name: str, allowed: bool, outcome: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = type("Named", (), {"name": name})()
    caplog.set_level(logging.INFO, "offramp")
    if outcome == "refused":
        with pytest.raises(InvalidInput, match=rf"certificate holds for {own}, not for {name}; .*--allow-other-engine"):
            check_engine_of(point(own, certified=certified), engine, allowed)
        return
    check_engine_of(point(own, certified=certified), engine, allowed)
    assert [record.levelno for record in caplog.records] == ([] if outcome is None else [outcome])


def test_a_point_with_a_certificate_runs_on_another_engine_only_where_that_is_allowed(
    folder: Path, tmp_path: Path
) -> None:
    (folder / COSTS_FILE).unlink(missing_ok=True)
    certified = point("torch-bfloat16", certified=True)
    with pytest.raises(InvalidInput, match="certificate holds for torch-bfloat16, not for torch-float32"):
        load_engine(folder, "auto", certified)
    predictor = Predictor.load(folder, "torch", certified, allow_other_engine=True)
    assert len(predictor(texts(3))) == 3
    with pytest.raises(InvalidInput, match=r"no model\.onnx; `offramp export .*` makes it"):
        Predictor.load(
            folder, "auto", replace(certified, certificate=replace(certified.certificate, engine="onnx-float32"))
        )  # type: ignore[type-var]


def test_costs_that_cannot_be_read_stop_auto_alone(folder: Path) -> None:
    (folder / COSTS_FILE).write_text("{")
    with pytest.raises(InvalidInput, match=r"costs\.json: not cost tables that offramp wrote"):
        Predictor.load(folder)
    assert Predictor.load(folder, "torch").engine.name == "torch-float32"
    (folder / COSTS_FILE).unlink()
