"""Example texts that left early, that ran to the end, and that lost their right answer by leaving early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.report.html.exits import right_rows
from offramp.types.exit_names import exit_time
from offramp.types.outputs import Answers, ExitOutput, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace, labels_of

MAX_CHARACTERS = 280
"""Characters of a text that the page shows."""
MAX_EXAMPLES = 4
"""Texts of a group that the page shows."""


@dataclass(frozen=True)
class Example:
    """A text with its exit layer, its label, the early answer and the full model's."""

    text: str
    layer: int
    label: str
    early: str
    full: str


@dataclass(frozen=True)
class Group:
    """A few examples of `count` rows."""

    title: str
    count: int
    examples: tuple[Example, ...]


def groups(
    trace: Trace, answers: Answers, texts: Sequence[str | tuple[str, str]], names: Sequence[str]
) -> tuple[Group, ...]:
    """Return example texts of the first exit, of the last exit, and of right answers lost by leaving early.

    They are drawn at random with a fixed seed, so that they represent their group.

    Args:
        trace: with labels, (L, N, C).
        answers: early answers for the same rows.
        texts: N texts or pairs.
        names: of the C classes; () for regression.
    """
    layers = answers.exit_layers
    first, last = int(layers.min()), trace.layer_numbers[-1]
    rows_by_title = {f"Left first, {exit_time(first)}": layers == first} if first < last else {}
    rows_by_title[f"Went to the end, layer {last}"] = layers == last
    if trace.problem_type != REGRESSION:
        lost = right_rows(trace, trace.logits[-1]) & ~right_rows(trace, answers.logits)
        rows_by_title["Lost by leaving early: the full model is right"] = lost
    examples = _Examples(trace, answers, texts, names)
    return tuple(Group(title, int(rows.sum()), examples.draw(rows)) for title, rows in rows_by_title.items())


@dataclass(frozen=True)
class _Examples:
    trace: Trace
    answers: Answers
    texts: Sequence[str | tuple[str, str]]
    names: Sequence[str]

    def draw(self, selected: Tensor) -> tuple[Example, ...]:
        rows = selected.nonzero().flatten()
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MAX_EXAMPLES]
        return tuple(self._example(row) for row in sorted(rows[mixed].tolist()))

    def _example(self, row: int) -> Example:
        return Example(
            shortened(self.texts[row]),
            int(self.answers.exit_layers[row]),
            self._label(row),
            self._answer(self.answers.logits[row]),
            self._answer(self.trace.logits[-1, row]),
        )

    def _label(self, row: int) -> str:
        label = labels_of(self.trace)[row]
        if self.trace.problem_type == REGRESSION:
            return _numbers(label)
        return _named(label.long().view(-1), self.names, self.trace.problem_type == MULTI_LABEL)

    def _answer(self, logits: Tensor) -> str:
        if self.trace.problem_type == REGRESSION:
            return _numbers(logits)
        predicted = predictions(ExitOutput(logits[None], problem_type=self.trace.problem_type))[0]  # (G,)
        return _named(predicted, self.names, self.trace.problem_type == MULTI_LABEL)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.view(-1).tolist())


def _named(classes: Tensor, names: Sequence[str], several: bool) -> str:
    if not several:
        return names[int(classes)]
    return ", ".join(name for name, present in zip(names, classes.tolist(), strict=True) if present) or "none"


def shortened(text: str | tuple[str, str]) -> str:
    """Return one line of at most MAX_CHARACTERS; a bar separates the two texts of a pair."""
    whole = text if isinstance(text, str) else " | ".join(text)
    whole = " ".join(whole.split())
    return whole if len(whole) <= MAX_CHARACTERS else whole[: MAX_CHARACTERS - 1].rstrip() + "…"
