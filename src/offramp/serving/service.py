"""Requests in, results out: tokenizer, the exit before the first layer, the queue, the processes. For one event loop.

running = await service.start(request)     # what leaves before the first layer is answered here
if not running.finished.done(): ...        # the others wait for a process
service.abandon(running)                   # the client has gone
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, final

import numpy as np

from offramp.inference.onnx.first_exit import FirstExit
from offramp.serving.adaptive import Adaptive
from offramp.serving.audit_runs import AuditRuns
from offramp.serving.batches import BatchRow, frame_of, results_of, row_result
from offramp.serving.frames import AnswersFrame
from offramp.serving.load_controller import AIM
from offramp.serving.pool import ProcessPool
from offramp.serving.queue import Queue, WaitingRow
from offramp.serving.request import Refusal, Request, RowResult, characters_of
from offramp.serving.running import Running, Watcher, ending, too_late
from offramp.serving.served import FULL, Served
from offramp.serving.tokens import RequestTokenizer
from offramp.serving.worker_process import ProcessLost, WorkerProcess
from offramp.types.operating_point import OperatingPoint

log = logging.getLogger("offramp.serving")

LONG_CHARACTERS = 2000
"""Requests with more are tokenized in a thread: that takes a millisecond or more."""
LOOK_S = 0.02
"""How often the load is looked at while rows are in flight, or the point in force is not that without load."""
_ALL_LEAVE = np.array([-np.inf], np.float32)


@final
class Service:
    """Answers requests with a model.

    Attributes:
        served: the model.
        pool: the processes.
        queue: the rows that wait.
        adaptive: decides on the points of rows whose request names none; None = `served.default_point` does.
        rows: that were accepted and have no result yet.
        draining: whether requests are refused since the server ends.
    """

    def __init__(
        self,
        served: Served,
        tokenizer: RequestTokenizer,
        first_exit: FirstExit | None,
        pool: ProcessPool,
        queue: Queue,
        watcher: Watcher,
        clock: Callable[[], float] = time.monotonic,
        adaptive: Adaptive | None = None,
    ) -> None:
        self.served, self.pool, self.queue, self.adaptive = served, pool, queue, adaptive
        self.rows = 0
        self.draining = False
        self._tokenizer, self._first_exit, self._watcher, self._clock = tokenizer, first_exit, watcher, clock
        self._limits = {name: np.array([self._first_limit(point)], np.float32) for name, point in served.points.items()}
        self._thread = ThreadPoolExecutor(1, "offramp-tokenizer")
        self._long = tokenizer.copy()  # a tokenizer of `tokenizers` must not be set by two threads
        self._dispatching = False
        self._looking: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()
        self._running: dict[Running, None] = {}  # in the order in which they came
        pool.on_idle = self._dispatch_soon
        self._audits = None if adaptive is None else AuditRuns.of(served, pool, adaptive, self._dispatch_soon)

    def _first_limit(self, point: OperatingPoint) -> float:
        """Return a point's threshold at the exit before the first layer."""
        return np.inf if point.layers_read(self.served.config.layers)[0] != 0 else point.thresholds[0]

    async def start(self, request: Request) -> Running:
        """Accept a request, and answer the rows that leave before the first layer.

        Raises:
            Refusal: the server is full, or ends, or the request asks for what this model does not have.
        """
        point = self.served.point_name(request.options)
        due_s = AIM * self.served.budget_s(request.options)
        adapts = self.adaptive is not None and request.options.operating_point is None
        if self.adaptive is not None and adapts:
            point = self.adaptive.point
        limits = self.served.limits
        if self.draining:
            raise ending()
        count = len(request.items)
        if count > limits.max_client_batch_size:  # before the next one: another try will not help
            most = limits.max_client_batch_size
            raise Refusal("batch_size", f"batch size {count} > maximum allowed batch size {most}")
        if self.rows >= limits.max_concurrent_requests:
            raise Refusal("overloaded", "the server is at its limit of rows at the same time; try again later", 1.0)
        loop = asyncio.get_running_loop()
        now = self._clock()
        running = Running(
            request, point, [None] * count, loop.create_future(), now, now + due_s, missing=count, adapts=adapts
        )
        self.rows += count
        self._running[running] = None
        self._set_timer()
        self._look_soon()
        try:
            await self._advance(running)
        except BaseException:
            self._forget(running)
            raise
        return running

    def abandon(self, running: Running) -> None:
        """Drop what waits of a request: nobody wants its answer any more."""
        self.queue.cancel(running)
        self._forget(running)

    def _forget(self, running: Running) -> None:
        if running in self._running:
            del self._running[running]
            self.rows -= running.missing
            running.missing = 0
            running.finished.cancel()

    async def _advance(self, running: Running) -> None:
        """Tokenize the rows; answer those that leave before the first layer, and let the others wait."""
        items, options = running.request.items, running.request.options
        if sum(map(characters_of, items)) > LONG_CHARACTERS:
            loop = asyncio.get_running_loop()
            tokens, faults = await loop.run_in_executor(self._thread, self._long.encode, items, options)
            if running not in self._running:  # abandoned, or refused, meanwhile
                return
        else:
            tokens, faults = self._tokenizer.encode(items, options)
        running.tokenized = running.dequeued = self._clock()
        running.tokens = sum(len(row["input_ids"]) for row in tokens.values())
        for number, fault in faults.items():
            self._set(running, number, RowResult.refused(fault))
        if running.adapts and self._audits is not None and self._audits.draw(list(tokens.values())):
            self._dispatch_soon()
        rows = [BatchRow(running, number, row) for number, row in tokens.items()]
        if rows and self._first_exit is not None:
            rows = self._leave_first(running, rows)
        if rows:
            deadline = running.begin + self.served.limits.timeout_s
            begin, due = running.begin, running.due
            self.queue.add(
                [WaitingRow(running, len(row.tokens["input_ids"]), begin, due, deadline, row) for row in rows]
            )
            self._dispatch_soon()

    def _leave_first(self, running: Running, rows: list[BatchRow]) -> list[BatchRow]:
        """Answer the rows that leave before the first layer; return the others.

        A policy may scale an exit's logits. A process has the exit's own, for full depth and for details.
        """
        assert self._first_exit is not None
        options = running.request.options
        if self.adaptive is not None and running.adapts:
            left_s = running.due - self._clock() - self.adaptive.queue_s(self.queue, self.pool.alive)
            running.point = self.adaptive.point_for(left_s, running.tokens)
        if running.point == FULL or options.details:
            return rows
        bounded = options.max_depth is not None and self._reaches_only_first(options.max_depth)
        limit = _ALL_LEAVE if bounded else self._limits[running.point]
        if limit[0] == np.inf:
            return rows
        logits, leaves = self._first_exit.answer([row.tokens for row in rows], limit)
        staying = []
        for row, values, leave in zip(rows, logits, leaves.tolist(), strict=True):
            if leave:
                self._set(running, row.number, row_result(values, 0, len(row.tokens["input_ids"]), running.point, {}))
            else:
                staying.append(row)
        return staying

    def _reaches_only_first(self, depth: int) -> bool:
        return len(self.served.layers_read) > 1 and depth < self.served.layers_read[1]

    def _set(self, running: Running, number: int, result: RowResult) -> None:
        """Keep a row's result, the first one alone."""
        if running.results[number] is not None or running.missing == 0:
            return
        running.results[number] = result
        running.missing -= 1
        self.rows -= 1
        if result.error is None:
            self._watcher.row_left(result.exit_layer, result.point)
            if self.adaptive is not None and self.adaptive.depth is not None and running.adapts:
                self.adaptive.depth.add(result.exit_layer)
        else:
            self._watcher.row_failed(result.error.kind)
        if running.missing == 0:
            running.answered = self._clock()
            self._running.pop(running, None)
            if not running.finished.done():
                running.finished.set_result(None)

    def dispatch(self) -> None:
        """Give rows that wait to the processes that are free."""
        self._dispatching = False
        now = self._clock()
        self._refuse_rows(self.queue.expired(now), too_late())
        if self._audits is not None and not self.draining and (audit := self._audits.next(now)) is not None:
            self._start_task(audit)
        batches = self.queue.next_batches(len(self.pool.idle))
        while batches:
            if batches[0][0].alone and self.pool.idle[-1].rows:  # it waits until a process has no other rows
                self.queue.add([row for batch in batches for row in batch])
                break
            self._start_task(self._run(self.pool.idle.pop(), batches.pop(0)))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)

    def _dispatch_soon(self) -> None:
        """Dispatch once the requests that have come are read: they may go together."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self.dispatch)

    def _set_timer(self) -> None:
        """Look for requests whose time is over, as long as there are any."""
        if self._timer is None and self._running:
            self._timer = asyncio.get_running_loop().call_later(min(self.served.limits.timeout_s, 0.25), self._look)

    def _look(self) -> None:
        """Refuse the requests whose time is over: rows that wait, and rows that a process has."""
        self._timer = None
        end = self._clock() - self.served.limits.timeout_s
        for running in list(self._running):
            if running.begin > end:
                break
            self._refuse(running, too_late())
        self._set_timer()

    async def _run(self, process: WorkerProcess, batch: list[WaitingRow]) -> None:
        """Let a process answer a batch; where it ends, each row of it goes once more, alone."""
        rows: list[BatchRow] = [waiting.content for waiting in batch]
        now = self._clock()
        for row in rows:
            row.running.dequeued = now
        points = self._points_of(batch, now)

        def set_results(numbers: Sequence[int], answers: AnswersFrame) -> None:
            some = [rows[number] for number in numbers]
            results = results_of(some, [points[number] for number in numbers], answers)
            for row, result in zip(some, results, strict=True):
                self._set(row.running, row.number, result)

        try:
            frame, timeout_s = frame_of(rows, points, self.served), self.served.limits.timeout_s
            answers = await process.run(
                frame, timeout_s, lambda part: set_results(part.rows, part.answers), batch[0].alone
            )
        except ProcessLost:
            self._retry(batch)
        except Exception:  # neither the rows nor the process may be lost; what the process does now is not known
            log.exception("a batch of %d rows failed", len(rows))
            process.kill()
            self._refuse_rows(batch, Refusal("failed", "internal error"))
        else:
            self.pool.give_back(process)
            tokens = math.prod(frame.inputs["input_ids"].shape)
            self._watcher.batch_done(len(rows), tokens, answers.seconds)
            if self.adaptive is not None:
                self.adaptive.batch_done(points, tokens, answers.seconds)
            set_results(range(len(rows)), answers)

    def _points_of(self, batch: Sequence[WaitingRow], now: float) -> list[str]:
        """Return the names of the points at which the rows of a batch go to a process."""
        tokens = len(batch) * max(row.tokens for row in batch)
        return [
            row.content.running.point
            if self.adaptive is None or not row.content.running.adapts
            else self.adaptive.point_of(row, tokens, now)
            for row in batch
        ]

    def _look_soon(self) -> None:
        """Look at the load as long as rows are in flight, or the point in force is not that without load."""
        if self.adaptive is None or self._looking is not None:
            return
        if self._running or self.adaptive.controller.rung != self.adaptive.ladder.nominal:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look_at_load)

    def _look_at_load(self) -> None:
        assert self.adaptive is not None
        self._looking = None
        self.adaptive.look(self.queue, self.pool.alive, self._clock())
        self._look_soon()

    def _retry(self, batch: list[WaitingRow]) -> None:
        waiting = [row for row in batch if row.content.running.results[row.content.number] is None]
        again = [replace(row, alone=True) for row in waiting if not row.alone and row.content.running in self._running]
        self._watcher.rows_retried(len(again))
        self._refuse_rows(
            [row for row in batch if row.alone],
            Refusal("unavailable", "the process that ran it ended, and so did the next one", 1.0),
        )
        self.queue.add(again)
        self._dispatch_soon()

    def _refuse_rows(self, rows: Sequence[WaitingRow], refusal: Refusal) -> None:
        for waiting in rows:
            row: BatchRow = waiting.content
            self._set(row.running, row.number, RowResult.refused(refusal, tokens=waiting.tokens))

    def _refuse(self, running: Running, refusal: Refusal) -> int:
        """Refuse the rows of a request that have no result; return how many."""
        self.queue.cancel(running)
        numbers = [number for number, result in enumerate(running.results) if result is None]
        for number in numbers:
            self._set(running, number, RowResult.refused(refusal))
        return len(numbers)

    async def drain(self) -> int:
        """Refuse new requests and wait for those that were accepted; return how many rows were refused at the end."""
        self.draining = True
        end = self._clock() + self.served.limits.drain_s
        while self._running and self._clock() < end:
            waiting = {running.finished for running in self._running}
            await asyncio.wait(waiting, timeout=max(end - self._clock(), 0), return_when=asyncio.ALL_COMPLETED)
        return sum(self._refuse(running, ending()) for running in list(self._running))

    async def close(self) -> None:
        """End the processes; requests that are still there are abandoned."""
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._audits is not None:
            self._audits.close()
        for running in list(self._running):
            self.abandon(running)
        for task in self._batches:
            task.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)
        await self.pool.close()
        if self.adaptive is not None:
            self.adaptive.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
