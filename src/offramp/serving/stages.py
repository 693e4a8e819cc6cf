"""Batches of a process that runs a model in torch: rows of several of them go on together, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, final

from offramp.errors import OfframpError
from offramp.inference.answer_rows import RowAnswers, RowPlan
from offramp.inference.inputs import in_parts
from offramp.inference.torch_engine import TorchEngine
from offramp.inference.torch_rows import TorchRows, measured_prices
from offramp.serving.frames import AnswersFrame, BatchFrame, Frame, PartFrame

Result = TypeVar("Result")


@final
class Stages:
    """Rows of several batches in flight, which are answered as they leave.

    Where the model fails on rows, it runs each half of them, down to the rows at fault.
    """

    def __init__(self, engine: TorchEngine, plan: Callable[[str, int | None], RowPlan]) -> None:
        """Take a model, whose stages are timed here, and what makes a plan of a point's name and a bound."""
        self._rows, self._plan = TorchRows(engine, measured_prices(engine)), plan
        self._errors: dict[int, dict[int, str]] = {}  # by batch

    @property
    def busy(self) -> bool:
        """Return whether rows are in flight."""
        return bool(self._rows.groups)

    def add(self, batch: BatchFrame) -> list[Frame]:
        """Take a batch; return what is to be written, where some of its rows are at fault."""
        number, count = batch.number, len(batch.plans)
        inputs = {name: frame.array() for name, frame in batch.inputs.items()}
        plans = [self._plan(name, depth) for name, depth in batch.plans]
        self._rows.open(number, count, batch.by_exit)
        self._errors[number] = {}

        def start(rows: Sequence[int]) -> None:
            part = slice(rows[0], rows[-1] + 1)
            self._rows.start(number, rows, {name: value[part] for name, value in inputs.items()}, plans[part])

        _, faults = in_parts(_blamed(start), range(count))
        return self._answers({}, {(number, row): fault for row, fault in faults.items()})

    def run(self) -> list[Frame]:
        """Run a stage; return the answers that are to be written."""
        group = self._rows.pop()
        numbers, count = group.rows, len(group.batch)
        results, faults = in_parts(
            _blamed(lambda rows: self._rows.advance(group if len(rows) == count else group.take(rows))), range(count)
        )
        left: dict[int, list[int]] = {}
        for result in results:
            for number, rows in result.items():
                left.setdefault(number, []).extend(rows)
        return self._answers(left, {numbers[row]: fault for row, fault in faults.items()})

    def _answers(self, left: Mapping[int, list[int]], faults: Mapping[tuple[int, int], str]) -> list[Frame]:
        """Return the answers of rows that have left, and those of whole batches where no row is missing any more."""
        for row, fault in faults.items():
            self._rows.fail(row)
            self._errors[row[0]][row[1]] = fault
        frames: list[Frame] = []
        for number in {*left, *(number for number, _ in faults)}:
            batch = self._rows.batches[number]
            if batch.missing == 0:
                self._rows.close(number)
                frames.append(AnswersFrame.of(batch.answers, self._errors.pop(number), batch.seconds, number))
            elif rows := left.get(number):
                frames.append(PartFrame(rows, AnswersFrame.of(_some(batch.answers, rows), {}, 0.0, number)))
        return frames


def _blamed(run: Callable[[Sequence[int]], Result]) -> Callable[[Sequence[int]], Result]:
    """Return a call whose errors of offramp's own are those of a row, not the caller's; see `in_parts`."""

    def blamed(rows: Sequence[int]) -> Result:
        try:
            return run(rows)
        except OfframpError as error:
            raise ValueError(str(error)) from error

    return blamed


def _some(answers: RowAnswers, rows: Sequence[int]) -> RowAnswers:
    """Return the answers of some rows."""
    by_exit = None if answers.logits_by_exit is None else answers.logits_by_exit[rows]
    return RowAnswers(answers.logits[rows], answers.exit_layers[rows], answers.failed[rows], by_exit, answers.layers)
