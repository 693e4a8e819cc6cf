"""Texts that left early, that left late, and that leaving early has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.report.html.exits import right_rows
from offramp.types.outputs import Answers, ExitOutput, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace, labels_of

LONGEST = 280
"""Characters of a text that are shown."""
SHOWN = 4
"""Texts of a kind that are shown."""


@dataclass(frozen=True)
class Example:
    """A text, and what became of it: its label, the early answer, the full model's."""

    text: str
    layer: int
    label: str
    early: str
    full: str


@dataclass(frozen=True)
class Group:
    """Texts of one kind, a few of `count`."""

    title: str
    count: int
    examples: tuple[Example, ...]


def groups(
    trace: Trace, answers: Answers, texts: Sequence[str | tuple[str, str]], names: Sequence[str]
) -> tuple[Group, ...]:
    """A few texts that left first, that went to the end, and that leaving early has cost.

    They are drawn at random (with one seed), so that they stand for their kind.

    Args:
        trace: with labels, (L, N, C).
        answers: the early ones, of the same rows.
        texts: N texts or pairs.
        names: of the C classes; () for regression.
    """
    layers = answers.exit_layers
    first, last = int(layers.min()), trace.layer_numbers[-1]
    kinds = {f"Left first, after layer {first}": layers == first} if first < last else {}
    kinds[f"Went to the end, layer {last}"] = layers == last
    if trace.problem_type != REGRESSION:
        lost = right_rows(trace, trace.logits[-1]) & ~right_rows(trace, answers.logits)
        kinds["Lost by leaving early: the full model is right"] = lost
    told = _Told(trace, answers, texts, names)
    return tuple(Group(title, int(chosen.sum()), told.some(chosen)) for title, chosen in kinds.items())


@dataclass(frozen=True)
class _Told:
    trace: Trace
    answers: Answers
    texts: Sequence[str | tuple[str, str]]
    names: Sequence[str]

    def some(self, chosen: Tensor) -> tuple[Example, ...]:
        rows = chosen.nonzero().flatten()
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:SHOWN]
        return tuple(self._example(row) for row in sorted(rows[mixed].tolist()))

    def _example(self, row: int) -> Example:
        return Example(
            shortened(self.texts[row]),
            int(self.answers.exit_layers[row]),
            self._label(row),
            self._said(self.answers.logits[row]),
            self._said(self.trace.logits[-1, row]),
        )

    def _label(self, row: int) -> str:
        label = labels_of(self.trace)[row]
        if self.trace.problem_type == REGRESSION:
            return _numbers(label)
        return _named(label.long().view(-1), self.names, self.trace.problem_type == MULTI_LABEL)

    def _said(self, logits: Tensor) -> str:
        if self.trace.problem_type == REGRESSION:
            return _numbers(logits)
        given = predictions(ExitOutput(logits[None], problem_type=self.trace.problem_type))[0]  # (G,)
        return _named(given, self.names, self.trace.problem_type == MULTI_LABEL)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.view(-1).tolist())


def _named(given: Tensor, names: Sequence[str], several: bool) -> str:
    if not several:
        return names[int(given)]
    return ", ".join(name for name, there in zip(names, given.tolist(), strict=True) if there) or "none"


def shortened(text: str | tuple[str, str]) -> str:
    """One line of at most LONGEST characters; the halves of a pair with a bar between them."""
    whole = text if isinstance(text, str) else " | ".join(text)
    whole = " ".join(whole.split())
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 1].rstrip() + "…"
