"""A contestant of a benchmark: it answers texts, tokenizer included, with a number of threads and workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from offramp.data.rows import Text

Kind = Literal["full-depth", "cut", "lexical", "cascade", "adaptive"]
"""Full depth; the encoder cut at a layer, with that exit's head; the exit before the first layer alone; that exit and a
full-depth model behind it; early exit."""


@dataclass(frozen=True)
class TextAnswers:
    """The answers to texts, in their order.

    Attributes:
        logits: (N, C); those of a `Predictor` are 1 for the answer's label and 0 else (for several labels 1 and -1, for
            a regression the values), NaN where there is no answer.
        exit_layers: (N,) int64, 0 = before the first layer.
    """

    logits: Tensor
    exit_layers: Tensor


TextRun = Callable[[Sequence[Text], int], TextAnswers]
"""Answers texts in batches of a size."""


@dataclass(frozen=True)
class Contestant:
    """A way from texts to answers.

    Attributes:
        name: unique among those of its kind and engine. A variant of another one has its name, a comma and what
            differs, such as "plain onnx, norms fused"; the fastest of them takes part.
        kind: what of the model runs.
        engine: the runtime.
        load: threads and workers -> the run. `threads` compute a batch, `workers` answer batches at the same time. It
            raises InvalidInput for a number that the runtime does not take.
    """

    name: str
    kind: Kind
    engine: str
    load: Callable[[int, int], TextRun]

    @property
    def group(self) -> tuple[str, ...]:
        """Return what variants of a contestant have in common; a point may have any name."""
        return (self.kind, self.engine, self.name if self.kind == "adaptive" else self.name.partition(", ")[0])
