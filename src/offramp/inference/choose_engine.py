"""Choose the engine that runs a model on this machine: once, before it is loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.inference.point_check import GraphPoints, measured_with
from offramp.inference.scheduler import rows_worth
from offramp.inference.workers import cores
from offramp.model.files import find_file, hub_digest
from offramp.model.graph_config import load_graph_config
from offramp.types.cost_table import CostTable, processor
from offramp.types.costs_file import read_costs
from offramp.types.export_command import export_command, export_options
from offramp.types.graph_file import ABOUT, GRAPHS, model_folder, read_metadata, stale, weights_beside
from offramp.types.model_content import WEIGHTS_FILE, ModelContent
from offramp.types.operating_point import OperatingPoint

RECORDED = {"torch": "torch-", "onnx": "onnx-float32", "onnx-int8": "onnx-int8", "openvino": "openvino-"}
"""Names that users type -> the beginning of the names, with precision, that traces, points and cost tables have."""
RUNTIMES = {"onnx": ("onnxruntime", "onnx"), "onnx-int8": ("onnxruntime", "onnx"), "openvino": ("openvino", "openvino")}
"""Engines that run an exported file -> the package that runs it, and offramp's extra with that package."""

ACCELERATORS = (
    *("/dev/nvidia*", "/dev/nvgpu*", "/dev/nvhost*", "/dev/nvmap", "/dev/dxg", "/dev/kfd", "/dev/dri/render*"),
    *("/dev/accel*", "/dev/davinci*", "/dev/mlu*", "/dev/musa*", "/dev/habana*"),
)
"""Devices that torch may run on, under Linux."""

BATCH_ROWS = 32
"""Rows of a batch where nothing was measured."""


@dataclass(frozen=True)
class Choice:
    """The engine that runs a model.

    Attributes:
        engine: a name of ENGINES.
        threads: that compute a batch; None = the engine's default.
        workers: that answer batches at the same time; None = the engine's default.
        reason: why this one, in words.
        without: the reason why an exported graph beside the model does not run; None where nothing is wrong.
    """

    engine: str
    threads: int | None
    workers: int | None
    reason: str
    without: str | None = None


def choose_engine(
    folder: str | os.PathLike[str],
    point: OperatingPoint | None,
    threads: int | None = None,
    workers: int | None = None,
    batch_size: int = 1,
    allow_other_engine: bool = False,
) -> Choice:
    """Choose an engine for a point.

    1. For a point with a certificate, the engine that it was certified with.
    2. On a machine with a GPU, torch.
    3. The fastest that was measured on this machine for the batch size, at the point's mean exit layer, with its
       threads. Where threads or workers are asked for, only tables with these count.
    4. The exported graph that the point was measured with, where that was a graph; else the one of ONNX Runtime in
       float32, else that of OpenVINO if it is not in int8.
    5. Torch.

    Args:
        folder: or a hub name.
        point: to be run; None = full depth.
        threads: asked for; None = any.
        workers: asked for; None = any.
        batch_size: rows of a batch that will be served.
        allow_other_engine: let another engine run a point with a certificate where its own cannot be loaded.

    Raises:
        InvalidInput: the file with the cost tables cannot be read.
    """
    recorded = measured_with(point)
    own = name_of(recorded)
    if point is not None and point.certificate is not None and own is not None:
        without = fault(folder, own, point, recorded)
        if without is None or not allow_other_engine:
            return Choice(own, threads, workers, "the operating point's certificate holds for it")
    if has_accelerator():
        return Choice("torch", threads, workers, "this machine has a GPU")
    for ms, engine, table in _measured(folder, point, batch_size):
        fits = threads in (None, table.threads) and workers in (None, table.workers)
        if fits and (table.threads or 1) <= cores() and not fault(folder, engine, point, table.engine):
            batches = f"batches of {batch_size}" if batch_size > 1 else "single rows"
            reason = f"the fastest measured here for {batches}, {ms:.3g} ms a sample with {table.threads_text()}"
            return Choice(engine, table.threads, workers, reason)
    return _graph_or_torch(folder, point, threads, workers)


def _graph_or_torch(
    folder: str | os.PathLike[str], point: OperatingPoint | None, threads: int | None, workers: int | None
) -> Choice:
    """Choose the exported graph that the point was measured with, else one in float32 (or bfloat16), else torch."""
    recorded = measured_with(point)
    own = name_of(recorded)
    graphs = {own: recorded} if own in GRAPHS else {name: f"{name}-float32" for name in ("onnx", "openvino")}
    faults: dict[str, str] = {}
    for graph, name in graphs.items():
        reason = fault(folder, graph, point, name)
        if reason is None:
            of_point = " and the operating point was measured with it" if graph == own else ""
            return Choice(graph, threads, workers, f"its graph is exported{of_point}")
        faults[graph] = reason
    present = [graph for graph in graphs if find_file(folder, GRAPHS[graph]) and find_spec(RUNTIMES[graph][0])]
    without = faults[next(iter(present or graphs))]
    return Choice("torch", threads, workers, without, without if present else None)


def has_accelerator() -> bool:
    """Return whether torch has a GPU here; torch is not imported where the system shows no device of one."""
    if sys.platform == "linux" and "torch" not in sys.modules and not any(map(glob, ACCELERATORS)):
        return False
    import torch

    return torch.accelerator.is_available()


def costs_here(folder: str | os.PathLike[str]) -> tuple[CostTable, ...]:
    """Return the cost tables of a local folder that were measured on this machine with these weights."""
    tables = read_costs(folder) if Path(folder).is_dir() else ()
    machines = {processor()} if tables else set()
    if tables and has_accelerator():
        import torch

        machines |= {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    return tuple(table for table in tables or () if table.machine in machines)


def batch_rows(folder: str | os.PathLike[str], engine: str, threads: int | None, workers: int) -> int:
    """Return how many rows make a batch that is worth it, by the costs measured here; without them BATCH_ROWS.

    Args:
        folder: of the model.
        engine: with its precision, as tables record it.
        threads: that compute a batch.
        workers: that answer batches at the same time.
    """
    try:
        tables = [table for table in costs_here(folder) if table.engine == engine and table.workers == workers]
    except InvalidInput:  # a file that cannot be read stops the choice of an engine alone
        return BATCH_ROWS
    times = {table.batch_size: table.ms[-1] for table in tables if table.threads in (None, threads)}
    return rows_worth(times) if len(times) > 1 else BATCH_ROWS


def _measured(
    folder: str | os.PathLike[str], point: OperatingPoint | None, batch_size: int
) -> Iterator[tuple[float, str, CostTable]]:
    """Yield the measured engines, the fastest first, each with its milliseconds a sample at a point."""
    times = []
    for table in costs_here(folder):
        engine = name_of(table.engine)
        if engine is not None and table.batch_size == batch_size:
            measured = None if point is None else point.measured
            ms = table.ms[-1] if measured is None else table.ms_at(measured.mean_exit)
            times.append((ms, engine, table))
    yield from sorted(times, key=lambda time: time[0])


def name_of(recorded: str | None) -> str | None:
    """Return the name of ENGINES for a recorded name, or for itself; None where it is unknown."""
    if recorded is None:
        return None
    return next((name for name, begin in RECORDED.items() if recorded == name or recorded.startswith(begin)), None)


def fault(
    folder: str | os.PathLike[str], engine: str, point: OperatingPoint | None, recorded: str | None = None
) -> str | None:
    """Return why an engine cannot run a point of a folder's model, with the command that helps; None where it can.

    Args:
        folder: or a hub name.
        engine: a name of ENGINES.
        point: None = full depth.
        recorded: a recorded name; OpenVINO's file must be in int8 where this is, and only there. None = either.
    """
    if engine == "torch":
        return None
    graph, (runtime, extra) = Path(GRAPHS[engine]), RUNTIMES[engine]
    paths = [find_file(folder, file.as_posix()) for file in (graph, weights_beside(graph))]
    path = None if paths[0] is None else Path(paths[0])
    remedy = export_command(folder, engine)
    if path is None or paths[1] is None:
        absent = graph if path is None else weights_beside(graph)
        return f"{folder}: no {absent.as_posix()}; {remedy} makes it"
    if find_spec(runtime) is None:
        return f"a graph needs {runtime}: pip install 'offramp[{extra}]'"
    try:
        if reason := stale(path, ModelContent(model_folder(path))) or _stale_on_hub(folder, path):
            return f"{reason}; {remedy} makes it anew"
        metadata = GraphMetadata.of(read_metadata(path))
        wanted = metadata.precision if recorded is None else "int8" if recorded.endswith("-int8") else "float32"
        if metadata.precision != wanted:
            command = f"offramp export {folder}{export_options(engine, wanted)}"
            return f"{path}: in {metadata.precision}; `{command}` makes it for {recorded}"
        GraphPoints(metadata, load_graph_config(folder), export_options(engine, metadata.precision)).check(point)
    except InvalidInput as error:
        return str(error)
    return None


def _stale_on_hub(folder: str | os.PathLike[str], path: Path) -> str | None:
    """Return the reason why a graph must not answer where its weights are on the hub and not on this machine."""
    if Path(folder).is_dir() or ModelContent(model_folder(path)).weight_files:
        return None
    model = json.loads(read_metadata(path)[ABOUT])["model"]
    if hub_digest(os.fspath(folder), WEIGHTS_FILE, revision=model_folder(path).name) in (None, model):
        return None
    return f"{path}: made of other weights than those beside it on the hub"
