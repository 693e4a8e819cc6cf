"""A batch job on Ray Data in simulated time, and the bounds that it cannot pass. No I/O.

`offramp predict --input DIR --ray`: read tasks turn files into blocks of rows, each file in one task; actors of one
core each answer blocks; the driver gets them back in the order of the files and of their rows, and writes their lines.
Read tasks ask for no core of their own: what they compute is taken from the actors. As Ray Data keeps the order, the
actors get the blocks of a file only after all blocks of the files before it (`ReorderingBundleQueue` of Ray 2.60).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from random import Random

ACTORS_PER_READER = 8
"""As `offramp.cluster.ray_folder` has it."""


@dataclass(frozen=True)
class Costs:
    """Seconds, each of one core.

    Attributes:
        read_row: of reading a row.
        row: of answering a row and making its line.
        actor_block: of Ray in an actor, a block.
        actor_row: of Ray in an actor, a row of a block.
        driver_block: of Ray and of the writer in the driver, a block.
        driver_row: of the same, a row of a block.
        start: from the begin of the job until an actor answers.
    """

    read_row: float
    row: float
    actor_block: float
    actor_row: float
    driver_block: float
    driver_row: float
    start: float

    def block(self, rows: int) -> float:
        """Return an actor's seconds for a block, with the part of reading that its core does."""
        return self.actor_block + rows * (self.actor_row + self.row + self.read_row)

    def driver(self, rows: int) -> float:
        """Return the driver's seconds for a block."""
        return self.driver_block + rows * self.driver_row

    def plain(self) -> float:
        """Return the rows a second of one process on one core without Ray."""
        return 1 / (self.read_row + self.row)


@dataclass(frozen=True)
class Job:
    """A job, and what may go wrong.

    Attributes:
        rows: of all files.
        files: of equal length.
        block_rows: of a block.
        workers: actors.
        buffer: blocks between readers and writer, for each actor; more are not read ahead.
        spread: of the logarithm of a block's time; its mean stays. 0 = all take the same.
        node_actors: that a node runs.
        failures: of a node, an hour.
        restart_s: from a failure until a node's actors answer again.
    """

    rows: int
    files: int
    block_rows: int
    workers: int
    buffer: int = 64
    spread: float = 0.0
    node_actors: int = 16
    failures: float = 0.0
    restart_s: float = 60.0

    @property
    def readers(self) -> int:
        """Return how many files are read at once."""
        return min(self.files, 1 + self.workers // ACTORS_PER_READER)

    @property
    def blocks(self) -> int:
        """Return the number of blocks of a file."""
        return max(self.rows // self.files // self.block_rows, 1)


def bounds(job: Job, costs: Costs) -> dict[str, float]:
    """Return the rows a second that readers, actors and driver could do, each if the others took no time."""
    up = 1.0
    if job.failures:  # a failure takes the node away, and half a block of each actor
        lost_s = job.restart_s + costs.block(job.block_rows) / 2
        up = 1 / (1 + job.failures / 3600 * lost_s)
    return {
        "readers": job.readers / costs.read_row,
        "actors": up * job.workers * job.block_rows / costs.block(job.block_rows),
        "driver": job.block_rows / costs.driver(job.block_rows),
    }


def bottleneck(job: Job, costs: Costs) -> str:
    """Return which of them is the slowest."""
    found = bounds(job, costs)
    return min(found, key=found.__getitem__)


def bound(job: Job, costs: Costs) -> float:
    """Return the rows a second that no job can pass; files are read while actors start."""
    rows, most = job.files * job.blocks * job.block_rows, bounds(job, costs)
    reading_s = rows / most["readers"]
    return rows / max(reading_s, costs.start + rows / min(most["actors"], most["driver"]))


READ, DONE, UP, WRITTEN, FAIL = range(5)
AHEAD = 2
"""Blocks for each actor that are read of the file in turn though the buffer is full."""


@dataclass
class Simulation:
    """A job that runs.

    Attributes:
        job: what is done.
        costs: of its parts.
        seed: of the draws.
        seconds: at which the last line was written.
        peak: the most blocks between readers and writer.
        repeated: blocks that were answered again after failures.
    """

    job: Job
    costs: Costs
    seed: int = 0
    seconds: float = 0.0
    peak: int = 0
    repeated: int = 0
    _events: list[tuple[float, int, int, int]] = field(default_factory=list)
    _count: int = 0

    def run(self) -> float:
        """Run the job; return its rows a second."""
        job, self._random = self.job, Random(self.seed)
        self._again: list[int] = []  # blocks of nodes that failed
        self._ready: set[int] = set()  # blocks that are read
        self._idle: list[int] = []
        self._running: dict[int, tuple[int, int]] = {}  # actor -> block, number of the start
        self._starts = 0
        self._answered: set[int] = set()
        self._following = self._next = self._written = 0  # blocks: that goes to an actor, for the writer, with lines
        self._driver_free = 0.0
        self._files, self._parked = iter(range(job.readers, job.files)), list[int]()
        for file in range(job.readers):
            self._at(job.block_rows * self.costs.read_row, READ, file * job.blocks)
        self._in_flight = job.readers
        for actor in range(job.workers):
            self._at(self.costs.start, UP, actor)
        for node in range(math.ceil(job.workers / job.node_actors) if job.failures else 0):
            self._at(self.costs.start + self._failure_s(), FAIL, node)
        handlers = {READ: self._read, DONE: self._done, UP: self._up, WRITTEN: self._write, FAIL: self._fail}
        total = job.files * job.blocks
        while self._written < total:
            now, _, kind, what = heapq.heappop(self._events)
            handlers[kind](now, what)
        self.seconds = now
        return total * job.block_rows / now

    def _at(self, time: float, kind: int, what: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, kind, what))

    def _read(self, now: float, block: int) -> None:
        self._ready.add(block)
        self._dispatch(now)
        following: int | None = block + 1
        if (block + 1) % self.job.blocks == 0:
            file = next(self._files, None)
            following = None if file is None else file * self.job.blocks
        if following is not None:
            self._parked.append(following)
            self._unpark(now)

    def _unpark(self, now: float) -> None:
        """Let readers go on, the earliest block first; with a full buffer only that of the file that is in turn."""
        self._parked.sort()
        room, ahead = self.job.buffer * self.job.workers, self._next + AHEAD * self.job.workers
        while self._parked and (self._in_flight < room or self._is_wanted(self._parked[0], ahead)):
            self._in_flight += 1
            self.peak = max(self.peak, self._in_flight)
            self._at(now + self.job.block_rows * self.costs.read_row, READ, self._parked.pop(0))

    def _is_wanted(self, block: int, ahead: int) -> bool:
        return block // self.job.blocks == self._following // self.job.blocks and block < ahead

    def _take(self) -> int | None:
        """Return the block that goes to an actor next; None where it is not read yet."""
        if self._again:
            return self._again.pop()
        if self._following not in self._ready:
            return None
        self._ready.remove(self._following)
        self._following += 1
        return self._following - 1

    def _dispatch(self, now: float) -> None:
        while self._idle and (block := self._take()) is not None:
            actor = self._idle.pop()
            spread = self.job.spread
            factor = math.exp(self._random.gauss(-spread * spread / 2, spread)) if spread else 1.0
            self._starts += 1
            self._running[actor] = block, self._starts
            self._at(now + factor * self.costs.block(self.job.block_rows), DONE, actor * 2**40 + self._starts)

    def _done(self, now: float, what: int) -> None:
        actor, start = divmod(what, 2**40)
        if self._running.get(actor, (0, 0))[1] != start:
            return  # its node has failed since
        block, _ = self._running.pop(actor)
        self._answered.add(block)
        self._idle.append(actor)
        while self._next in self._answered:
            self._answered.remove(self._next)
            self._next += 1
            self._driver_free = max(self._driver_free, now) + self.costs.driver(self.job.block_rows)
            self._at(self._driver_free, WRITTEN, 0)
        self._unpark(now)
        self._dispatch(now)

    def _write(self, now: float, _: int) -> None:
        self._written += 1
        self._in_flight -= 1
        self._unpark(now)

    def _up(self, now: float, actor: int) -> None:
        self._idle.append(actor)
        self._dispatch(now)

    def _fail(self, now: float, node: int) -> None:
        """Take a node's actors away until they are started again; their blocks go to others, first of all."""
        first = node * self.job.node_actors
        actors = range(first, min(first + self.job.node_actors, self.job.workers))
        lost = [self._running.pop(actor)[0] for actor in actors if actor in self._running]
        self.repeated += len(lost)
        self._again = sorted([*self._again, *lost], reverse=True)
        self._idle = [actor for actor in self._idle if actor not in actors]
        for actor in actors:
            self._at(now + self.job.restart_s, UP, actor)
        self._at(now + self.job.restart_s + self._failure_s(), FAIL, node)

    def _failure_s(self) -> float:
        return self._random.expovariate(self.job.failures / 3600)
