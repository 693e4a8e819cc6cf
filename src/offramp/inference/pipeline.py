"""Texts in, answers out, in order: the thread that asks reads and tokenizes, all workers run what is scheduled."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp.data.batching import Tokens
from offramp.data.rows import Text
from offramp.inference.answers import Answer
from offramp.inference.flight import Flight, LeftRows, Runner
from offramp.inference.inputs import in_parts
from offramp.inference.scheduler import Batch, Scheduler
from offramp.inference.stream import Source
from offramp.inference.workers import WorkerPool

WINDOW = 1024
"""The most texts that are tokenized and sorted by length together."""

MOST_TOKENS = 1 << 16
"""Tokens in flight, from which on no more texts are read."""

SIGNAL_S = 0.5
"""How long to wait without a look at signals: Ctrl-C just before a wait is noticed only at its end."""


@dataclass(frozen=True)
class Fault:
    """An item that is no text: it has this error in place of an answer."""

    error: str


@dataclass(frozen=True)
class Steps:
    """What a pipeline does with texts.

    Attributes:
        encode: returns tokens and faults, both by the text's position in what it is given.
        runner: the engine.
        sizes: rows of a batch that is worth it, by stage.
        answer: returns the answers of rows that have left.
    """

    encode: Callable[[Sequence[Text]], tuple[Mapping[int, Tokens], Mapping[int, str]]]
    runner: Runner
    sizes: Sequence[int]
    answer: Callable[[LeftRows], list[Answer]]


@final
class Pipeline:
    """Answers the texts of one source.

    The thread that runs it is the first worker. It reads and tokenizes while there is room, and runs batches where
    there is none; the others are called where there are batches for them.
    """

    def __init__(self, source: Source[Text | Fault], steps: Steps, pool: WorkerPool) -> None:
        self._source, self._steps, self._pool = source, steps, pool
        # of the first worker alone
        self._ready: deque[Flight] = deque()  # tokenized, and not in flight yet
        self._read = self._returned = 0
        self._ended = False
        # of all workers
        self._changed = threading.Condition()
        self._changes = 0
        self._scheduler = Scheduler(steps.sizes, MOST_TOKENS, source.linger_s, pool.workers)
        self._answers: dict[int, Answer] = {}
        self._helpers: list[Future[None]] = []
        self._helping = 0
        self._stopped = False
        self._failure: BaseException | None = None

    def run(self) -> Iterator[list[Answer]]:
        """Yield answers in the order of the texts, as many at once as there are.

        Raises:
            BaseException: what ended the source, after the answers to the texts before it; what no text is to blame
                for, at once.
        """
        self._source.open(self._notify)
        try:
            while not (self._ended and self._returned == self._read):
                changes = self._changes
                if answers := self._in_order():
                    yield answers
                elif not (self._feed() or self._run_next()):
                    self._wait(changes)
        finally:
            self._stop()
        if self._source.error is not None:
            raise self._source.error

    def _notify(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _in_order(self) -> list[Answer]:
        """Return the answers that no text before them lacks."""
        answers = []
        while (answer := self._answers.pop(self._returned, None)) is not None:
            self._returned += 1
            answers.append(answer)
        return answers

    def _feed(self) -> bool:
        """Let texts take off while there is room; return whether some came, or the end."""
        if self._ended or not self._scheduler.room:
            return False
        items: list[Text | Fault] = []
        if not self._ready:
            items = self._source.take(WINDOW)
            self._start(items)
        with self._changed:
            while self._ready and self._scheduler.room:
                self._scheduler.add(self._ready.popleft(), time.monotonic())
            if self._source.ended and not self._ready:
                self._scheduler.end()
                self._ended = True
        return self._ended or bool(items)

    def _start(self, items: Sequence[Text | Fault]) -> None:
        """Tokenize items, and make flights of those of similar length."""
        numbers = [self._read + index for index, item in enumerate(items) if not isinstance(item, Fault)]
        answers = {
            self._read + index: Answer(error=item.error) for index, item in enumerate(items) if isinstance(item, Fault)
        }
        tokens, faults = self._steps.encode([item for item in items if not isinstance(item, Fault)])
        answers |= {numbers[index]: Answer(error=fault) for index, fault in faults.items()}
        self._read += len(items)
        lengths = {index: -len(row["input_ids"]) for index, row in tokens.items()}
        order = sorted(tokens, key=lengths.__getitem__)
        size = self._steps.sizes[0]
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            flights, failed = in_parts(lambda rows: self._take_off(rows, tokens, numbers), chosen)
            self._ready.extend(flights)
            answers |= {numbers[index]: Answer(error=fault) for index, fault in failed.items()}
        with self._changed:
            self._answers |= answers

    def _take_off(self, rows: Sequence[int], tokens: Mapping[int, Tokens], numbers: Sequence[int]) -> Flight:
        return self._steps.runner.start(np.array([numbers[row] for row in rows]), [tokens[row] for row in rows])

    def _run_next(self) -> bool:
        """Run a batch in this thread, and others in others; return whether there was one."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            batch = self._scheduler.next_batch(time.monotonic())
            while self._scheduler.full and self._helping < self._pool.workers - 1:
                self._helping += 1
                self._helpers = [helper for helper in self._helpers if not helper.done()]
                self._helpers.append(self._pool.submit(self._help))
        if batch is not None:
            self._run_batch(batch)
        return batch is not None

    def _help(self) -> None:
        """Run batches in this thread as long as there are some."""
        try:
            while True:
                with self._changed:
                    batch = None if self._stopped else self._scheduler.next_batch(time.monotonic())
                    if batch is None:
                        self._helping -= 1
                        return
                self._run_batch(batch)
        except BaseException as error:
            self._failure = error
            self._notify()

    def _run_batch(self, batch: Batch) -> None:
        """Run the stage of a batch; where that fails, on each half of its rows, down to those at fault."""
        flight = batch.flight()
        count = len(flight.rows)

        def advance(rows: Sequence[int]) -> tuple[LeftRows | None, Flight | None]:
            return (flight if len(rows) == count else flight.take(np.array(rows))).advance()

        results, faults = in_parts(advance, range(count))
        answers = {int(flight.rows[row]): Answer(error=fault) for row, fault in faults.items()}
        for left, _ in results:
            if left is not None:
                answers |= zip(left.rows.tolist(), self._steps.answer(left), strict=True)
        with self._changed:
            self._answers |= answers
            self._scheduler.done(batch, [onward for _, onward in results], time.monotonic())
            self._changes += 1
            self._changed.notify_all()

    def _wait(self, changes: int) -> None:
        """Wait until something has changed since, or a row has waited long enough."""
        with self._changed:
            wait_s = min(SIGNAL_S, max(self._scheduler.due - time.monotonic(), 0.0))
            self._changed.wait_for(lambda: self._changes != changes, wait_s)

    def _stop(self) -> None:
        """End the reading thread and the other workers, once their batches are done."""
        self._source.close()
        with self._changed:
            self._stopped = True
        for helper in self._helpers:
            if not helper.cancel():
                helper.exception()
