"""Messages between the process that speaks HTTP and those that run the model: 4 bytes of length, then msgpack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from offramp.data.padding import Array

if TYPE_CHECKING:
    from offramp.inference.answer_rows import RowAnswers


class ArrayFrame(msgspec.Struct, array_like=True):
    """An array: its bytes, its dtype and its shape."""

    content: bytes
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array) -> ArrayFrame:
        """Return the frame of an array."""
        return cls(array.tobytes(), array.dtype.str, array.shape)

    def array(self) -> Array:
        """Return the array, read-only."""
        return np.frombuffer(self.content, self.dtype).reshape(self.shape)


class StartFrame(msgspec.Struct, tag="start", array_like=True):
    """The first message to a process that runs the model.

    Attributes:
        folder: of the model.
        engine: a name of `offramp.inference.engine.ENGINES`; never "auto".
        threads: that compute a batch; None = the engine's default.
        point: the name of the server's operating point; None = full depth.
        allow_other_engine: run points with a certificate on an engine that they do not hold for.
        batch_tokens: of the largest batch, for the warm-up.
        batch_rows: rows of a batch; None = as many as costs measured on this machine say are worth it.
    """

    folder: str
    engine: str
    threads: int | None
    point: str | None
    allow_other_engine: bool
    batch_tokens: int
    batch_rows: int | None


class BatchFrame(msgspec.Struct, tag="batch", array_like=True):
    """A padded batch.

    Attributes:
        inputs: (B, T) by name.
        plans: of each row, the name of its operating point ("full" = full depth) and its bound on the depth.
        by_exit: whether the logits of every exit are wanted.
        number: of the batch, among those of a process.
    """

    inputs: dict[str, ArrayFrame]
    plans: list[tuple[str, int | None]]
    by_exit: bool
    number: int = 0


class AnswersFrame(msgspec.Struct, tag="answers", array_like=True):
    """The answers of a batch (see `offramp.inference.answer_rows.RowAnswers`).

    Attributes:
        logits: (B, C) float32.
        exit_layers: of each row; -1 where there is an error.
        failed: of each row, whether its logits are not finite.
        errors: row number -> why the engine cannot answer it.
        logits_by_exit: (B, E, C).
        layers: of its exits.
        seconds: that the batch took.
        number: of the batch.
    """

    logits: ArrayFrame
    exit_layers: list[int]
    failed: list[bool]
    errors: dict[int, str]
    logits_by_exit: ArrayFrame | None
    layers: tuple[int, ...]
    seconds: float
    number: int = 0

    @classmethod
    def of(cls, answers: RowAnswers, errors: Mapping[int, str], seconds: float, number: int) -> AnswersFrame:
        """Return the message of answers."""
        return cls(
            ArrayFrame.of(answers.logits),
            answers.exit_layers.tolist(),
            answers.failed.tolist(),
            dict(errors),
            None if answers.logits_by_exit is None else ArrayFrame.of(answers.logits_by_exit),
            answers.layers,
            seconds,
            number,
        )


class PartFrame(msgspec.Struct, tag="part", array_like=True):
    """The answers of some rows of a batch, before those of all.

    Attributes:
        rows: their numbers in the batch.
        answers: of these rows alone.
    """

    rows: list[int]
    answers: AnswersFrame


class ReadyFrame(msgspec.Struct, tag="ready", array_like=True):
    """A process has loaded and warmed up the model.

    Attributes:
        engine: with its precision.
        layers_read: the layers whose exits the engine reads.
        points: names of the operating points that it can run.
        batch_rows: rows of a batch that is worth it.
        room: a process takes another batch as long as it has fewer rows than this; 1 = one batch after the other.
        digest: of the points and, where a graph runs, of its metadata: processes that answer beside each other agree.
        seconds: that loading and warming up took.
    """

    engine: str
    layers_read: tuple[int, ...]
    points: list[str]
    batch_rows: int
    room: int
    digest: str
    seconds: float


class FaultFrame(msgspec.Struct, tag="fault", array_like=True):
    """A process cannot load the model, and ends.

    Attributes:
        message: one line.
    """

    message: str


Frame = StartFrame | BatchFrame | AnswersFrame | PartFrame | ReadyFrame | FaultFrame
LENGTH_BYTES = 4
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Frame)


def pack(frame: Frame) -> bytes:
    """Return a message with its length before it."""
    content = _ENCODER.encode(frame)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def unpack(content: bytes) -> Frame:
    """Return the message of its bytes, without the length."""
    frame: Frame = _DECODER.decode(content)
    return frame
