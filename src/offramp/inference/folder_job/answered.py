"""Blocks of rows -> the lines of their answers, and what they amount to."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from offramp.data.rows import Text
from offramp.inference.answers import Answer
from offramp.inference.folder_job.blocks import RowBlock
from offramp.inference.pipeline import Fault
from offramp.inference.predictor import Predictor
from offramp.inference.stream import SteadySource


@dataclass
class Tally:
    """Counts answers.

    Attributes:
        rows: all rows.
        errors: rows without an answer.
        exit_layers: rows by the layer after which they left.
        first: the first row without an answer, and why.
    """

    rows: int = 0
    errors: int = 0
    exit_layers: Counter[int] = field(default_factory=Counter)
    first: str = ""

    def add(self, answer: Answer, where: str = "") -> None:
        """Count an answer; `where` names its row."""
        self.rows += 1
        if "error" in answer:
            self.errors += 1
            self.first = self.first or f"{where}: {answer['error']}"
        else:
            self.exit_layers[answer["exit_layer"]] += 1

    def update(self, other: Tally) -> None:
        """Add what another one has counted, of rows that follow."""
        self.rows += other.rows
        self.errors += other.errors
        self.exit_layers.update(other.exit_layers)
        self.first = self.first or other.first


@dataclass(frozen=True)
class AnsweredBlock:
    """The answers to a `RowBlock`, whose other fields are the same.

    Attributes:
        text: a line of JSON for each row, each with its line end.
        tally: counts them.
    """

    file: int
    digest: str
    start: int
    text: str
    tally: Tally
    last: bool
    error: str


def answer_blocks(
    predictor: Predictor, blocks: Iterable[RowBlock], batch_size: int | None, top_k: int | None
) -> Generator[AnsweredBlock, None, None]:
    """Answer blocks as one stream of rows, so that batches are full however few rows a file has.

    Args:
        predictor: answers.
        blocks: in any order.
        batch_size: see `Predictor.__call__`.
        top_k: likewise.
    """
    read: deque[RowBlock] = deque()
    answers: list[Answer] = []

    def items() -> Iterator[Text | Fault]:
        for block in blocks:
            read.append(block)
            yield from block.items

    def answered() -> Iterator[AnsweredBlock]:
        while read and len(answers) >= len(read[0].items):
            block = read.popleft()
            count = len(block.items)
            yield to_lines(block, answers[:count])
            del answers[:count]

    for some in predictor.answer_source(SteadySource(items()), batch_size, top_k):
        answers += some
        yield from answered()
    yield from answered()


def to_lines(block: RowBlock, answers: Sequence[Answer]) -> AnsweredBlock:
    """Return the lines of a block's answers; an answer that is an error names its row's line."""
    tally, lines = Tally(), []
    for line, answer in zip(block.lines, answers, strict=True):
        tally.add(answer, f"{block.where}{line}")
        if "error" in answer:
            answer["line"] = line
        lines.append(json.dumps(answer, ensure_ascii=False) + "\n")
    text = "".join(lines)
    return AnsweredBlock(block.file, block.digest, block.start, text, tally, block.last, block.error)
