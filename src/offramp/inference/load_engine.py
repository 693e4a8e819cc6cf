"""Choose and load the engine of a model."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.utils import logging

from offramp.errors import InvalidInput, UnknownName
from offramp.inference.engine import ENGINES, Engine
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.torch_engine import TorchEngine
from offramp.model.hub import find_file, hub_digest, load_config
from offramp.model.loading import load_model
from offramp.types.graph_file import ABOUT, GRAPHS, WEIGHTS, read_metadata, stale
from offramp.types.model_content import WEIGHTS_FILE, ModelContent
from offramp.types.operating_point import OperatingPoint

logger = logging.get_logger(__name__)

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
) -> Engine:
    """Load the engine for the model of a folder or hub name.

    Args:
        folder: what `save_pretrained` wrote, and `offramp export` if a graph is to run.
        engine: one of ENGINES; "auto" takes the exported graph on a machine without a GPU, if there is one for the
            point's policy: the int8 one for a point that was measured with it, else the float32 one.
        point: the operating point to be run.
        threads: that compute a batch, at least 1; in torch of the whole process. None = OMP_NUM_THREADS, else one a
            core.

    Raises:
        UnknownName: no such engine.
        InvalidInput: nothing can be loaded from there; no such graph, or one of other weights; fewer than one thread.
    """
    check_name(engine)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InvalidInput(f"threads must be at least 1, got {threads!r}")
    if engine == AUTO:
        return _best(folder, point, threads)
    return TorchEngine(load_model(folder), threads) if engine == "torch" else _exported(folder, engine, threads)


def _best(folder: str | os.PathLike[str], point: OperatingPoint | None, threads: int | None) -> Engine:
    measured = point.measured.provenance.get("engine") if point is not None and point.measured is not None else None
    engine = "onnx-int8" if measured == "onnx-int8" else "onnx"
    if (
        torch.accelerator.is_available()
        or find_spec("onnxruntime") is None
        or find_file(folder, GRAPHS[engine]) is None
    ):
        return TorchEngine(load_model(folder), threads)
    try:
        exported = _exported(folder, engine, threads)
        exported.check(point)
    except InvalidInput as error:
        logger.warning("torch runs this model: %s", error)
        return TorchEngine(load_model(folder), threads)
    return exported


def _exported(folder: str | os.PathLike[str], engine: str, threads: int | None) -> OnnxEngine:
    config = load_config(folder)
    path, weights = (find_file(folder, GRAPHS[engine] + ending) for ending in ("", WEIGHTS))
    remedy = _remedy(folder, engine)
    if path is None or weights is None:
        raise InvalidInput(f"{folder}: no {GRAPHS[engine] + ('' if path is None else WEIGHTS)}; {remedy} makes it")
    try:
        from offramp.inference.onnx.session import OnnxSession
    except ImportError:
        raise InvalidInput("a graph needs ONNX Runtime: pip install 'offramp[onnx]'") from None
    if reason := stale(Path(path), ModelContent(Path(path).parent)) or _stale_on_hub(folder, Path(path)):
        raise InvalidInput(f"{reason}; {remedy} makes it anew")
    return OnnxEngine(OnnxSession.load(path, threads), config)


def _remedy(folder: str | os.PathLike[str], engine: str) -> str:
    """Return the command that makes a graph."""
    option = " --int8" if engine == "onnx-int8" else ""
    return f"`offramp export {folder if Path(folder).is_dir() else 'FOLDER'}{option}`"


def _stale_on_hub(folder: str | os.PathLike[str], path: Path) -> str | None:
    """Return the reason why a graph must not answer where its weights are on the hub and not on this machine."""
    if Path(folder).is_dir() or ModelContent(path.parent).weight_files:
        return None
    model = json.loads(read_metadata(path)[ABOUT])["model"]
    if hub_digest(os.fspath(folder), WEIGHTS_FILE, revision=path.parent.name) in (None, model):
        return None
    return f"{path}: made of other weights than those beside it on the hub"
