"""Load the engine of a model, with its threads and workers."""

from __future__ import annotations

import logging
import os

from offramp.errors import InvalidInput, UnknownName
from offramp.inference.choose_engine import Choice, choose_engine, fault
from offramp.inference.engine import ENGINES, Engine
from offramp.inference.onnx_engine import GraphEngine, OnnxEngine
from offramp.inference.point_check import check_engine_of
from offramp.inference.workers import cores
from offramp.model.files import find_file
from offramp.model.graph_config import load_graph_config
from offramp.types.graph_file import GRAPHS
from offramp.types.operating_point import OperatingPoint

logger = logging.getLogger(__name__)

AUTO = "auto"


def check_name(engine: str) -> None:
    """Refuse a name that is no engine's.

    Raises:
        UnknownName: neither "auto" nor one of ENGINES.
    """
    if engine not in (AUTO, *ENGINES):
        raise UnknownName(f"unknown engine {engine!r}; known: {AUTO}, {', '.join(ENGINES)}")


def load_engine(
    folder: str | os.PathLike[str],
    engine: str = AUTO,
    point: OperatingPoint | None = None,
    threads: int | None = None,
    batch_size: int = 1,
    allow_other_engine: bool = False,
) -> Engine:
    """Load the engine for the model of a folder or hub name.

    Args:
        folder: what `save_pretrained` wrote, and `offramp export` if a graph is to run.
        engine: one of ENGINES; "auto" chooses one (see `offramp.inference.choose_engine`).
        point: the operating point to be run.
        threads: that compute a batch, at least 1; in torch of the whole process. None = for a graph 1, for torch
            OMP_NUM_THREADS, else one a core.
        batch_size: for "auto": rows of a batch that will be served.
        allow_other_engine: run a point with a certificate on an engine that the certificate does not hold for.

    Raises:
        UnknownName: no such engine.
        InvalidInput: nothing can be loaded from there; no such graph, or one of other weights; a point that the engine
            cannot run, or that its certificate does not hold for; fewer than one thread, or rows of a batch below one.
    """
    return load_with_workers(folder, engine, point, threads, None, batch_size, allow_other_engine)[0]


def load_with_workers(
    folder: str | os.PathLike[str],
    engine: str = AUTO,
    point: OperatingPoint | None = None,
    threads: int | None = None,
    workers: int | None = None,
    batch_size: int = 1,
    allow_other_engine: bool = False,
) -> tuple[Engine, int]:
    """Load an engine as `load_engine` does, and return with it the number of its workers (see `workers_of`)."""
    check_name(engine)
    _check_count("threads", threads)
    _check_count("workers", workers)
    _check_count("batch_size", batch_size)
    choice = Choice(engine, threads, workers, "asked for")
    if engine == AUTO:
        choice = choose_engine(folder, point, threads, workers, batch_size, allow_other_engine)
        if choice.without is not None:
            logger.warning("torch runs this model: %s", choice.without)
    loaded = _load(folder, choice.engine, choice.threads, choice.workers)
    loaded.check(point)
    check_engine_of(point, loaded, allow_other_engine)
    return loaded, workers_of(loaded, choice.workers)


def workers_of(engine: Engine, workers: int | None) -> int:
    """Return how many workers answer with an engine: those asked for, else as many as the cores have its threads.

    Torch has one, and uses its threads for every batch. So has an engine of a class that is not offramp's, unless it is
    asked for more.

    Raises:
        InvalidInput: fewer than one; more than one for torch.
    """
    _check_count("workers", workers)
    if isinstance(engine, GraphEngine):
        return workers or max(cores() // (engine.graph.threads or cores()), 1)
    if workers not in (None, 1) and _is_torch(engine):
        raise InvalidInput(f"torch answers one batch at a time; workers={workers} needs an exported graph")
    return workers or 1


def threads_of(engine: Engine) -> int | None:
    """Return how many threads compute a batch with an engine; None for a class that is not offramp's."""
    if isinstance(engine, GraphEngine):
        return engine.graph.threads or cores()
    if not _is_torch(engine):
        return None
    import torch

    return torch.get_num_threads()


def _is_torch(engine: Engine) -> bool:
    from offramp.inference.torch_engine import TorchEngine

    return isinstance(engine, TorchEngine)


def _check_count(name: str, count: int | None) -> None:
    if count is not None and (type(count) is not int or count < 1):
        raise InvalidInput(f"{name} must be at least 1, got {count!r}")


def _load(folder: str | os.PathLike[str], engine: str, threads: int | None, workers: int | None) -> Engine:
    """Load an engine by its name."""
    if engine == "torch":
        from offramp.inference.torch_engine import TorchEngine
        from offramp.model.loading import load_model

        return TorchEngine(load_model(folder), threads)
    config = load_graph_config(folder)
    if (reason := fault(folder, engine, None)) is not None:
        raise InvalidInput(reason)
    path = str(find_file(folder, GRAPHS[engine]))
    if engine == "openvino":
        from offramp.inference.openvino_engine import load_openvino

        return load_openvino(path, config, threads or 1, workers or max(cores() // (threads or 1), 1))
    from offramp.inference.onnx.session import OnnxSession

    return OnnxEngine(OnnxSession.load(path, threads or 1), config)
