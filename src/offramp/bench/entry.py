"""The contestants of a race at one batch size, each in its fastest setting; some depend on which others are fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.bench.adaptive import FULL
from offramp.bench.cascade import cascade, cascade_name, equal_threshold
from offramp.bench.contestant import Contestant
from offramp.bench.plain_models import PlainModels
from offramp.bench.settings import Ready, fastest_settings
from offramp.data.rows import Text
from offramp.model.modeling import MultiExitModel
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION


@dataclass(frozen=True)
class Entry:
    """All that may take part, and the texts.

    Attributes:
        plain: contestants without early exit.
        early: engines at their points, and at full depth.
        model: their model.
        texts: of the race.
        labels: of the texts; None = there are none.
    """

    plain: PlainModels
    early: Sequence[Contestant]
    model: MultiExitModel
    texts: Sequence[Text]
    labels: Tensor | None

    def in_settings(self, batch_size: int) -> list[Ready]:
        """Return the contestants of a batch size.

        The encoder is cut in the runtime that is fastest at full depth. A cascade stands for each operating point: the
        lexical exit and the fastest full-depth model, with the threshold at which it is right as often as the point.
        """
        encoder = self.plain.encoder
        ready = self._fastest([*self.plain.contestants(), *self.early], batch_size)
        full = [one for one in ready if one.contestant.kind == "full-depth" and one.contestant.name != FULL]
        full.sort(key=lambda one: one.seconds)
        cuts = next(filter(None, (self.plain.cut_in(one.contestant.name) for one in full)), [])
        others = [cut.contestant(encoder) for cut in cuts]
        if self.plain.lexical is not None:
            (lexical,) = self._fastest([self.plain.lexical.contestant(encoder)], batch_size)
            ready.append(lexical)
            if self.model.config.problem_type != REGRESSION:
                others += self._cascades(ready, full[0], lexical, batch_size)
        return [*ready, *self._fastest(others, batch_size)]

    def _fastest(self, contestants: Sequence[Contestant], batch_size: int) -> list[Ready]:
        return fastest_settings(contestants, self.texts, batch_size)

    def _cascades(self, ready: Sequence[Ready], full: Ready, lexical: Ready, batch_size: int) -> Iterator[Contestant]:
        """Yield a cascade for each point in the engine that is fastest at it; its threshold is chosen on all texts."""
        assert self.plain.lexical is not None
        assert self.model.lexical_exit is not None
        certainty = self.model.lexical_exit.certainty
        behind, first = (one.run(self.texts, batch_size).logits for one in (full, lexical))
        fastest: dict[str, Ready] = {}
        for one in sorted(ready, key=lambda one: one.seconds):
            if one.contestant.kind == "adaptive":
                fastest.setdefault(one.contestant.name, one)
        for name, one in fastest.items():
            score = self._right(one.run(self.texts, batch_size).logits, behind).mean().item()
            sure, full_right = (self._right(logits, behind) for logits in (first, behind))
            least = equal_threshold(certainty(first), sure, full_right, score)
            plain = self.plain.by_name(full.contestant.name)
            yield cascade(cascade_name(name), self.plain.lexical, plain, certainty, least, self.plain.encoder)

    def _right(self, logits: Tensor, full: Tensor) -> Tensor:
        """Return (N,) 1.0 where an answer is right, else 0.0; without labels the full-depth model's counts as right."""
        kind = self.model.config.problem_type
        answers = predictions(ExitOutput(logits, problem_type=kind))
        if self.labels is None:
            expected = predictions(ExitOutput(full, problem_type=kind))
        else:
            expected = self.labels.reshape(len(answers), -1)
        return (answers == expected).all(dim=-1).double() * torch.isfinite(logits).all(dim=-1)
