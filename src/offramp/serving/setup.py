"""A model folder -> a running `Service`."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from offramp.data.batching import token_limit
from offramp.errors import InvalidInput
from offramp.inference.choose_engine import Choice, choose_engine, name_of
from offramp.inference.load_engine import AUTO, check_name
from offramp.inference.onnx.first_exit import FirstExit
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.inference.workers import cores
from offramp.model.files import find_file
from offramp.model.points import load_point, load_points
from offramp.model.text_folder import load_text_config, load_text_tokenizer
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit import Audit
from offramp.serving.depth_budget import DepthBudget
from offramp.serving.drift_report import DriftReport, proposals_folder, undecided
from offramp.serving.frames import StartFrame
from offramp.serving.ladder import Ladder, ladder_of
from offramp.serving.ladder_folder import calibration, engine_of, read_rungs, watched_rungs
from offramp.serving.load_controller import AIM, LoadController
from offramp.serving.pool import ProcessPool
from offramp.serving.queue import Queue
from offramp.serving.running import Watcher
from offramp.serving.served import FULL, LATENCY_TARGET_MS, Limits, Served
from offramp.serving.service import Service
from offramp.serving.settings import LadderSettings, ModelSettings, ServerSettings
from offramp.serving.tokens import RequestTokenizer
from offramp.types.graph_file import GRAPHS, read_metadata
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import DEFAULT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offramp.data.file_tokenizer import FileTokenizer
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig


log = logging.getLogger("offramp.serving")

DELTA = 0.05
"""The share of histories without drift in which the audit raises an alarm, at most."""


async def open_service(settings: ServerSettings, watcher: Watcher) -> Service:
    """Load a model in processes of its own, wait until they have warmed up, and return its service.

    Raises:
        OfframpError: the model cannot be loaded or served.
    """
    model, limits = settings.model, settings.limits
    reading = ThreadPoolExecutor(1, "offramp-reader")  # a download may take minutes, in which HTTP answers
    loop = asyncio.get_running_loop()
    config, tokenizer, start, workers = await loop.run_in_executor(reading, _read, model, limits, settings.ladder)
    reading.shutdown(wait=False)
    engine = start.engine
    pool = ProcessPool(start, workers)
    ready = await pool.open()
    try:
        graph = None if engine == "torch" else find_file(model.folder, GRAPHS[engine])
        served = Served(
            model.served_name,
            config,
            {name: point for name, point in load_points(model.folder).items() if name in ready.points},
            start.point,
            ready.engine,
            ready.layers_read,
            token_limit(tokenizer, config.backbone),
            _weights_digest(model.folder, graph),
            time.time(),
            limits,
            LATENCY_TARGET_MS if settings.ladder is None else settings.ladder.latency_target_ms,
        )
        texts = RequestTokenizer(model.folder, config, tokenizer, served.max_tokens, limits.auto_truncate)
        runs_levels = graph is not None and engine != "openvino"
        first = FirstExit.load(str(graph), config.pad_token_id) if runs_levels else None
        queue = Queue(ready.batch_rows, limits.max_batch_tokens)
        adaptive = None if settings.ladder is None else _adaptive(served, settings, settings.ladder)
        return Service(served, texts, first, pool, queue, watcher, adaptive=adaptive)
    except BaseException:
        await pool.close()
        raise


def _read(
    model: ModelSettings, limits: Limits, ladder: LadderSettings | None
) -> tuple[MultiExitConfig | GraphConfig, PreTrainedTokenizerBase | FileTokenizer, StartFrame, int]:
    """Return a model's config and tokenizer, how its processes start, and how many."""
    config = load_text_config(model.folder)
    check_name(model.engine)
    budget, layers = None if ladder is None else ladder.depth_budget, config.layers[-1]
    if budget is not None and budget >= layers:
        raise InvalidInput(f"--depth-budget must be below the model's {layers} layers; got {budget:g}")
    name, choice = _point_and_engine(model) if ladder is None else _rung_and_engine(model, ladder)
    tokenizer = load_text_tokenizer(model.folder, config.backbone)
    threads, workers = choice.threads, choice.workers
    if workers is None:
        workers = 1 if choice.engine == "torch" else max(cores() // (threads or 1), 1)
    start = StartFrame(
        model.folder,
        choice.engine,
        threads,
        name,
        model.allow_other_engine,
        limits.max_batch_tokens,
        limits.max_batch_requests,
    )
    return config, tokenizer, start, workers


def _point_and_engine(model: ModelSettings) -> tuple[str | None, Choice]:
    """Return the name of the point of requests that name none, None = full depth, and the engine that runs it."""
    name = None if model.operating_point == FULL else model.operating_point
    point = None if name is None else load_point(model.folder, name)
    choice = Choice(model.engine, model.threads, model.workers, "asked for")
    if model.engine == AUTO:
        choice = choose_engine(model.folder, point, model.threads, model.workers, 1, model.allow_other_engine)
    return None if point is None else name, choice


def _rung_and_engine(model: ModelSettings, options: LadderSettings) -> tuple[str | None, Choice]:
    """Return the name of the rung without load, None = full depth, and the engine that runs the ladder.

    Raises:
        InvalidInput: the model has no ladder, no engine runs it, or an option names none of its points.
    """
    rungs = read_rungs(model.folder)
    ladder = ladder_of(rungs, _nominal(model), options.floor)
    name = ladder.names[ladder.nominal]
    return None if name == FULL else name, engine_of(model, rungs)


def _nominal(model: ModelSettings) -> str | None:
    """Return the name of the rung without load; None = the strictest."""
    return None if model.operating_point == DEFAULT else model.operating_point


def _adaptive(served: Served, settings: ServerSettings, options: LadderSettings) -> Adaptive:
    """Return what moves a server along its ladder.

    Raises:
        InvalidInput: the ladder's certificates hold for another engine.
    """
    folder = settings.model.folder
    points = watched_rungs(folder, served.engine, settings.model.allow_other_engine)
    ladder = ladder_of(points, _nominal(settings.model), options.floor)
    controller = LoadController(ladder, AIM * (options.latency_target_ms / 1000))
    audit = _audit(ladder, options.audit_share, calibration(folder, name_of(served.engine) or served.engine))
    proposals = None if audit is None else proposals_folder(folder, options.proposals)
    if audit is not None and proposals is not None:
        audit.close(ladder.names.index(name) for name in undecided(proposals, served) if name in ladder.names)
    report = DriftReport(served, folder, proposals)
    depth = None if options.depth_budget is None else DepthBudget(ladder, options.depth_budget)
    return Adaptive(ladder, controller, audit, report, served.config.problem_type, depth)


def _audit(ladder: Ladder, share: float, command: str) -> Audit | None:
    """Return what watches a ladder's certificates; None where it has none, or none is to be watched.

    Args:
        ladder: of the server.
        share: of the rows that are audited.
        command: that makes a ladder for the engine of the server.
    """
    if share == 0:
        return None
    if without := [rung.name for rung in ladder.rungs[: ladder.floor + 1] if rung.level is None]:
        log.warning(
            "drift of %s is not watched: no certificate on the agreement with full depth; "
            "%s with --confidence 0.95 makes them, for classes and with enough rows",
            ", ".join(without),
            command,
        )
    audit = Audit(ladder, share, DELTA, Random())
    return audit if audit.monitors else None


def _weights_digest(folder: str, graph: str | None) -> str:
    """Return the SHA-256 of a model's weights, of a graph that of those that it was made of; "" where not known."""
    if graph is not None:
        return GraphMetadata.of(read_metadata(Path(graph))).model
    config = find_file(folder, "config.json")
    return "" if config is None else ModelContent(Path(config).parent).file_digest or ""
