"""A process that runs the model: `python -m offramp.serving.worker FD`, with one end of a socket pair.

It loads the engine, warms it up, and answers batch after batch; it ends with the socket. It knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from select import POLLIN, poll
from typing import TYPE_CHECKING, final

import numpy as np

from offramp.data.padding import Array
from offramp.errors import InvalidInput, OfframpError, one_line
from offramp.inference.answer_rows import RowAnswers, RowPlan, answer_rows
from offramp.inference.choose_engine import batch_rows
from offramp.inference.engine import Engine
from offramp.inference.inputs import in_parts
from offramp.inference.load_engine import load_with_workers, threads_of
from offramp.inference.onnx_engine import GraphEngine, leave_layers
from offramp.inference.point_check import check_engine_of
from offramp.model.points import load_point, load_points
from offramp.serving.frames import (
    LENGTH_BYTES,
    AnswersFrame,
    BatchFrame,
    FaultFrame,
    Frame,
    ReadyFrame,
    StartFrame,
    pack,
    unpack,
)
from offramp.serving.served import FULL
from offramp.types.operating_point import OperatingPoint

if TYPE_CHECKING:
    from offramp.serving.stages import Stages

WARM_UP_ROWS, WARM_UP_TOKENS = (1, 32), (8, 32)

ROOM = 4
"""Rows of a process that runs stage by stage, from which on it takes no more: others wait better where they can be
cancelled."""


@final
@dataclass(frozen=True)
class Worker:
    """An engine with the operating points that it can run.

    Attributes:
        engine: runs the model.
        points: by name.
    """

    engine: Engine
    points: Mapping[str, OperatingPoint]

    @classmethod
    def load(cls, start: StartFrame) -> Worker:
        """Load the engine and the points.

        Raises:
            OfframpError: the engine cannot be loaded, or cannot run the server's point.
        """
        point = None if start.point is None else load_point(start.folder, start.point)
        engine, _ = load_with_workers(start.folder, start.engine, point, start.threads, 1, 1, start.allow_other_engine)
        points = {}
        for name, other in load_points(start.folder).items():
            try:
                engine.check(other)
                check_engine_of(other, engine, start.allow_other_engine)
            except InvalidInput:
                continue
            points[name] = other
        return cls(engine, points)

    def plan(self, point: str, max_depth: int | None) -> RowPlan:
        """Return the plan of a row: the name of its point, FULL = full depth, and its bound on the depth."""
        return RowPlan(None if point == FULL else self.points[point], max_depth)

    @property
    def digest(self) -> str:
        """Return a digest of the points and of a graph's metadata."""
        graph = self.engine.graph.metadata if isinstance(self.engine, GraphEngine) else None
        return hashlib.sha256(repr((graph, sorted(self.points.items()))).encode()).hexdigest()

    def warm_up(self, point: str | None) -> None:
        """Answer batches of a few shapes."""
        for rows in WARM_UP_ROWS:
            for tokens in WARM_UP_TOKENS:
                ids = np.ones((rows, tokens), np.int64)
                names = ("input_ids", "attention_mask")
                plans = [self.plan(point or FULL, None)] * rows
                answer_rows(self.engine, dict.fromkeys(names, ids), plans)

    def stages(self) -> Stages | None:
        """Return what runs the rows of a model in torch stage by stage; None = another engine, with a call a batch."""
        if isinstance(self.engine, GraphEngine):
            return None
        from offramp.inference.torch_engine import TorchEngine

        if not isinstance(self.engine, TorchEngine):
            return None
        from offramp.serving.stages import Stages

        return Stages(self.engine, self.plan)

    def answer(self, batch: BatchFrame) -> AnswersFrame:
        """Answer a batch; where the engine fails, each half of it, down to the rows at fault."""
        begin = time.perf_counter()
        inputs = {name: frame.array() for name, frame in batch.inputs.items()}
        plans = [self.plan(name, depth) for name, depth in batch.plans]

        def run(rows: Sequence[int]) -> tuple[Sequence[int], RowAnswers]:
            part = _part(rows)
            try:
                some = {name: value[part] for name, value in inputs.items()}
                return rows, answer_rows(self.engine, some, plans[part], batch.by_exit)
            except OfframpError as error:  # which `in_parts` takes for the caller's; here a row is to blame
                raise ValueError(str(error)) from error

        parts, errors = in_parts(run, range(len(plans)))
        return _to_frame(parts, errors, batch, self.engine.config.num_labels, begin)


def _part(rows: Sequence[int]) -> slice:
    """Return the slice of rows that follow one another, as those of a half do."""
    return slice(rows[0], rows[-1] + 1)


def _to_frame(
    parts: Sequence[tuple[Sequence[int], RowAnswers]],
    errors: Mapping[int, str],
    batch: BatchFrame,
    outputs: int,
    begin: float,
) -> AnswersFrame:
    """Join the answers of parts of a batch."""
    rows = len(batch.plans)
    logits = np.full((rows, outputs), np.nan, np.float32)
    exit_layers, failed = np.full(rows, -1), np.zeros(rows, bool)
    by_exit: Array | None = None
    layers: tuple[int, ...] = ()
    for numbers, answers in parts:
        part = _part(numbers)
        logits[part], exit_layers[part], failed[part] = answers.logits, answers.exit_layers, answers.failed
        if answers.logits_by_exit is not None:
            layers = answers.layers
            by_exit = np.full((rows, len(layers), outputs), np.nan, np.float32) if by_exit is None else by_exit
            by_exit[part] = answers.logits_by_exit
    answers = RowAnswers(logits, exit_layers, failed, by_exit, layers)
    return AnswersFrame.of(answers, errors, time.perf_counter() - begin, batch.number)


def _receive(connection: socket.socket) -> Frame | None:
    """Return the next message; None at the end."""
    length = _read(connection, LENGTH_BYTES)
    content = None if length is None else _read(connection, int.from_bytes(length, "big"))
    return None if content is None else unpack(content)


def _read(connection: socket.socket, count: int) -> bytes | None:
    content = bytearray(count)
    view = memoryview(content)
    while view:
        received = connection.recv_into(view)
        if not received:
            return None
        view = view[received:]
    return bytes(content)


def serve(connection: socket.socket) -> None:
    """Load the model that the first message names, and answer batches until the other end closes."""
    start = _receive(connection)
    if not isinstance(start, StartFrame):
        return
    begin = time.perf_counter()
    try:
        worker = Worker.load(start)
        worker.warm_up(start.point)
        stages = worker.stages()
    except OfframpError as error:
        connection.sendall(pack(FaultFrame(one_line(error))))
        return
    except Exception as error:  # of a library that loads or runs the model
        connection.sendall(pack(FaultFrame(f"{start.folder}: {type(error).__name__}: {one_line(error)}")))
        return
    rows = start.batch_rows or batch_rows(start.folder, worker.engine.name, threads_of(worker.engine), 1)
    ready = ReadyFrame(
        worker.engine.name,
        tuple(leave_layers(worker.engine)),
        list(worker.points),
        rows,
        1 if stages is None else ROOM,
        worker.digest,
        time.perf_counter() - begin,
    )
    connection.sendall(pack(ready))
    arrivals = poll()  # `select` takes no descriptor above 1023, which a busy server may hand on
    arrivals.register(connection, POLLIN)
    take = (lambda batch: [worker.answer(batch)]) if stages is None else stages.add
    while True:
        if stages is not None and stages.busy and not arrivals.poll(0):
            frames: Sequence[Frame] = stages.run()
        elif (batch := _receive(connection)) is None:
            return
        else:
            frames = take(batch) if isinstance(batch, BatchFrame) else []
        for frame in frames:
            connection.sendall(pack(frame))


def main() -> None:
    """Serve the socket that the command line names."""
    for name in (signal.SIGINT, signal.SIGTERM):  # the process that speaks HTTP decides when this one ends
        signal.signal(name, signal.SIG_IGN)
    logging.getLogger("offramp").setLevel(logging.ERROR)  # that process has logged what there is to say
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        try:
            serve(connection)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


if __name__ == "__main__":
    main()
