"""A service with processes that are fakes, and a clock that is one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from offramp.serving.adaptive import Adaptive
from offramp.serving.frames import AnswersFrame, ArrayFrame, BatchFrame
from offramp.serving.queue import Queue
from offramp.serving.request import Options, Request
from offramp.serving.running import Running
from offramp.serving.served import Limits, Served
from offramp.serving.service import Service
from offramp.serving.tokens import RequestTokenizer
from offramp.serving.worker_process import ProcessLost
from offramp.types.operating_point import OperatingPoint
from support.graphs import gated, lexical
from support.models import tiny_tokenizer

LAYERS = (1, 2, 3, 4)
POINT = OperatingPoint({"name": "entropy"}, (0.1, 0.1, 0.1))
LIMITS = Limits(max_concurrent_requests=20, max_client_batch_size=8, timeout_s=5.0, drain_s=0.2)


@dataclass
class Counts:
    """What a server would count."""

    left: list[tuple[int, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)
    retried: int = 0

    def row_left(self, layer: int, point: str) -> None:
        self.left.append((layer, point))

    def row_failed(self, kind: str) -> None:
        self.failed.append(kind)

    def batch_done(self, rows: int, tokens: int, seconds: float) -> None:
        self.batches.append((rows, tokens))

    def rows_retried(self, rows: int) -> None:
        self.retried += rows


class Process:
    """Answers when it is let: the logits of a row are its first token, its number of tokens, and 0."""

    def __init__(self) -> None:
        self.waiting: list[tuple[BatchFrame, asyncio.Future[AnswersFrame]]] = []
        self.done: list[BatchFrame] = []
        self.killed = False
        self.rows = 0
        self.on_part: Any = None
        self.alone: list[bool] = []

    async def run(self, batch: BatchFrame, timeout_s: float, on_part: Any = None, alone: bool = False) -> AnswersFrame:
        self.on_part = on_part
        self.alone.append(alone)
        answer: asyncio.Future[AnswersFrame] = asyncio.get_running_loop().create_future()
        self.waiting.append((batch, answer))
        return await answer

    def answer(self, **changes: Any) -> None:
        batch, future = self.waiting.pop()
        self.on_part = None
        ids, mask = batch.inputs["input_ids"].array(), batch.inputs["attention_mask"].array()
        logits = np.stack([ids[:, 0], mask.sum(axis=1), 0 * ids[:, 0]], axis=1).astype(np.float32)
        by_exit = ArrayFrame.of(np.tile(logits[:, None], (1, 4, 1))) if batch.by_exit else None
        rows = len(batch.plans)
        fields = {"exit_layers": [4] * rows, "failed": [False] * rows, "errors": {}, "logits_by_exit": by_exit}
        fields |= {"logits": ArrayFrame.of(logits), "layers": LAYERS, "seconds": 0.001} | changes
        self.done.append(batch)
        future.set_result(AnswersFrame(**fields))

    def end(self, error: Exception | None = None) -> None:
        self.waiting.pop()[1].set_exception(error or ProcessLost("it ended"))

    def kill(self) -> None:
        self.killed = True


class Pool:
    """Some fake processes; those that end come back as new ones."""

    def __init__(self, size: int = 1) -> None:
        self.idle: list[Any] = [Process() for _ in range(size)]
        self.all: list[Any] = list(self.idle)
        self.on_idle: Any = None
        self.alive = size

    def give_back(self, process: Process) -> None:
        self.idle.append(process)
        self.on_idle()

    async def close(self) -> None:
        self.idle.clear()


class First:
    """An exit before the first layer, whose score is a row's first token."""

    def answer(self, tokens: list[dict[str, list[int]]], limits: Any) -> tuple[Any, Any]:
        firsts = np.array([row["input_ids"][0] for row in tokens], np.float32)
        return np.stack([firsts, firsts * 0, firsts * 0], axis=1), firsts >= limits


class Bench:
    """A service with its fakes."""

    def __init__(self, size: int = 1, rows: int = 8, limits: Limits = LIMITS, first: Any = None) -> None:
        config = gated().config if first is None else lexical().config
        layers = tuple(config.layers)
        points = {"default": POINT if first is None else replace(POINT, thresholds=(20.0, 0.1, 0.1, 0.1))}
        self.served = Served("tiny", config, points, "default", "onnx-int8", layers, 32, "", 0.0, limits)
        self.pool, self.counts, self.now = Pool(size), Counts(), 100.0
        self._first, self._queue = first, Queue(rows, 1000)
        self.adapt(None)

    def adapt(self, adaptive: Adaptive | None) -> None:
        """Begin anew with what decides on the points."""
        tokenizer, pool = RequestTokenizer("", self.served.config, tiny_tokenizer(), 32, True), self.pool
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RequestTokenizer, "copy", lambda self: self)
            self.service = Service(
                self.served,
                tokenizer,
                self._first,
                pool,  # type: ignore[arg-type]
                self._queue,
                self.counts,
                lambda: self.now,
                adaptive,
            )

    @property
    def process(self) -> Process:
        process: Process = self.pool.all[0]
        return process

    async def start(self, *items: Any, **options: Any) -> Running:
        running = await self.service.start(Request(items, Options(**options)))
        await settle()
        return running

    def batch_sizes(self) -> list[int]:
        return [len(batch.plans) for process in self.pool.all for batch, _ in process.waiting]


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)
