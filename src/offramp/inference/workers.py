"""Workers: threads that answer batches at the same time, over one engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, final

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST_ROWS = 2
"""Rows of a part, at least, where a batch is divided: a row alone takes 1.3 times its time in a pair (MiniLM, int8)."""


def cores() -> int:
    """Return the number of cores to use: OMP_NUM_THREADS, else those that this process may run on, and may use up.

    The variable may be a list of numbers for nested loops, of which the first counts, as in OpenMP. A container may run
    on all cores of a machine for a part of the time (docker's --cpus, a limit of Kubernetes): then its part counts.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, _quota() or count)


def _quota() -> int | None:
    """Return how many cores' time the control group of this process may take, rounded up; None = no limit is known."""
    try:
        group = next(line for line in _OWN_GROUP.read_text("ascii").splitlines() if line.startswith("0::/"))
        limit, period = (_GROUPS / group[4:] / "cpu.max").read_text("ascii").split()
        return None if limit == "max" else max(-(-int(limit) // int(period)), 1)
    except (OSError, StopIteration, ValueError):  # another system, or control groups of the first version
        return None


_OWN_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@final
class WorkerPool:
    """Threads that answer batches beside the thread that asks for the answers, which is the first worker.

    The threads start when they are first needed, and again in a process that was forked. Pickled, a pool is its number.

    Attributes:
        workers: number of batches at the same time, at least 1.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._started: tuple[int, ThreadPoolExecutor] | None = None  # the process, and its threads

    def __reduce__(self) -> tuple[type[WorkerPool], tuple[int]]:
        return WorkerPool, (self.workers,)

    def map(self, run: Callable[[Item], Result], items: Collection[Item]) -> list[Result]:
        """Return the results of all items, in their order; each worker takes the next item when it is free.

        Raises:
            BaseException: the first error; items that run then end before, the others do not begin.
        """
        source: Iterator[tuple[int, Item]] = iter(enumerate(items))
        lock = threading.Lock()
        results: dict[int, Result] = {}

        def work() -> None:
            nonlocal source
            try:
                while True:
                    with lock:
                        numbered = next(source, None)
                    if numbered is None:
                        return
                    results[numbered[0]] = run(numbered[1])
            except BaseException:
                with lock:
                    source = iter(())
                raise

        helpers = [self._threads().submit(work) for _ in range(min(self.workers, len(items)) - 1)]
        try:
            work()
        finally:
            errors = [helper.exception() for helper in helpers if not helper.cancel()]
        for error in filter(None, errors):
            raise error
        return [results[number] for number in range(len(results))]

    def submit(self, run: Callable[[], None]) -> Future[None]:
        """Run something in one of the threads, once one is free."""
        return self._threads().submit(run)

    def _threads(self) -> ThreadPoolExecutor:
        if self._started is None or self._started[0] != os.getpid():
            self._started = (os.getpid(), ThreadPoolExecutor(self.workers - 1, "offramp-worker"))
        return self._started[1]


def shared(batches: Sequence[Sequence[int]], lengths: Sequence[int], workers: int) -> list[list[int]]:
    """Return batches of which the last ones are divided, where they would leave workers without work.

    Args:
        batches: row numbers.
        lengths: (N,) tokens of each row.
        workers: that answer batches at the same time.
    """
    whole = len(batches) - len(batches) % workers
    left = batches[whole:]
    parts = [part for batch in left for part in _parts(batch, lengths, -(-workers // len(left)))]
    return [*map(list, batches[:whole]), *parts]


def _parts(batch: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Divide a batch into parts of about as many tokens, none of less than LEAST_ROWS rows on average."""
    count = max(min(count, len(batch) // LEAST_ROWS), 1)
    total, before = sum(1 + lengths[row] for row in batch), 0  # an image has no tokens
    parts: list[list[int]] = [[] for _ in range(count)]
    for row in batch:
        parts[before * count // total].append(row)
        before += 1 + lengths[row]
    return [part for part in parts if part]
