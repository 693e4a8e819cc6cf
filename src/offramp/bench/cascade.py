"""A cascade: the lexical classifier answers the texts that it is sure of, a full-depth model the others.

This is what one would build from the same parts without early exit, so early exit has to beat it at the same score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offramp.bench.contestant import Contestant, TextAnswers, TextRun
from offramp.bench.texts import PlainModel, TextEncoder, answer_rows
from offramp.data.rows import Text
from offramp.inference.workers import WorkerPool

Certainty = Callable[[Tensor], Tensor]
"""Logits (N, C) -> certainty (N,), such as `LexicalClassifier.certainty`."""


def cascade_name(point: str) -> str:
    """Return the name of the cascade that is right as often as a point."""
    return f"cascade as right as {point!r}"


def cascade(
    name: str,
    lexical: PlainModel,
    full: PlainModel,
    certainty: Certainty,
    leaving_at: float,
    encoder: TextEncoder,
) -> Contestant:
    """Return the contestant in which texts of at least this certainty leave; the others make new, full batches.

    Args:
        name: of the contestant.
        lexical: the exit before the first layer.
        full: answers the other texts.
        certainty: of the lexical exit's logits.
        leaving_at: the certainty; inf = all texts go on.
        encoder: tokenizes all texts once.
    """

    def load(threads: int, workers: int) -> TextRun:
        first, second, pool = lexical.load(1, workers), full.load(threads, workers), WorkerPool(workers)

        def run(texts: Sequence[Text], batch_size: int) -> TextAnswers:
            rows = encoder.encode(texts)
            logits = torch.from_numpy(answer_rows(encoder, rows, first, batch_size, pool))
            going_on = (certainty(logits) < leaving_at).nonzero().flatten()
            layers = torch.zeros(len(rows), dtype=torch.long)
            if len(going_on):
                left = [rows[number] for number in going_on.tolist()]
                behind = answer_rows(encoder, left, second, batch_size, pool)
                logits[going_on], layers[going_on] = torch.from_numpy(behind), full.layer
            return TextAnswers(logits, layers)

        return run

    return Contestant(name, "cascade", full.engine, load)


def equal_threshold(certainty: Tensor, lexical: Tensor, full: Tensor, least: float) -> float:
    """Return the loosest threshold of a cascade whose mean of right answers is at least `least`; inf = none is.

    It lies midway between two certainties. Chosen on the texts that are reported, it favours the cascade.

    Args:
        certainty: (N,) of the lexical exit.
        lexical: (N,) 1 where its answer counts as right, else 0.
        full: (N,) likewise of the full-depth model.
        least: the mean to keep.
    """
    order = certainty.argsort(descending=True, stable=True)
    ranked, gains = certainty[order], (lexical.double() - full.double())[order]
    means = full.double().mean() + gains.cumsum(0) / len(gains)  # [k] with the k + 1 surest texts answered
    apart = torch.cat((ranked[:-1] > ranked[1:], torch.tensor([True])))
    counts = (apart & (means >= least - 1e-12)).nonzero().flatten()
    if not len(counts):
        return float("inf")
    last = int(counts[-1])
    return float(ranked[last] if last + 1 == len(ranked) else (ranked[last] + ranked[last + 1]) / 2)
